"""Images on their way to the device while it still computes the step before.

The host is ahead of a GPU (a step never waits for it: ``tests/training/test_no_waiting.py``), so when it asks for a
batch, the device is busy with the last one. Copied on a stream of their own, from the loader's page-locked memory, its
images arrive meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from models.device import to_device_async
from training.data.batch import CoBatch


def prefetch_to_device(batches: Iterator[CoBatch], device: torch.device) -> Iterator[CoBatch]:
    """The batches with their images (or codes) on a GPU; as they are where there is none. What is small, and what the
    host still reads (words, actions, names), stays with the host."""
    return batches if device.type != "cuda" else _on_their_way(batches, device)


def _on_their_way(batches: Iterator[CoBatch], device: torch.device) -> Iterator[CoBatch]:
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    for batch in batches:
        with torch.cuda.stream(stream):
            moved = sent(batch, device)
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(stream)
        for tensor in images(moved):
            tensor.record_stream(computing)  # its memory was taken on the other stream
        yield moved


def sent(batch: CoBatch, device: torch.device) -> CoBatch:
    robot, text = batch.robot, batch.text
    if robot is not None:
        robot = replace(
            robot, views=to_device_async(robot.views, device), future_views=to_device_async(robot.future_views, device)
        )
    if text is not None:
        text = replace(text, pixels=to_device_async(text.pixels, device))
    return CoBatch(robot=robot, text=text)


def images(batch: CoBatch) -> list[Tensor]:
    """The tensors that ``sent`` moves."""
    found = [] if batch.robot is None else [batch.robot.views, batch.robot.future_views]
    return found if batch.text is None else [*found, batch.text.pixels]

"""Copy images to the device while it still computes the micro-batch before.

The host runs ahead of a GPU (a step never waits for it: ``tests/training/test_no_waiting.py``), so the device is busy
when the host requests the next micro-batch. Its images are copied from the loader's page-locked memory on a stream of
their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from models.device import to_device_async
from training.data.batch import CoBatch, RobotBatch


class DevicePrefetcher:
    """Copies micro-batches to a device, one micro-batch ahead of the one in use. Without a GPU it copies nothing."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def start(self, batches: Sequence[CoBatch]) -> Iterator[CoBatch]:
        """Start the first copy and return an iterator over the batches with images (or codes) on the device.

        Ids, actions and names stay on the host.
        """
        if self._stream is None:
            return iter(batches)
        return self._wait_for(itertools.chain([self._copy(batches[0])], map(self._copy, batches[1:])))

    def _copy(self, batch: CoBatch) -> tuple[CoBatch, torch.cuda.Event]:
        assert self._stream is not None
        with torch.cuda.stream(self._stream):
            return to_device(batch, self._device), self._stream.record_event()

    def _wait_for(self, copies: Iterator[tuple[CoBatch, torch.cuda.Event]]) -> Iterator[CoBatch]:
        compute = torch.cuda.current_stream(self._device)
        following = next(copies, None)
        while following is not None:
            moved, copied = following
            following = next(copies, None)
            compute.wait_event(copied)
            for tensor in images(moved):
                tensor.record_stream(compute)  # its memory was allocated on the other stream
            yield moved


def to_device(batch: CoBatch, device: torch.device) -> CoBatch:
    """Return the batch with its images on the device."""
    robot, text = batch.robot, batch.text
    if robot is not None:
        scenes = None if robot.scenes is None else _robot_to_device(robot.scenes, device)
        robot = replace(_robot_to_device(robot, device), scenes=scenes)
    if text is not None:
        text = replace(text, pixels=to_device_async(text.pixels, device))
    return CoBatch(robot=robot, text=text)


def _robot_to_device(batch: RobotBatch, device: torch.device) -> RobotBatch:
    views, later = (to_device_async(images, device) for images in (batch.views, batch.future_views))
    return replace(batch, views=views, future_views=later)


def images(batch: CoBatch) -> list[Tensor]:
    """Return the tensors that ``to_device`` moves."""
    flows = [] if batch.robot is None else [batch.robot, batch.robot.scenes]
    found = [tensor for flow in flows if flow is not None for tensor in (flow.views, flow.future_views)]
    return found if batch.text is None else [*found, batch.text.pixels]

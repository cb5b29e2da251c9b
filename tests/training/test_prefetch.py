"""Images travel to the device ahead of their step; nothing else does."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness.problems import SIZES, made_up_batch
from training.data.batch import CoBatch
from training.prefetch import DevicePrefetcher, images, to_device

META = torch.device("meta")


def batch() -> CoBatch:
    return made_up_batch(SIZES["cpu"], rows=2)


def test_without_a_gpu_batches_are_handed_over_as_they_are() -> None:
    given = [batch(), batch()]
    assert list(DevicePrefetcher(torch.device("cpu")).start(given)) == given


def test_images_are_sent_and_what_the_host_reads_stays() -> None:
    moved = to_device(batch(), META)
    assert {tensor.device for tensor in images(moved)} == {META}
    assert moved.robot is not None
    assert moved.text is not None
    kept = (moved.robot.actions, moved.robot.action_is_pad, moved.robot.indices, moved.text.indices)
    assert {tensor.device.type for tensor in kept} == {"cpu"}
    assert to_device(CoBatch(robot=None, text=None), META) == CoBatch(robot=None, text=None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_arrives_is_what_was_to_device() -> None:
    device = torch.device("cuda")
    for moved in DevicePrefetcher(device).start([batch(), batch(), batch()]):
        for ours, theirs in zip(images(moved), images(batch()), strict=True):
            assert ours.is_cuda
            assert torch.equal(ours.cpu(), theirs)

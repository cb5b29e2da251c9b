"""Augmentation of robot images: off by default, the same for now and later, a function of seed, step and sample."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from config.loading import ConfigError, load_job
from config.schema import Augment
from training.augmentation import Change, apply, draw, is_off

STRONG = Augment(crop=0.2, shift=0.1, brightness=0.3, contrast=0.3, saturation=0.3)


def frames(batch: int = 3, views: int = 2, size: int = 16) -> Tensor:
    """uint8 [2, B, V, 3, R, R]: two different moments."""
    return torch.randint(0, 256, (2, batch, views, 3, size, size), dtype=torch.uint8)


def still(batch: int, views: int) -> Change:
    ones = torch.ones(batch)
    return Change(torch.ones(batch, views), torch.zeros(batch, views, 2), ones, ones, ones)


def test_it_is_off_by_default() -> None:
    assert is_off(Augment())
    assert not is_off(STRONG)


def test_the_change_that_changes_nothing_leaves_every_pixel() -> None:
    images = frames()
    assert torch.equal(apply(images, still(3, 2)), images)


def test_a_frame_that_is_the_same_now_and_later_is_so_afterwards() -> None:
    images = frames()
    images[1] = images[0]
    changed = apply(images, draw(STRONG, 0, 5, [4, 9, 2], 2))
    assert torch.equal(changed[0], changed[1])
    assert not torch.equal(changed[0], images[0])


def test_the_later_frame_does_not_depend_on_being_alone_in_its_change() -> None:
    """Contrast turns about the grey of the frame now, so the later frame is mapped as the one now is."""
    images = frames()
    images[1] = 255 - images[0]
    change = draw(Augment(contrast=0.5), 0, 5, [1, 2, 3], 2)
    now, later = apply(images, change).float()
    slope, pivot = change.contrast.view(3, 1, 1, 1, 1), images[0].float()
    grey = (pivot * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(-3, keepdim=True).mean((2, 3, 4), True)
    for moment, before in ((now, images[0].float()), (later, images[1].float())):
        assert torch.allclose(moment, (grey + slope * (before - grey)).clamp(0, 255), atol=0.51)


def test_the_draw_depends_on_seed_step_and_sample_and_on_nothing_else() -> None:
    both = draw(STRONG, 7, 3, [4, 9], 2)
    alone = draw(STRONG, 7, 3, [9], 2)
    assert torch.equal(both.move[1], alone.move[0])
    assert torch.equal(both.contrast[1], alone.contrast[0])
    for other in (draw(STRONG, 8, 3, [9], 2), draw(STRONG, 7, 4, [9], 2), draw(STRONG, 7, 3, [10], 2)):
        assert not torch.equal(other.move, alone.move)


def test_drawing_touches_no_global_generator() -> None:
    before = torch.get_rng_state()
    draw(STRONG, 7, 3, [4], 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_shift_to_the_right_by_a_whole_number_of_pixels_moves_the_columns() -> None:
    images = frames(batch=1, views=1)
    change = still(1, 1)
    change.move[..., 0] = 2 * 3 / 16  # three of sixteen columns
    moved = apply(images, change)
    assert torch.equal(moved[..., :13], images[..., 3:])
    assert torch.equal(moved[..., 13:], images[..., -1:].expand(*moved.shape[:-1], 3))  # the border is repeated


def test_crops_stay_inside_the_image() -> None:
    change = draw(Augment(crop=0.3), 0, 0, list(range(200)), 2)
    reach = change.move.abs().amax(-1) + change.zoom
    assert float(reach.max()) <= 1 + 1e-6
    assert float(change.zoom.min()) < 0.75
    assert float(change.zoom.max()) > 0.95


def test_cameras_move_apart_and_share_their_light() -> None:
    change = draw(STRONG, 0, 0, [3], 2)
    assert not torch.equal(change.move[0, 0], change.move[0, 1])
    images = frames(batch=1)
    images[:, :, 1] = images[:, :, 0]
    lit = apply(images, draw(Augment(brightness=0.4), 0, 0, [3], 2))
    assert torch.equal(lit[:, :, 0], lit[:, :, 1])


def test_no_saturation_is_grey() -> None:
    change = still(3, 2)
    grey = apply(frames(), Change(change.zoom, change.move, change.brightness, change.contrast, torch.zeros(3)))
    assert torch.equal(grey[:, :, :, 0], grey[:, :, :, 1])
    assert torch.equal(grey[:, :, :, 1], grey[:, :, :, 2])


@pytest.mark.parametrize("value", ["1.0", "-0.1"])
def test_a_crop_of_the_whole_image_is_refused(tmp_path: Path, value: str) -> None:
    argv = ["config=config/tiny_arvla.yaml", f"dataset.augment.crop={value}", f"experiment.output_dir={tmp_path}"]
    with pytest.raises(ConfigError, match=r"dataset\.augment\.crop"):
        load_job(argv, "ar")

"""Train the small MagVITv2 further on frames of recordings, for example of the real CALVIN, and measure the change.

The losses are those of ``tokenizer_training``. The last frames of each recording are held out and measured before and
after: the reconstruction error, and the error of states that a linear map reads from the codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.command import progress_bar
from common.files import PROJECT_DIR
from models.processing.image import normalise, to_uint8
from models.vision.magvitv2 import MagVITv2, load_magvit
from preprocess_data.tiny_assets.tokenizer_training import (
    GRIPPER_EVERY,
    Images,
    stack_images,
    state_of,
    train_decoder,
    train_encoder,
    write_magvit,
)
from training.data.calvin import CalvinSplit

START = PROJECT_DIR / "assets/tiny_magvit"
STEPS = (900, 600)
"""Default steps of encoder and decoder."""
LEARNING_RATE = 1e-3
HELD_OUT = 0.1
"""Part of a recording, its last frames, that is measured and not trained on."""
MEASURED = 400
"""Held-out frames at most whose reconstruction is measured."""
HAND = slice(0, 3)
"""Position of the hand in the states of ``tokenizer_training.STATE``."""
RIDGE = 10.0
SHOWN = 6
BATCH = 16


@dataclass(frozen=True)
class Quality:
    """How much of an image its codes contain.

    ``grey``: mean absolute error of the reconstruction, of 255 grey levels. ``moving``: the same for pixels that differ
    from the mean image by more than 20. ``hand``: mean error of the hand's position that a linear map reads from the
    codes, in mm along an axis.
    """

    grey: float
    moving: float
    hand: float

    def __str__(self) -> str:
        return f"error {self.grey:.2f} of 255, {self.moving:.1f} in moving pixels, hand {self.hand:.1f} mm"


def read_images(splits: Sequence[Path], count: int) -> tuple[Images, Images]:
    """Return images for training and held-out ones of the static camera, at most ``count`` from all raw splits.

    Every seventh image for training is of the gripper camera. Raises ``ValueError`` naming the file if a split has no
    frames or lacks a camera.
    """
    training: list[tuple[np.ndarray, int, np.ndarray]] = []
    held_out: list[tuple[np.ndarray, int, np.ndarray]] = []
    for group, path in enumerate(splits):
        split = CalvinSplit(path)
        ids = split.frame_ids
        chosen = ids[:: max(1, len(ids) * len(splits) // count)]
        first = int(len(chosen) * (1 - HELD_OUT))
        for number, index in enumerate(progress_bar(chosen.tolist(), desc=path.name, unit="frame")):
            by_gripper = number < first and number % GRIPPER_EVERY == GRIPPER_EVERY - 1
            camera = "rgb_gripper" if by_gripper else "rgb_static"
            frame = split.frame(index, (camera, "robot_obs", "scene_obs"))
            state = state_of(frame)
            image = (frame[camera], -1 if by_gripper else group, np.full_like(state, np.nan) if by_gripper else state)
            (training if number < first else held_out).append(image)
    return stack_images(training), stack_images(held_out)


def train_further(splits: Sequence[Path], out: Path, steps: tuple[int, int], count: int) -> str:
    """Write to ``out`` the embedded tokenizer, trained further on raw splits; return a summary.

    ``steps``: of encoder and decoder. ``count``: frames at most. Writes ``reconstruction.png`` next to the weights:
    held-out frames, and their reconstruction before and after.
    """
    images, held_out = read_images(splits, count)
    model = load_magvit(START)
    before, first = quality(model, images, held_out), _shown(model, held_out)
    model, _ = train_encoder(images, steps[0], learning_rate=LEARNING_RATE, start=model)
    train_decoder(model, images, steps[1], learning_rate=LEARNING_RATE)
    write_magvit(model, out)
    after, second = quality(model, images, held_out), _shown(model, held_out)
    _write_image(out / "reconstruction.png", [held_out.frames[_rows(held_out)], first, second])
    return f"{len(held_out.frames)} held-out frames\nbefore: {before}\nafter:  {after}\nwritten: {out}"


@torch.inference_mode()
def quality(model: MagVITv2, images: Images, held_out: Images) -> Quality:
    """Measure a tokenizer on held-out images; the linear map is fitted on ``images``."""
    some = held_out.every(max(1, len(held_out.frames) // MEASURED))
    mean = normalise(images.frames[images.known][::10]).mean(dim=0)
    errors, moving = [], []
    for first in range(0, len(some.frames), BATCH):
        pixels = normalise(some.frames[first : first + BATCH])
        error = (model.decode(model.encode(pixels)) - pixels).abs().mean(dim=1) * 127.5
        errors.append(error)
        moving.append(error[(pixels - mean).abs().mean(dim=1) > 20 / 127.5])
    known = images.known
    inputs, targets = _bits(model, images.frames[known]), images.states[known, HAND].double()
    weights = torch.linalg.solve(inputs.T @ inputs + RIDGE * torch.eye(inputs.shape[1]).double(), inputs.T @ targets)
    hand = (_bits(model, held_out.frames) @ weights - held_out.states[:, HAND]).abs().mean() * 1000
    return Quality(float(torch.cat(errors).mean()), float(torch.cat(moving).mean()), float(hand))


def _bits(model: MagVITv2, frames: Tensor) -> Tensor:
    """Return the signs of the codes and a one, float64 [N, bits + 1]."""
    batches = [frames[first : first + BATCH] for first in range(0, len(frames), BATCH)]
    bits = torch.cat([model.latent(normalise(some)).sign().flatten(1) for some in batches]).double()
    return torch.cat([bits, torch.ones(len(bits), 1).double()], dim=1)


def _rows(held_out: Images) -> Tensor:
    return torch.linspace(0, len(held_out.frames) - 1, SHOWN).long()


@torch.inference_mode()
def _shown(model: MagVITv2, held_out: Images) -> Tensor:
    return to_uint8(model.decode(model.encode(normalise(held_out.frames[_rows(held_out)]))))


def _write_image(file: Path, rows: Sequence[Tensor]) -> None:
    """Write rows of images, uint8 [N, 3, R, R] each, below each other."""
    from PIL import Image

    grid = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    Image.fromarray(grid.movedim(0, -1).numpy()).save(file)

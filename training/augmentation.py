"""Random crops, shifts and colours of robot images, the same for a sample's frames now and later.

Off by default (``dataset.augment``). Applied to the whole batch on the training device, after loading. Drawn by (seed,
step, sample), so that it does not depend on the process and is the same after a resume. Images for evaluation and
inference are never augmented.

Shape letters: M moments (now, later), B batch, V views, R resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from config.schema import Augment
from models.device import to_device_async
from models.rng import generator

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey value (ITU-R BT.601)."""


@dataclass(frozen=True)
class Change:
    """Parameters of the augmentation: geometry per camera, colours per sample (all cameras share the light).

    ``zoom`` [B, V]: fraction of the side that is kept; ``move`` [B, V, 2]: shift of the window's centre to the right
    and down, where 2 is the whole side; ``brightness``, ``contrast``, ``saturation`` [B]: factors.
    """

    zoom: Tensor
    move: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor


def is_off(settings: Augment) -> bool:
    """Return True if the settings change no image."""
    return settings == Augment()


def draw(settings: Augment, seed: int, step: int, indices: Sequence[int], views: int) -> Change:
    """Draw the parameters of the samples ``indices`` in a step, on the host."""
    rows = [torch.rand(views * 5 + 3, generator=generator(seed, "augment", step, index)) for index in indices]
    drawn = torch.stack(rows)  # [B, 5 V + 3], in [0, 1)
    geometry = drawn[:, : views * 5].view(len(rows), views, 5)
    cut = settings.crop * geometry[..., 0]  # [B, V]
    # A window of (1 - cut) of the side stays inside while its centre moves by at most cut (of half a side).
    inside = cut[..., None] * (2 * geometry[..., 1:3] - 1)
    beyond = 2 * settings.shift * (2 * geometry[..., 3:5] - 1)
    strength = torch.tensor([settings.brightness, settings.contrast, settings.saturation])
    factors = 1 + strength * (2 * drawn[:, views * 5 :] - 1)  # [B, 3]
    return Change(1 - cut, inside + beyond, *factors.unbind(1))


def apply(frames: Tensor, change: Change) -> Tensor:
    """Augment frames, uint8 [M, B, V, 3, R, R], on their device; all moments of a sample in the same way."""
    device = frames.device
    batch = frames.shape[1]
    pixels = frames.float()
    if not (bool((change.zoom == 1).all()) and not bool(change.move.any())):
        pixels = _crop_and_shift(pixels, to_device_async(change.zoom, device), to_device_async(change.move, device))
    factors = [
        to_device_async(factor, device).view(1, batch, 1, 1, 1, 1)
        for factor in (change.brightness, change.contrast, change.saturation)
    ]
    brightness, contrast, saturation = factors
    pixels = pixels * brightness
    # The pivot of contrast is the mean grey of the first moment, so that all moments are changed in the same way.
    pivot = _grey(pixels[:1]).mean(dim=(3, 4, 5), keepdim=True)  # [1, B, V, 1, 1, 1]
    pixels = pivot + contrast * (pixels - pivot)
    grey = _grey(pixels)
    pixels = grey + saturation * (pixels - grey)
    return pixels.round().clamp(0, 255).to(torch.uint8)


def _crop_and_shift(pixels: Tensor, zoom: Tensor, move: Tensor) -> Tensor:
    """Resize each camera's window to the whole image; pixels at the border are repeated outside of it."""
    moments, batch, views, channels, size, _ = pixels.shape
    theta = torch.zeros(batch, views, 2, 3, device=pixels.device)
    theta[..., 0, 0] = theta[..., 1, 1] = zoom
    theta[..., 2] = move
    theta = theta.expand(moments, batch, views, 2, 3).reshape(-1, 2, 3)
    grid = F.affine_grid(theta, [len(theta), channels, size, size], align_corners=False)
    resampled = F.grid_sample(
        pixels.reshape(-1, channels, size, size), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return resampled.view_as(pixels)


def _grey(pixels: Tensor) -> Tensor:
    """Convert colours [..., 3, R, R] to grey [..., 1, R, R]."""
    weights = to_device_async(torch.tensor(LUMA), pixels.device).view(3, 1, 1)
    return (pixels * weights).sum(dim=-3, keepdim=True)

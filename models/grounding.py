"""Grounding: the position of the object that an instruction names, from the hidden states of the action slots.

It is learned beside the actions, so that the words of an instruction get tied to what is in the image, and is not
needed for acting.

Legend: B batch, T chunk, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.device import fields_to_device
from models.losses import SumAndCount
from models.sequence import TokenSequence

GROUND_METRICS = ("ground/error_mm", "ground/scenes_error_mm")
"""Mean distance to the true position in demonstrations and in random scenes, in millimetres."""


def ground_target(workspace: Mapping[str, Any] | None) -> str:
    """Return what a ground head with this ``DataSpec.workspace`` predicts (``training.ground_target``)."""
    return str((workspace or {}).get("target", "position"))


class PositionHead(nn.Module):
    """The mean of the action slots and two linear layers with a GELU between: [B, T, D] -> [B, 3]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, 3)

    def forward(self, slots: Tensor) -> Tensor:
        """Return positions or offsets in the units of ``PositionTargets.scaled``."""
        scaled: Tensor = self.out(F.gelu(self.hidden(slots.mean(dim=1))))
        return scaled


@dataclass(frozen=True)
class PositionTargets:
    """Targets of the ground head.

    ``scaled`` [B, 3]: positions, -1 and 1 at the bounds of the workspace, or offsets from the hand; NaN where unknown.
    ``metres`` [3]: metres of a change of 1 in each of the three numbers. ``smooth``: None for a squared error, else the
    error below which an absolute error is squared (smooth L1), in scaled units.
    """

    scaled: Tensor
    metres: Tensor
    smooth: float | None = None

    @property
    def count(self) -> float:
        """How many numbers are known; waits for the device."""
        return float((~self.scaled.isnan()).sum())

    def to(self, device: torch.device | str) -> PositionTargets:
        return fields_to_device(self, device)


@dataclass(frozen=True)
class SceneTask:
    """Random scenes: only the positions of objects are learned from them."""

    sequence: TokenSequence
    positions: PositionTargets

    def to(self, device: torch.device | str) -> SceneTask:
        return fields_to_device(self, device)


def position_losses(predicted: Tensor, targets: PositionTargets) -> tuple[SumAndCount, SumAndCount]:
    """Return (error over known numbers, in scaled units; distance in millimetres over known positions).

    ``predicted`` [B, 3], scaled.
    """
    known = ~targets.scaled.isnan()
    errors = torch.where(known, predicted.float() - targets.scaled.nan_to_num(), 0.0)
    whole = known.all(dim=-1)
    distances = (errors.detach() * targets.metres * 1000).norm(dim=-1) * whole
    if targets.smooth is None:
        sizes = errors.square()
    else:
        sizes = F.smooth_l1_loss(errors, torch.zeros_like(errors), reduction="none", beta=targets.smooth)
    loss = SumAndCount(sizes.sum(), known.sum().float())
    return loss, SumAndCount(distances.sum(), whole.sum().float())

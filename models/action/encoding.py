"""Normalise actions (``ActionScale``) and encode them as tokens (``ActionBins``).

As a token, each number of a chunk is one of ``count`` evenly spaced values in [-1, 1]. Bin b has the id of image code
b, as in the original: embedding and head need no further rows, and a checkpoint with block-diffusion actions has the
shapes of one without. Image codes and bins never share a span, so ids are unambiguous.

Legend: B batch, T chunk, A action size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from models.vocabulary import Vocabulary


@dataclass(frozen=True)
class ActionBins:
    """``count`` values from -1 to 1, both included, under ids of ``vocab``."""

    vocab: Vocabulary
    count: int

    def __post_init__(self) -> None:
        if not 2 <= self.count <= self.vocab.codebook_size:
            raise ValueError(
                f"block_diffusion.action_num_bins is {self.count}; it must be at least 2 and at most the "
                f"{self.vocab.codebook_size} image codes whose ids the bins share"
            )

    def ids(self, actions: Tensor) -> Tensor:
        """Encode actions of any shape as ids of that shape. Values are clipped to [-1, 1]; halves round to the
        even bin, as in the original."""
        unit = (actions.float().clamp(-1.0, 1.0) + 1) / 2
        return self.vocab.code_ids((unit * (self.count - 1)).round().long())

    def values(self, ids: Tensor) -> Tensor:
        """Decode ids of bins into float32 actions of that shape."""
        return self.vocab.codes(ids).float() / (self.count - 1) * 2 - 1


@dataclass(frozen=True)
class ActionScale:
    """Normalisation of actions: ``low`` becomes -1 and ``high`` +1, in each of the A dimensions.

    ``kind`` ``min_max``: extremes of the training data. ``quantile``: their 1st and 99th percentile, with clipping, so
    that a few outliers do not compress all other values. A constant dimension becomes 0 and is restored by ``undo``.
    """

    kind: str
    low: tuple[float, ...]
    high: tuple[float, ...]

    def apply(self, actions: Tensor) -> Tensor:
        """Normalise [..., A] in the robot's units to float32 [..., A]."""
        low, width = self._bounds(actions)
        scaled = torch.where(width > 0, (actions.float() - low) / torch.where(width > 0, width, 1.0) * 2 - 1, 0.0)
        return scaled.clamp(-1.0, 1.0) if self.kind == "quantile" else scaled

    def undo(self, actions: Tensor) -> Tensor:
        """Return float32 [..., A] in the robot's units from normalised [..., A]."""
        low, width = self._bounds(actions)
        return low + (actions.float() + 1) / 2 * width

    def _bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        low = torch.tensor(self.low, device=like.device)
        return low, torch.tensor(self.high, device=like.device) - low

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ActionScale:
        return cls(str(data["kind"]), tuple(map(float, data["low"])), tuple(map(float, data["high"])))

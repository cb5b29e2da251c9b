"""Actions as tokens: each of a chunk's numbers is one of ``count`` evenly spaced values in [-1, 1].

Bin b has the id of image code b. The original put its bins there too: no rows are added to embedding and head, so that
a checkpoint with block-diffusion actions has the shapes of one without. Image codes and bins never stand in the same
span, and whoever reads one knows which it is.

Legend: B batch, T chunk, A action size.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from models.tokens import Vocabulary


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

    @property
    def largest_error(self) -> float:
        """Of a number in [-1, 1] by being rounded to its bin: half a bin's width."""
        return 1.0 / (self.count - 1)

    def ids(self, actions: Tensor) -> Tensor:
        """Actions of any shape -> ids of that shape. What lies outside [-1, 1] is cut to it; halves go to the even bin,
        as in the original."""
        unit = (actions.float().clamp(-1.0, 1.0) + 1) / 2
        return self.vocab.code_ids((unit * (self.count - 1)).round().long())

    def values(self, ids: Tensor) -> Tensor:
        """Ids of bins -> float32 actions of that shape."""
        return self.vocab.codes(ids).float() / (self.count - 1) * 2 - 1

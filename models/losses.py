"""Cross-entropy of gathered hidden states: only scored slots are projected to the vocabulary.

Legend: S scored slots, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

MAX_LOGITS = 1 << 26
"""Maximum number of logits in memory (0.25 GB in float32); more rows are scored in recomputed chunks."""

Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SumAndCount:
    """A sum and its count. The mean is taken once, at the end, over slots, micro-batches and ranks."""

    sum: Tensor
    count: Tensor

    @property
    def mean(self) -> Tensor:
        """sum / count; 0 if nothing was counted."""
        return self.sum / self.count.clamp_min(torch.finfo(torch.float32).tiny)

    def __add__(self, other: SumAndCount) -> SumAndCount:
        return SumAndCount(self.sum + other.sum, self.count + other.count)

    def detach(self) -> SumAndCount:
        return SumAndCount(self.sum.detach(), self.count.detach())

    @classmethod
    def zero(cls, device: torch.device | str) -> SumAndCount:
        return cls(torch.zeros((), device=device), torch.zeros((), device=device))


def ban(logits: Tensor, banned: int | None) -> Tensor:
    """Return logits with one id's set to -inf, out of place."""
    if banned is None:
        return logits
    index = torch.full((1,), banned, device=logits.device)  # filled on the device, without waiting
    return logits.index_fill(-1, index, float("-inf"))


def token_cross_entropy(
    head: Head, hidden: Tensor, targets: Tensor, banned: int | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Return [S] cross-entropies in float32.

    ``head``: [*, D] -> [*, V]; ``hidden`` [S, D]; ``targets`` [S] ids; ``banned``: an id that is never predicted.
    """
    if label_smoothing and banned is not None:
        raise ValueError("label smoothing spreads mass over every id; it cannot be used where one id is banned")

    def score(rows: Tensor, goals: Tensor) -> Tensor:
        logits = ban(head(rows).float(), banned)
        return F.cross_entropy(logits, goals, reduction="none", label_smoothing=label_smoothing)

    return _in_chunks(score, head, hidden, targets)


def cross_entropy_with_accuracy(
    head: Head, hidden: Tensor, targets: Tensor, banned: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return [S] cross-entropies, and [S] 1 where the target is the most likely id."""

    def score(rows: Tensor, goals: Tensor) -> Tensor:
        logits = ban(head(rows).float(), banned)
        right = (logits.detach().argmax(dim=-1) == goals).float()
        return torch.stack([F.cross_entropy(logits, goals, reduction="none"), right], dim=1)  # [S, 2]

    losses, right = _in_chunks(score, head, hidden, targets).unbind(dim=1)
    return losses, right.detach()


def _in_chunks(score: Callable[[Tensor, Tensor], Tensor], head: Head, hidden: Tensor, targets: Tensor) -> Tensor:
    """Apply ``score`` to all rows, with at most ``MAX_LOGITS`` logits at once."""
    vocabulary = getattr(head, "out_features", None)
    rows_at_once = MAX_LOGITS // int(vocabulary) if vocabulary else hidden.shape[0]
    if hidden.shape[0] <= max(rows_at_once, 1):
        return score(hidden, targets)
    pieces = zip(torch.split(hidden, rows_at_once), torch.split(targets, rows_at_once), strict=True)
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(score, rows, goals, use_reentrant=False) for rows, goals in pieces])
    return torch.cat([score(rows, goals) for rows, goals in pieces])

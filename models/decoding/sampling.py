"""Sampling of tokens: from hidden states to logits of allowed ids, and from logits to ids.

Legend: V vocabulary (or its words), D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.losses import ban
from models.upvla import UPVLA


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling. ``temperature`` 0: the most likely token; ``top_k``, ``top_p`` restrict the candidates.

    Greedy answers do not depend on the batch. Sampled ones do, because all rows share one generator.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it must be 1 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must lie in (0, 1]")

    def sample(self, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return ids [S] from logits [S, V]."""
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        logits = logits.double()  # precision for the tails
        logits = (logits - logits.max(dim=-1, keepdim=True).values) / self.temperature  # finite however small that is
        if self.top_k is not None:
            kth = logits.topk(min(self.top_k, logits.shape[-1]), dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < kth, float("-inf"))
        if self.top_p is not None:
            ordered, index = logits.sort(dim=-1, descending=True)
            before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
            ordered = ordered.masked_fill(before >= self.top_p, float("-inf"))
            logits = torch.full_like(logits, float("-inf")).scatter(-1, index, ordered)
        return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]


@dataclass(frozen=True)
class LogitsFilter:
    """Logits of allowed ids: words only, or (as the original) every id except the mask."""

    model: UPVLA
    words_only: bool = True

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 logits [..., V] of hidden states [..., D]; with ``words_only`` only the rows of words."""
        if not self.words_only:
            return ban(self.model.backbone.logits(hidden), self.model.vocab.mask)
        return self.model.backbone.logits(hidden, slice(self.model.vocab.words))

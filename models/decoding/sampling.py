"""Choosing words: from hidden states to logits of what may be said, and from logits to ids.

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
    """How the next token is chosen. ``temperature`` 0: the most likely one; ``top_k``, ``top_p`` narrow the choice.

    Greedy answers do not depend on the batch a question is asked in; drawn ones do, all rows share one generator.
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

    def choose(self, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        """[S, V] -> [S] ids."""
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        logits = logits.double()  # the tails want room
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
    """What a model may say: words only, or (as the original) every id but the mask."""

    model: UPVLA
    words_only: bool = True

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V] in float32; only the rows of words are projected where only words may be said."""
        if not self.words_only:
            return ban(self.model.backbone.logits(hidden), self.model.vocab.mask)
        return self.model.backbone.logits(hidden, slice(self.model.vocab.words))

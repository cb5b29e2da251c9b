"""An exponential average of the weights: it trails what is trained, is smoother, and is what evaluates and acts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """The average of a model's trained parameters, in float32 on their device; what rests has no need of one.

    After optimizer step s (1, 2, ...): average = d * average + (1 - d) * weights, d = min(decay, (1 + s) / (10 + s)):
    a short run does not keep its random start. The average is a function of the steps alone.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._model = model
        self.values = {name: p.detach().float().clone() for name, p in self._trained().items()}

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self._model.named_parameters() if p.requires_grad}

    def decay_at(self, step: int) -> float:
        return min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the weights as they are after optimizer step ``step``."""
        now = self._trained()
        weights = [now[name].detach().float() for name in self.values]
        torch._foreach_lerp_(list(self.values.values()), weights, 1.0 - self.decay_at(step))

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Take a saved average over; ``KeyError`` if a parameter is missing from it."""
        for name, mine in self.values.items():
            mine.copy_(values[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model with the average in place of its weights; nothing is copied in float32."""
        trained = self._trained()
        kept = {name: p.data for name, p in trained.items()}
        try:
            for name, p in trained.items():
                p.data = self.values[name].to(p.dtype)
            yield
        finally:
            for name, p in trained.items():
                p.data = kept[name]

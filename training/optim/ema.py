"""Exponential moving average of the weights, used for evaluation and inference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Average of a model's trained parameters, in float32 on their device.

    ``read``: returns a parameter in float32; replaced where the optimizer keeps a more exact copy of it
    (``training.distributed.full_state.use_fp32_copies``).

    After optimizer step s (1, 2, ...): average = d * average + (1 - d) * weights, d = min(decay, (1 + s) / (10 + s)).
    The smaller decay of the first steps removes the random initialization from short runs.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._model = model
        self.read: Callable[[nn.Parameter], Tensor] = lambda parameter: parameter.detach().float()
        self.values = {name: p.detach().float().clone() for name, p in self._trained().items()}

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self._model.named_parameters() if p.requires_grad}

    def decay_at(self, step: int) -> float:
        """Return the decay after optimizer step ``step``."""
        return min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the weights after optimizer step ``step``."""
        now = self._trained()
        weights = [self.read(now[name]) for name in self.values]
        torch._foreach_lerp_(list(self.values.values()), weights, 1.0 - self.decay_at(step))

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Load a saved average. Raises KeyError if a parameter is missing from it."""
        for name, value in self.values.items():
            value.copy_(values[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Replace the weights of the model by the average inside the context."""
        trained = self._trained()
        weights = {name: p.data for name, p in trained.items()}
        try:
            for name, p in trained.items():
                p.data = self.values[name].to(p.dtype)
            yield
        finally:
            for name, p in trained.items():
                p.data = weights[name]

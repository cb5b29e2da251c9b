"""Watching a run's loss and gradient, on the device: is it still learning, and if not, since which step?

Two things stop a run. A loss or a gradient that is not finite, at once. And an explosion: for ``LASTING`` steps on end
the loss (or the gradient's norm) is above ``factor`` times its running median over the last ``HISTORY`` steps, and
above all of its first ``EARLY`` values. A single outlier, which likelihood bounds of masked text have, is neither; nor
is a hard batch late in a run whose loss is close to zero.

All ranks see the same numbers, so they come to the same verdict in the same step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from models.device import to_device_async
from training.data.batch import CoBatch

HISTORY = 100
EARLY = 20
LASTING = 3

REASONS = (
    "the loss of step {step} is not finite",
    "the gradient of step {step} is not finite",
    "the loss has exploded: from step {step} on it is more than {factor:g} times its running median",
    "the gradient has exploded: from step {step} on its norm is more than {factor:g} times its running median",
)


@dataclass(frozen=True)
class Verdict:
    """``step`` is the first bad one; the weights before it are good."""

    step: int
    reason: str


class LossMonitor:
    """``factor``: what is called an explosion, None: nothing is. With ``scaled`` gradients (fp16) a norm that is not
    finite is the gradient scaler's business, which leaves the step out."""

    def __init__(self, factor: float | None, device: torch.device, scaled: bool = False) -> None:
        self.factor, self.scaled = factor, scaled
        self._loss, self._norm = _Series(device), _Series(device)
        self._bad = torch.full((2,), -1, dtype=torch.long, device=device)  # step, place in REASONS

    def saw(self, step: int, loss: Tensor, norm: Tensor | None) -> None:
        """The loss of a whole step, of all ranks, and its gradient's norm where it was measured (both 0-d)."""
        self._note(~loss.isfinite(), step, 0)
        if norm is not None and not self.scaled:
            self._note(~norm.isfinite(), step, 1)
        if self.factor is not None:
            self._note(self._loss.exceeds_for_n_steps(self.factor, loss), step - LASTING + 1, 2)
            if norm is not None:
                self._note(self._norm.exceeds_for_n_steps(self.factor, norm), step - LASTING + 1, 3)

    def _note(self, yes: Tensor, step: int, reason: int) -> None:
        found = to_device_async(torch.tensor([step, reason]), self._bad.device)
        self._bad = torch.where((self._bad[0] < 0) & yes, found, self._bad)

    def verdict(self) -> Verdict | None:
        """Waits for the device."""
        step, reason = self._bad.tolist()
        return None if step < 0 else Verdict(step, REASONS[reason].format(step=step, factor=self.factor))

    def state(self) -> dict[str, Any]:
        """For a checkpoint; plain numbers."""
        return {"loss": self._loss.state(), "norm": self._norm.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._loss.restore(state["loss"])
        self._norm.restore(state["norm"])


class _Series:
    """The last ``HISTORY`` values of a number, and how long it has been too large."""

    def __init__(self, device: torch.device) -> None:
        self._values = torch.zeros(HISTORY, dtype=torch.float64, device=device)
        self._early = torch.zeros((), dtype=torch.float64, device=device)  # largest of the first values
        self._streak = torch.zeros((), dtype=torch.long, device=device)
        self._seen = 0

    def exceeds_for_n_steps(self, factor: float, value: Tensor) -> Tensor:
        """Has this value, and those before it, been above for ``LASTING`` steps? (0-d bool)"""
        value = value.detach().double()
        if self._seen < EARLY:
            over = torch.zeros_like(value, dtype=torch.bool)
            self._early = torch.maximum(self._early, value)
        else:
            median = self._values[: min(self._seen, HISTORY)].median()
            over = (value > factor * median) & (value > self._early)
        self._streak = torch.where(over, self._streak + 1, 0)
        self._values[self._seen % HISTORY] = value
        self._seen += 1
        return self._streak >= LASTING

    def state(self) -> dict[str, Any]:
        values = self._values[: min(self._seen, HISTORY)].tolist()
        return {"seen": self._seen, "values": values, "early": float(self._early), "streak": int(self._streak)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._seen, values = int(state["seen"]), state["values"]
        self._values[: len(values)] = torch.tensor(values, dtype=torch.float64)
        self._early.fill_(state["early"])
        self._streak.fill_(state["streak"])


class RecentBatches:
    """Which samples the last steps were taken with, on this rank: kept until they are known to have been harmless."""

    def __init__(self) -> None:
        self._steps: deque[tuple[int, list[dict[str, Any]]]] = deque()

    def saw(self, step: int, batches: list[CoBatch]) -> None:
        self._steps.append((step, [_names(batch) for batch in batches]))

    def harmless_before(self, step: int) -> None:
        while self._steps and self._steps[0][0] < step:
            self._steps.popleft()

    def told(self, first: int, last: int) -> dict[str, Any]:
        """Identifiers of the samples of steps ``first`` to ``last``, for a file."""
        return {str(step): taken for step, taken in self._steps if first <= step <= last}


def _names(batch: CoBatch) -> dict[str, Any]:
    """What identifies the samples of a micro-batch: their numbers in the data sets, and what the robot was told."""
    names: dict[str, Any] = {}
    if batch.robot is not None:
        names["robot"] = batch.robot.indices.tolist()
        names["instructions"] = batch.robot.instructions
    if batch.text is not None:
        names["mmu"] = batch.text.indices.tolist()
    return names


def has_only_numbers(model: nn.Module) -> bool:
    """Are all weights that this process holds finite?"""
    held = [_held(p).detach() for p in model.parameters()]
    held = [tensor for tensor in held if tensor.numel() and tensor.is_floating_point()]
    if not held:
        return True
    largest = torch._foreach_norm(held, float("inf"))
    return bool(torch.stack([value.float() for value in largest]).isfinite().all())


def _held(parameter: Tensor) -> Tensor:
    """This process's part of a parameter that lies in parts on several."""
    if isinstance(parameter, DTensor):
        return parameter.to_local()
    part: Tensor = getattr(parameter, "ds_tensor", parameter)  # ZeRO-3
    return part

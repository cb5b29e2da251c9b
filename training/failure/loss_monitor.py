"""Monitor the loss and gradient norm of a run on the device.

A run stops at once if a loss or gradient is not finite. It also stops if the loss (or the gradient norm) explodes: for
``LASTING`` consecutive steps it is above ``factor`` times its running median over the last ``HISTORY`` steps, and above
all of its first ``EARLY`` values. A single outlier, which likelihood bounds of masked text have, does not stop a run;
nor does a hard batch late in a run whose loss is close to zero.

All ranks see the same numbers, so they stop in the same step.
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
"""Steps of the running median."""
EARLY = 20
"""First steps, whose largest value an explosion has to exceed."""
LASTING = 3
"""Consecutive steps above the threshold that make an explosion."""

REASONS = (
    "the loss of step {step} is not finite",
    "the gradient of step {step} is not finite",
    "the loss has exploded: from step {step} on it is more than {factor:g} times its running median",
    "the gradient has exploded: from step {step} on its norm is more than {factor:g} times its running median",
)


@dataclass(frozen=True)
class Failure:
    """``step`` is the first bad step; the weights before it are good."""

    step: int
    reason: str


class LossMonitor:
    """Finds the first bad step.

    ``factor``: threshold of an explosion relative to the running median; None disables it. ``scaled``: gradients are
    scaled (fp16), and the gradient scaler skips steps whose norm is not finite.
    """

    def __init__(self, factor: float | None, device: torch.device, scaled: bool = False) -> None:
        self.factor, self.scaled = factor, scaled
        self._loss, self._norm = _Series(device), _Series(device)
        self._bad = torch.full((2,), -1, dtype=torch.long, device=device)  # step, index in REASONS

    def update(self, step: int, loss: Tensor, norm: Tensor | None) -> None:
        """Add the loss of a step over all ranks, and its gradient norm if it was measured (both 0-d)."""
        self._record(~loss.isfinite(), step, 0)
        if norm is not None and not self.scaled:
            self._record(~norm.isfinite(), step, 1)
        if self.factor is not None:
            self._record(self._loss.exceeds_for_n_steps(self.factor, loss), step - LASTING + 1, 2)
            if norm is not None:
                self._record(self._norm.exceeds_for_n_steps(self.factor, norm), step - LASTING + 1, 3)

    def _record(self, bad: Tensor, step: int, reason: int) -> None:
        found = to_device_async(torch.tensor([step, reason]), self._bad.device)
        self._bad = torch.where((self._bad[0] < 0) & bad, found, self._bad)

    def failure(self) -> Failure | None:
        """Return the first bad step, None if there is none. Waits for the device."""
        step, reason = self._bad.tolist()
        return None if step < 0 else Failure(step, REASONS[reason].format(step=step, factor=self.factor))

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint, as JSON values."""
        return {"loss": self._loss.state(), "norm": self._norm.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore ``state`` of a checkpoint."""
        self._loss.restore(state["loss"])
        self._norm.restore(state["norm"])


class _Series:
    """The last ``HISTORY`` values of a number, and the number of consecutive values above the threshold."""

    def __init__(self, device: torch.device) -> None:
        self._values = torch.zeros(HISTORY, dtype=torch.float64, device=device)
        self._early = torch.zeros((), dtype=torch.float64, device=device)  # largest of the first values
        self._streak = torch.zeros((), dtype=torch.long, device=device)
        self._seen = 0

    def exceeds_for_n_steps(self, factor: float, value: Tensor) -> Tensor:
        """Add a value; return True (0-d bool) if the last ``LASTING`` values were all above the threshold."""
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


class RecentSamples:
    """The samples of the last steps on this rank, kept until the loss of these steps was checked."""

    def __init__(self) -> None:
        self._steps: deque[tuple[int, list[dict[str, Any]]]] = deque()

    def add(self, step: int, batches: list[CoBatch]) -> None:
        self._steps.append((step, [_sample_ids(batch) for batch in batches]))

    def drop_before(self, step: int) -> None:
        """Forget the steps before ``step``."""
        while self._steps and self._steps[0][0] < step:
            self._steps.popleft()

    def to_json(self, first: int, last: int) -> dict[str, Any]:
        """Return the samples of steps ``first`` to ``last``: step -> micro-batches."""
        return {str(step): samples for step, samples in self._steps if first <= step <= last}


def _sample_ids(batch: CoBatch) -> dict[str, Any]:
    """Return the indices of a micro-batch's samples in their data sets, and the instructions."""
    ids: dict[str, Any] = {}
    if batch.robot is not None:
        ids["robot"] = batch.robot.indices.tolist()
        ids["instructions"] = batch.robot.instructions
    if batch.text is not None:
        ids["mmu"] = batch.text.indices.tolist()
    return ids


def has_finite_weights(model: nn.Module) -> bool:
    """Return True if all weights on this process are finite."""
    local = [_local(p).detach() for p in model.parameters()]
    local = [tensor for tensor in local if tensor.numel() and tensor.is_floating_point()]
    if not local:
        return True
    largest = torch._foreach_norm(local, float("inf"))
    return bool(torch.stack([value.float() for value in largest]).isfinite().all())


def _local(parameter: Tensor) -> Tensor:
    """Return this process's shard of a parameter."""
    if isinstance(parameter, DTensor):
        return parameter.to_local()
    shard: Tensor = getattr(parameter, "ds_tensor", parameter)  # ZeRO-3
    return shard

"""Time, measured so that a busy machine does not decide the answer.

Variants that are compared run in turn, round by round, in the same process; a ratio is taken within each round, and
its median and quartiles are reported. On a CPU the clock is the process's own CPU time (a neighbour on the core costs
wall time, not CPU time); on a GPU it is the wall, after the device has finished.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

Clock = Literal["cpu", "wall"]


@dataclass(frozen=True)
class Lap:
    """Seconds of one run: of this process on all its threads, and on the wall."""

    cpu: float
    wall: float

    def of(self, clock: Clock) -> float:
        return self.cpu if clock == "cpu" else self.wall


@dataclass(frozen=True)
class Spread:
    """A median, the quartiles around it, and how many values they are of."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, len(values))

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.low:.3g}, {self.high:.3g}]"


def clock_of(device: torch.device) -> Clock:
    """Which time counts there."""
    return "cpu" if device.type == "cpu" else "wall"


def finish(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def lap(run: Callable[[], object], device: torch.device) -> Lap:
    """Time of one run."""
    finish(device)
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    finish(device)
    return Lap(time.process_time() - cpu, time.perf_counter() - wall)


def alternate(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    warmup: int = 1,
    tick: Callable[[], object] | None = None,
) -> dict[str, list[Lap]]:
    """Every variant once a round, the order turned around from round to round; ``warmup`` runs of each come before.

    ``tick`` is called after every measured run.
    """
    for run in variants.values():
        for _ in range(warmup):
            run()
    laps: dict[str, list[Lap]] = {name: [] for name in variants}
    for number in range(rounds):
        names = list(variants) if number % 2 == 0 else list(reversed(list(variants)))
        for name in names:
            laps[name].append(lap(variants[name], device))
            if tick is not None:
                tick()
    return laps


def ratio(slow: Sequence[Lap], fast: Sequence[Lap], clock: Clock) -> Spread:
    """How many times longer ``slow`` takes: the spread of the rounds' ratios."""
    return Spread.of([a.of(clock) / b.of(clock) for a, b in zip(slow, fast, strict=True)])

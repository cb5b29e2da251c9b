"""Time variants so that other load on the machine does not decide the result.

Variants alternate, round by round, in the same process; a ratio is taken within each round, and its median and
quartiles are reported. On a CPU the clock is the CPU time of the process (load on the core costs wall time, not CPU
time); on a GPU it is wall time, after the device has finished.

A floor is the least time that arithmetic could take: counted operations divided by the machine's rate for a product of
matrices, which is measured in the same rounds. Only matrix products, convolutions and attention are counted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from common.command import progress_bar

Clock = Literal["cpu", "wall"]
PRODUCT = "matrix product"
"""Name of the variant that floors are computed from."""


@dataclass(frozen=True)
class Lap:
    """Seconds of one run: CPU time of this process on all its threads, and wall time."""

    cpu: float
    wall: float

    def of(self, clock: Clock) -> float:
        return self.cpu if clock == "cpu" else self.wall


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of ``count`` values."""

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


@dataclass(frozen=True)
class Product:
    """The product of two square matrices, the fastest work of a device."""

    device: torch.device
    dtype: torch.dtype = torch.float32

    @property
    def side(self) -> int:
        return 1024 if self.device.type == "cpu" else 8192

    @property
    def operations(self) -> int:
        return 2 * self.side**3

    def prepare(self) -> Callable[[], object]:
        """Return the product as a function to be timed."""
        left, right = (torch.randn(self.side, self.side, device=self.device, dtype=self.dtype) for _ in range(2))
        return lambda: left @ right


@dataclass(frozen=True)
class Timings:
    """Times of all rounds, by variant. Methods return spreads over the rounds; ``clock`` is the default clock."""

    laps: Mapping[str, Sequence[Lap]]
    clock: Clock

    def values(self, name: str, clock: Clock | None = None) -> list[float]:
        """Return the seconds of each round."""
        return [lap.of(clock or self.clock) for lap in self.laps[name]]

    def seconds(self, name: str) -> Spread:
        return Spread.of(self.values(name))

    def rate(self, name: str, amount: float, clock: Clock | None = None) -> Spread:
        """Return ``amount`` (of operations, samples, tokens) per second."""
        return Spread.of([amount / seconds for seconds in self.values(name, clock)])

    def ratio(self, slow: str, fast: str, scale: float = 1.0) -> Spread:
        """Return how many times longer ``slow`` takes than ``fast``, times ``scale``."""
        return Spread.of([scale * a / b for a, b in zip(self.values(slow), self.values(fast), strict=True)])

    def times_floor(self, name: str, operations: float, product: Product) -> Spread:
        """Return how many times longer ``name`` takes than ``operations`` at the rate of ``product`` (PRODUCT)."""
        return self.ratio(name, PRODUCT, product.operations / operations)


def counted(run: Callable[[], object]) -> int:
    """Return the floating point operations of the matrix products, convolutions and attention in ``run``.

    A multiply-add is two operations. On the meta device nothing is computed.
    """
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def clock_of(device: torch.device) -> Clock:
    """Return the clock that is used for a device."""
    return "cpu" if device.type == "cpu" else "wall"


def lap(run: Callable[[], object], device: torch.device) -> Lap:
    """Time one run, until the device has finished."""
    _synchronize(device)
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    _synchronize(device)
    return Lap(time.process_time() - cpu, time.perf_counter() - wall)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternate(
    variants: Mapping[str, Callable[[], object]], rounds: int, device: torch.device, warmup: int = 1, name: str = ""
) -> Timings:
    """Time every variant once a round, in reversed order every other round, after ``warmup`` runs of each.

    ``name``: label of the progress bar; without it no bar is shown.
    """
    for run in variants.values():
        for _ in range(warmup):
            run()
    laps: dict[str, list[Lap]] = {variant: [] for variant in variants}
    with progress_bar(total=rounds * len(variants), desc=name, unit="run", disable=not name) as bar:
        for number in range(rounds):
            for variant in list(variants) if number % 2 == 0 else list(reversed(list(variants))):
                laps[variant].append(lap(variants[variant], device))
                bar.update()
    return Timings(laps, clock_of(device))

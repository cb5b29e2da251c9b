"""The least time that arithmetic could take: counted operations over what this machine does with matrices, measured in
the same rounds as what is compared with it.

Only matrix products, convolutions and attention are counted; a forward over one word is bounded by reading the weights
instead, which has a rate of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import Clock, Lap, Spread

SIDE = {"cpu": 1024, "cuda": 8192}
STREAM_BYTES = 256 << 20
"""Of the matrix that is read once for a rate of memory: larger than any cache."""


def counted(run: Callable[[], object]) -> int:
    """Floating point operations (a multiply-add is two) of the matrix products, convolutions and attention in ``run``;
    on the meta device nothing is computed."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class Product:
    """One product of two square matrices: what the device can do at best."""

    device: torch.device
    dtype: torch.dtype = torch.float32

    @property
    def side(self) -> int:
        return SIDE[self.device.type]

    @property
    def operations(self) -> int:
        return 2 * self.side**3

    def ready(self) -> Callable[[], object]:
        """The product, to be timed."""
        left, right = (torch.randn(self.side, self.side, device=self.device, dtype=self.dtype) for _ in range(2))
        return lambda: left @ right


@dataclass(frozen=True)
class Reading:
    """One product of a large matrix with a vector: how fast weights can be read."""

    device: torch.device
    dtype: torch.dtype = torch.float32

    def ready(self) -> Callable[[], object]:
        columns = 4096
        rows = STREAM_BYTES // columns // torch.finfo(self.dtype).bits * 8
        matrix = torch.ones(rows, columns, device=self.device, dtype=self.dtype)
        vector = torch.ones(columns, device=self.device, dtype=self.dtype)
        return lambda: matrix @ vector


def rate(laps: Sequence[Lap], amount: float, clock: Clock) -> Spread:
    """``amount`` (operations or bytes) per second."""
    return Spread.of([amount / one.of(clock) for one in laps])


def times_floor(
    work: Sequence[Lap], product: Sequence[Lap], operations: float, product_operations: float, clock: Clock
) -> Spread:
    """How many times longer ``work`` of so many counted operations takes than at the rate of the product; the spread
    of the rounds' ratios."""
    return Spread.of(
        [a.of(clock) / (operations / product_operations * b.of(clock)) for a, b in zip(work, product, strict=True)]
    )

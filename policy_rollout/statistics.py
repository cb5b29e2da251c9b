"""Intervals for the two figures a robot benchmark reports: a success rate and a mean.

A rate without an interval carries no claim, so every table of this package prints one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A point estimate with its confidence interval, all in the unit of the data."""

    point: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        """`f"{interval:.2f}"` reads `0.77 [0.72, 0.82]`."""
        return f"{self.point:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Wilson score interval (1927) of a success rate.

    Unlike the normal approximation it is right at 0 and at `trials` successes, where robot results often lie.
    No trials: the rate is unknown, the interval is [0, 1] and the point is not a number.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must lie in 0..trials, got {successes} of {trials}")
    if trials == 0:
        return Interval(float("nan"), 0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / trials
    shrink = 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / shrink
    half = z / shrink * (rate * (1 - rate) / trials + z * z / (4 * trials * trials)) ** 0.5
    # The two ends are 0 and 1 exactly where they should be, not 1e-17 beside them.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return Interval(rate, low, high)


def bootstrap_mean(
    values: Sequence[float] | np.ndarray, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of a mean (for a chain length, say, which is not a rate).

    Deterministic for a seed. One value or none has no spread to resample: the interval collapses to the point.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1:
        raise ValueError(f"values must be one-dimensional, got shape {data.shape}")
    if data.size == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    # In parts of at most about 4 million draws, so that 1000 chains x 10000 resamples stay small in memory.
    part = max(1, 4_000_000 // data.size)
    means = np.concatenate(
        [
            data[rng.integers(0, data.size, size=(min(part, resamples - done), data.size))].mean(axis=1)
            for done in range(0, resamples, part)
        ]
    )
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(float(data.mean()), float(low), float(high))

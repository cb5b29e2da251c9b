"""Confidence intervals of success rates and means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
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


def wilson(successes: float, trials: float, confidence: float = 0.95) -> Interval:
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


def clustered_rate(successes: np.ndarray, trials: np.ndarray, confidence: float = 0.95) -> Interval:
    """Return Wilson's interval of a rate whose trials are correlated within groups (questions about one image).

    The effective number of trials follows from the variance between groups (Kish's design effect). If all trials
    succeed or all fail, a group counts as one trial. Groups without a trial are ignored. Unlike a bootstrap over groups
    it is never without width.
    """
    done, tried = (np.asarray(counts, dtype=np.float64)[np.asarray(trials) > 0] for counts in (successes, trials))
    groups, total = len(tried), float(tried.sum())
    if groups == 0:
        return wilson(0, 0, confidence)
    if total == groups:
        return wilson(float(done.sum()), total, confidence)
    rate = float(done.sum()) / total
    worth = float(groups)
    if 0 < rate < 1 and groups > 1:
        variance = groups / (groups - 1) * float(((done - rate * tried) ** 2).sum()) / total**2
        worth = min(rate * (1 - rate) / variance, total) if variance > 0 else total
    # Exactly 0 or all of them where that is so: multiplying back could miss it by a rounding.
    return wilson(worth if rate == 1 else rate * worth, worth, confidence)


def average_length(completed: Sequence[float] | np.ndarray, length: int) -> Interval:
    """Mean number of tasks done in a row, of chains [chains] of ``length`` tasks, with its bootstrap interval.

    Where all chains ended alike there is nothing to resample; then the interval is the sum of Wilson's for at least
    1, 2, ... tasks, which is wider than need be and never without width.
    """
    done = np.asarray(completed, dtype=np.float64)
    if len(done) == 0 or (done != done[0]).any():
        return bootstrap_mean(done)
    rates = [wilson(int((done >= least).sum()), len(done)) for least in range(1, length + 1)]
    return Interval(float(done[0]), sum(rate.low for rate in rates), sum(rate.high for rate in rates))


def bootstrap_mean(
    values: Sequence[float] | np.ndarray, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Return the percentile bootstrap interval of a mean, such as a chain length.

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


def bootstrap_sums(
    counts: np.ndarray,
    figure: Callable[[np.ndarray], np.ndarray],
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Interval of a figure of summed counts, such as a precision: `counts` [items, k]; `figure` [n, k] -> [n]."""
    data = np.asarray(counts, dtype=np.float64)
    items = data.shape[0]
    part = max(1, 4_000_000 // items)
    drawn = [
        figure(times_drawn(items, min(part, resamples - start), seed, start) @ data)
        for start in range(0, resamples, part)
    ]
    low, high = np.quantile(np.concatenate(drawn), [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(float(figure(data.sum(axis=0, keepdims=True))[0]), float(low), float(high))


def rate_difference(first: tuple[int, int], second: tuple[int, int], confidence: float = 0.95) -> Interval:
    """Return Newcombe's interval (1998, method 10) of `first` minus `second`, each (successes, trials).

    It is valid for few trials, unlike a bootstrap. Without trials on one side it is [-1, 1], and the point is nan.
    """
    one, other = wilson(*first, confidence), wilson(*second, confidence)
    if first[1] == 0 or second[1] == 0:
        return Interval(float("nan"), -1.0, 1.0)
    apart = one.point - other.point
    below = ((one.point - one.low) ** 2 + (other.high - other.point) ** 2) ** 0.5
    above = ((one.high - one.point) ** 2 + (other.point - other.low) ** 2) ** 0.5
    return Interval(apart, apart - below, apart + above)


def rate_difference_p(first: tuple[int, int], second: tuple[int, int]) -> float:
    """Return the p-value of equal rates: 1 minus the highest confidence at which `rate_difference` excludes zero."""
    low, high = 0.0, 1.0  # zero lies outside the interval of confidence `low`, inside that of `high`
    for _ in range(40):
        middle = (low + high) / 2
        interval = rate_difference(first, second, middle)
        outside = interval.low > 0 or interval.high < 0
        low, high = (middle, high) if outside else (low, middle)
    return 1 - low


@lru_cache(maxsize=8)
def times_drawn(items: int, count: int, seed: int, start: int) -> np.ndarray:
    """Return [count, items]: how often each item is drawn in samples of that size with replacement.

    Cached, because a report needs many figures over the same items.
    """
    rng = np.random.default_rng([seed, start])
    return rng.multinomial(items, np.full(items, 1 / items), size=count).astype(np.float64)

"""Confidence intervals of success rates and means, and comparisons of results on the same items."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from statistics import NormalDist
from typing import Any

import numpy as np

from common.tables import interval_json


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
        figure(_times_drawn(items, min(part, resamples - start), seed, start) @ data)
        for start in range(0, resamples, part)
    ]
    low, high = np.quantile(np.concatenate(drawn), [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(float(figure(data.sum(axis=0, keepdims=True))[0]), float(low), float(high))


@dataclass(frozen=True)
class Difference:
    """How much higher one of two is than the other on the same items, and how sure its sign is.

    `probability`: share of resamples in which it is above zero (ties count half).
    """

    interval: Interval
    probability: float

    @property
    def clear(self) -> bool:
        """Return True if the interval excludes zero."""
        return bool(self.interval.low > 0 or self.interval.high < 0)


def bootstrap_runs(
    values: np.ndarray,
    weights: np.ndarray | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Interval of the weighted mean of `values` [runs, items]: what would other items, and other runs, have given?

    Items are drawn again with replacement, the same ones for every run, and so are runs where there are several; with
    one run (or `values` [items]) the interval says nothing about another run. `weights` [items], such as tokens.
    Deterministic for a seed.
    """
    data = np.atleast_2d(np.asarray(values, dtype=np.float64))
    drawn = _resampled(data, weights, resamples, seed)
    low, high = np.quantile(drawn, [0.5 - confidence / 2, 0.5 + confidence / 2])
    heavy = np.ones(data.shape[1]) if weights is None else np.asarray(weights, dtype=np.float64)
    return Interval(float(data.mean(axis=0) @ heavy / heavy.sum()), float(low), float(high))


def paired_difference(
    first: np.ndarray,
    second: np.ndarray,
    weights: np.ndarray | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """`first` minus `second`, both [runs, items] (or [items]) over the same items, as in `bootstrap_runs`.

    Pairing takes out what makes an item hard for both. With as many runs on both sides run r is paired with run r (they
    share a seed); else each side's runs are drawn for themselves. Raises `ValueError` where the items differ.
    """
    one, other = (np.atleast_2d(np.asarray(values, dtype=np.float64)) for values in (first, second))
    if one.shape[1] != other.shape[1]:
        raise ValueError(f"only the same items can be compared, got {np.shape(first)} and {np.shape(second)}")
    if one.shape == other.shape:
        drawn = _resampled(one - other, weights, resamples, seed)
    else:
        drawn = _resampled(one, weights, resamples, seed) - _resampled(other, weights, resamples, seed, runs_of=2)
    heavy = np.ones(one.shape[1]) if weights is None else np.asarray(weights, dtype=np.float64)
    point = float((one.mean(axis=0) - other.mean(axis=0)) @ heavy / heavy.sum())
    low, high = np.quantile(drawn, [0.5 - confidence / 2, 0.5 + confidence / 2])
    probability = float((drawn > 0).mean() + 0.5 * (drawn == 0).mean())
    return Difference(Interval(point, float(low), float(high)), probability)


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


def _resampled(data: np.ndarray, weights: np.ndarray | None, resamples: int, seed: int, runs_of: int = 1) -> np.ndarray:
    """Return [resamples] weighted means of `data` [runs, items]; runs and items are drawn with replacement.

    `runs_of`: stream of the draws of runs; the items are drawn alike in every stream.
    """
    runs, items = data.shape
    if runs == 0 or items == 0:
        raise ValueError("there is nothing to resample")
    heavy = np.ones(items) if weights is None else np.asarray(weights, dtype=np.float64)
    means = []
    part = max(1, 4_000_000 // items)
    for start in range(0, resamples, part):
        count = min(part, resamples - start)
        times = _times_drawn(items, count, seed, start)  # [count, items]
        of_runs = _times_drawn(runs, count, seed, start, runs_of) / runs  # [count, runs]
        means.append((of_runs * (times @ (data * heavy).T)).sum(axis=1) / (times @ heavy))
    return np.concatenate(means)


@lru_cache(maxsize=8)
def _times_drawn(items: int, count: int, seed: int, start: int, of: int = 0) -> np.ndarray:
    """Return [count, items]: how often each item is drawn in samples of that size with replacement.

    Cached, because a report needs many figures over the same items. `of`: stream of independent draws.
    """
    rng = np.random.default_rng([seed, start, of] if of else [seed, start])
    return rng.multinomial(items, np.full(items, 1 / items), size=count).astype(np.float64)


# ------------------------------------------------------------------------------------------------------------- pairs
FEWEST_APART = 6
"""Smallest number of differing items for a clear result: with 5 a sign test is not significant at 95 % (2 / 2^5 >
0.05)."""


@dataclass(frozen=True)
class Pair:
    """Difference ``first`` minus ``second`` on the same items; higher is better.

    ``items``: number of items; ``apart``: those on which the two differ.
    """

    first: str
    second: str
    difference: Difference
    items: int
    apart: int

    @property
    def clear(self) -> bool:
        return self.difference.clear and self.apart >= FEWEST_APART

    @property
    def better(self) -> str | None:
        if not self.clear:
            return None
        return self.first if self.difference.interval.point > 0 else self.second

    def needed(self) -> int | None:
        """Return about how many items would show a difference of this size; None for no difference."""
        interval = self.difference.interval
        half = (interval.high - interval.low) / 2
        if interval.point == 0 or half == 0:
            return None
        return max(self.items + 1, round(self.items * (half / interval.point) ** 2))

    def as_json(self) -> dict[str, Any]:
        return {
            **interval_json(self.difference.interval),
            "probability_first_better": self.difference.probability,
            "clear": self.clear,
        }


def pairs_of(values: Mapping[str, np.ndarray], weights: np.ndarray | None = None) -> list[Pair]:
    """Return every pair of the names.

    Args:
        values: Name -> [runs, items] of the same items; higher is better.
        weights: Weight of each item [items]; None for equal weights.
    """
    found = []
    for first, second in combinations(values, 2):
        found.append(pair_of(first, second, np.atleast_2d(values[first]), np.atleast_2d(values[second]), weights))
    return found


def pair_of(first: str, second: str, one: np.ndarray, other: np.ndarray, weights: np.ndarray | None = None) -> Pair:
    """Return the pair of two results ``one`` and ``other`` [runs, items] on the same items."""
    apart = int((one.mean(axis=0) != other.mean(axis=0)).sum())
    return Pair(first, second, paired_difference(one, other, weights), one.shape[1], apart)

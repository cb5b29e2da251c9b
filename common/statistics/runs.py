"""Means over runs (seeds) and items, and differences of two results on the same items.

One run: the items are resampled (percentile bootstrap), so the interval covers other items and no other training run.
Several runs: runs and items are both samples. A bootstrap of a few runs is too narrow if the runs differ and too wide
if they do not (docs/log.md, 2026-11-30). The interval is therefore Student's, with the variance of a mean over crossed
random factors and Satterthwaite's degrees of freedom (1946).

Shape letters: R runs, I items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.statistics.intervals import Interval, times_drawn

SMALLEST_P = 2e-4
"""Smallest p-value: 10,000 resamples prove no smaller one."""


@dataclass(frozen=True)
class Difference:
    """How much higher one of two is than the other on the same items, and how certain its sign is.

    `probability`: share of resamples in which it is above zero (ties count half); of several runs the probability by
    Student's distribution.
    """

    interval: Interval
    probability: float

    @property
    def clear(self) -> bool:
        """Return True if the interval excludes zero."""
        return bool(self.interval.low > 0 or self.interval.high < 0)

    @property
    def p_value(self) -> float:
        """Return the two-sided p-value of no difference; at most 0.05 if the 95 % interval excludes zero."""
        return max(2 * min(self.probability, 1 - self.probability), SMALLEST_P)

    def within(self, margin: float) -> bool:
        """Return True if the interval lies inside +-`margin`.

        These are two one-sided tests (Schuirmann 1987), each at 2.5 % for an interval of 95 %.
        """
        return bool(-margin < self.interval.low and self.interval.high < margin)


def mean_of_runs(
    values: np.ndarray,
    weights: np.ndarray | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    limits: tuple[float, float] = (-np.inf, np.inf),
) -> Interval:
    """Return the interval of the weighted mean of `values` [R, I] or [I] over other items and, if R > 1, other runs.

    `weights` [I], such as tokens; None: equal. `limits`: lowest and highest possible mean, such as (0, 1) for a rate,
    to which the interval is cut. Raises ``ValueError`` without items. Deterministic for a seed.
    """
    data = _table(values)
    share = _shares(data, weights)
    point = float(data.mean(axis=0) @ share)
    if len(data) == 1:
        drawn = _resampled(data[0], share, resamples, seed)
        low, high = np.quantile(drawn, [0.5 - confidence / 2, 0.5 + confidence / 2])
    else:
        low, high = _student(point, *_standard_error([data], data.mean(axis=0), share), confidence)[:2]
    return Interval(point, *(float(np.clip(end, *limits)) for end in (low, high)))


def paired_difference(
    first: np.ndarray,
    second: np.ndarray,
    weights: np.ndarray | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Return `first` minus `second`, both [R, I] (or [I]) over the same items, as in `mean_of_runs`.

    Pairing removes what makes an item hard for both. With as many runs on both sides run r is paired with run r (they
    share a seed); else the runs are independent, with one variance between runs for both sides. Raises `ValueError` if
    the items differ.
    """
    one, other = _table(first), _table(second)
    if one.shape[1] != other.shape[1]:
        raise ValueError(f"only the same items can be compared, got {np.shape(first)} and {np.shape(second)}")
    share = _shares(one, weights)
    apart = one.mean(axis=0) - other.mean(axis=0)  # [I]
    point = float(apart @ share)
    if len(one) == len(other) == 1:
        drawn = _resampled(apart, share, resamples, seed)
        low, high = np.quantile(drawn, [0.5 - confidence / 2, 0.5 + confidence / 2])
        probability = float((drawn > 0).mean() + 0.5 * (drawn == 0).mean())
    else:
        groups = [one - other] if len(one) == len(other) else [one, other]
        low, high, probability = _student(point, *_standard_error(groups, apart, share), confidence)
    return Difference(Interval(point, float(low), float(high)), probability)


def _table(values: np.ndarray) -> np.ndarray:
    data = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if data.size == 0:
        raise ValueError("there is nothing to resample")
    return data


def _shares(data: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Return the weights of the items [I] with a sum of 1."""
    given = np.ones(data.shape[1]) if weights is None else np.asarray(weights, dtype=np.float64)
    shares: np.ndarray = given / given.sum()
    return shares


def _resampled(data: np.ndarray, weights: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Return [resamples] weighted means of `data` [I]; items are drawn with replacement."""
    means = []
    part = max(1, 4_000_000 // len(data))
    for start in range(0, resamples, part):
        times = times_drawn(len(data), min(part, resamples - start), seed, start)
        means.append(times @ (data * weights) / (times @ weights))
    return np.concatenate(means)


def _standard_error(groups: Sequence[np.ndarray], columns: np.ndarray, share: np.ndarray) -> tuple[float, float]:
    """Return (standard error, degrees of freedom) of ``columns @ share``.

    ``groups``: tables [R, I] of independent runs; ``columns`` [I]: the mean of the only one over its runs, or the
    difference of the means of two; ``share``: weights of the items [I] with a sum of 1.
    """
    items, freedom = len(share), sum(len(group) - 1 for group in groups)
    bessel = items / max(items - 1, 1)
    # 1. Between items: sigma_items^2 + sigma_rest^2 / R, each times the sum of the squared weights.
    of_items = bessel * float((share**2 * (columns - columns @ share) ** 2).sum())
    # 2. Between runs, and 3. what is left in a cell; pooled over the groups.
    per_run = sum(1 / len(group) for group in groups)
    of_runs = rest = 0.0
    for group in groups:
        means = group @ share  # [R]
        apart = means - means.mean()
        of_runs += per_run * float((apart**2).sum()) / freedom
        cells = group - group.mean(axis=0) - apart[:, None]
        cells -= (cells @ share)[:, None]
        rest += per_run * bessel * float((share**2 * cells**2).sum()) / freedom
    # 4. Both 1 and 2 contain 3.
    variance = max(of_items + of_runs - rest, of_items, of_runs)
    spread = of_items**2 / max(items - 1, 1) + of_runs**2 / freedom + rest**2 / (freedom * max(items - 1, 1))
    return variance**0.5, variance**2 / spread if spread > 0 else float(freedom)


def _student(point: float, error: float, freedom: float, confidence: float) -> tuple[float, float, float]:
    """Return (low, high, probability of being above zero) by Student's distribution."""
    from scipy.special import stdtr, stdtrit  # imported here: single runs, and the start of commands, need no scipy

    if error == 0:
        return point, point, 0.5 + 0.5 * float(np.sign(point))
    half = float(stdtrit(freedom, 0.5 + confidence / 2)) * error
    return point - half, point + half, float(stdtr(freedom, point / error))

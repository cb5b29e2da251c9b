"""Pairwise comparisons on the same items: p-values over a whole table, equivalence, and the control arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from common.statistics.intervals import wilson
from common.statistics.runs import Difference, paired_difference
from common.tables import interval_json

LEVEL = 0.05
"""Probability of at least one false verdict in a table of comparisons."""
FEWEST_APART = 6
"""Smallest number of differing items for a clear result: with 5 a sign test is not significant at 95 % (2 / 2^5 >
0.05)."""


@dataclass(frozen=True)
class Pair:
    """Difference ``first`` minus ``second`` on the same items; higher is better.

    ``items``: number of items; ``apart``: those on which the two differ; ``value_range``: largest minus smallest value
    of both; ``adjusted``: p-value that is corrected for the other comparisons of a table (``with_holm``), None for a
    single comparison.
    """

    first: str
    second: str
    difference: Difference
    items: int
    apart: int
    value_range: float = float("inf")
    adjusted: float | None = None

    @property
    def p_value(self) -> float:
        """Return the p-value: at least that of a sign test in which all differing items agree."""
        return min(max(self.difference.p_value, 2.0 ** (1 - self.apart)), 1.0)

    @property
    def clear(self) -> bool:
        if self.adjusted is not None and self.adjusted > LEVEL:
            return False
        return self.difference.clear and self.apart >= FEWEST_APART

    @property
    def better(self) -> str | None:
        if not self.clear:
            return None
        return self.first if self.difference.interval.point > 0 else self.second

    def equivalent(self, margin: float) -> bool:
        """Return True if the difference lies inside +-``margin``, which has to be chosen before the data are known.

        Of a few differing items an interval cannot be resampled: then the difference is at most the highest share of
        differing items (Wilson) times the range of the values.
        """
        if not self.difference.within(margin):
            return False
        return self.apart >= FEWEST_APART or wilson(self.apart, self.items).high * self.value_range < margin

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
            "p_value": self.p_value,
            **({} if self.adjusted is None else {"p_holm": self.adjusted}),
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
    value_range = max(float(one.max()), float(other.max())) - min(float(one.min()), float(other.min()))
    return Pair(first, second, paired_difference(one, other, weights), one.shape[1], apart, value_range)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values (1979), in the given order.

    The k-th smallest of m is multiplied by m - k + 1, and none is smaller than one before it. If every comparison with
    an adjusted p-value of at most 0.05 counts as a difference, the probability of any false one is at most 0.05,
    however the comparisons depend on each other.
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(order))
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.maximum.accumulate(np.asarray(p_values, dtype=np.float64)[order] * factors)
    return [float(value) for value in np.minimum(adjusted, 1.0)]


def with_holm(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the comparisons of one table with their adjusted p-values."""
    adjusted = holm([pair.p_value for pair in pairs])
    return [replace(pair, adjusted=value) for pair, value in zip(pairs, adjusted, strict=True)]


@dataclass(frozen=True)
class Control:
    """Differences between runs that differ only in their seed: sizes that mean nothing.

    ``sizes``: absolute difference of every pair of runs; ``clear``: number of pairs that a comparison of these two runs
    alone would call different.
    """

    sizes: tuple[float, ...]
    clear: int

    @property
    def largest(self) -> float:
        return max(self.sizes)

    @property
    def median(self) -> float:
        return float(np.median(self.sizes))

    def __str__(self) -> str:
        count = len(self.sizes)
        return (
            f"another seed changes it by {self.median:.3g} (median of {count} pair{'s' * (count > 1)} of runs), at "
            f"most {self.largest:.3g}; items alone would call {self.clear} of {count} different"
        )


def control_of(values: Mapping[str, np.ndarray], weights: np.ndarray | None = None) -> Control | None:
    """Compare every two runs of one name (name -> [runs, items]); None if every name has a single run."""
    found = [
        pair
        for runs in values.values()
        for pair in pairs_of({str(number): run for number, run in enumerate(np.atleast_2d(runs))}, weights)
    ]
    if not found:
        return None
    return Control(tuple(abs(pair.difference.interval.point) for pair in found), sum(pair.clear for pair in found))

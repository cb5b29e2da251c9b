"""Two or more that answered the same items (chains, questions): which is better, if that can be told at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from common.tables import interval_json
from policy_rollout.intervals import Difference, paired_difference

FEWEST_APART = 6
"""With fewer items on which the two differ not even a sign test is sure at 95 % (2 / 2^5 > 0.05), whatever a bootstrap
of so few says."""


@dataclass(frozen=True)
class Pair:
    """``first`` minus ``second``; higher is better. ``items`` in all, ``apart`` of them different."""

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
        """About how many items would show a difference of this size; None where there is none."""
        interval = self.difference.interval
        half = (interval.high - interval.low) / 2
        if interval.point == 0 or half == 0:
            return None
        return max(self.items + 1, round(self.items * (half / interval.point) ** 2))

    def as_json(self) -> dict[str, Any]:
        told = interval_json(self.difference.interval)
        return {**told, "probability_first_better": self.difference.probability, "clear": self.clear}


def pairs_of(values: Mapping[str, np.ndarray], weights: np.ndarray | None = None) -> list[Pair]:
    """Every pair of the names. ``values``: name -> [runs, items] of the same items; higher is better. ``weights``
    [items]: how much each counts."""
    found = []
    for first, second in combinations(values, 2):
        found.append(pair_of(first, second, np.atleast_2d(values[first]), np.atleast_2d(values[second]), weights))
    return found


def pair_of(first: str, second: str, one: np.ndarray, other: np.ndarray, weights: np.ndarray | None = None) -> Pair:
    """``one`` and ``other`` [runs, items]: what the two got at the same items."""
    apart = int((one.mean(axis=0) != other.mean(axis=0)).sum())
    return Pair(first, second, paired_difference(one, other, weights), one.shape[1], apart)

"""A test that may be read after every item and stopped at any time: bets on paired differences.

For a hypothetical mean m a gambler with wealth 1 bets a fraction of it on every difference x:

    K_n(m) = mean over bets l of  prod_i (1 + l (x_i - m))

If m is the mean, K_n(m) is a nonnegative martingale, so P(K_n(m) >= 1 / alpha at any n) <= alpha (Ville 1939). The m
that were never refuted are a confidence sequence: it covers the mean at all times at once with probability 1 - alpha
(Waudby-Smith and Ramdas, arXiv 2010.09686). The bets are a uniform mixture over all that cannot go bankrupt; of success
and failure it is the Beta mixture of a sign test. STEP (arXiv 2503.10966) and SAVI (arXiv 2603.13616) describe such
tests for robot policies.

Shape letters: M hypothetical means, J bets.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.statistics.intervals import Interval

NUM_MEANS = 201
"""Hypothetical means on a grid; odd, so that zero is one of them."""
NUM_BETS = 40
"""Bets in each direction."""
MAX_LOG = 700.0
"""Largest logarithm of a reported wealth; its exponential is a float."""


@dataclass(frozen=True)
class SequentialResult:
    """State of the test after ``items`` items.

    ``interval``: confidence sequence of the mean difference, valid at every time; ``e_value``: wealth against no
    difference now (1 / e_value bounds a p-value); ``sign``: 1 if the first is higher, -1 if the second is, 0 if that is
    open; ``equivalent``: the interval lies inside the margin; ``decided_at``: number of items after which one of these
    was known, None if both are open.
    """

    items: int
    interval: Interval
    e_value: float
    sign: int = 0
    equivalent: bool = False
    decided_at: int | None = None


@dataclass
class SequentialTest:
    """Anytime-valid test of paired differences in [-``bound``, ``bound``].

    The items have to come in an order that does not depend on their outcomes, such as that of their indices. The null
    hypothesis is that every difference has mean zero, given those before it.

    Args:
        bound: Largest possible absolute difference: 1 for success, the length of a chain for tasks in a row.
        confidence: Probability that the interval covers the mean at all times.
        margin: Stop too if the difference is certainly smaller than this; None: only for a difference.
    """

    bound: float = 1.0
    confidence: float = 0.95
    margin: float | None = None

    def __post_init__(self) -> None:
        if not self.bound > 0:
            raise ValueError(f"bound is {self.bound}; it must be above 0")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence is {self.confidence}; it must be between 0 and 1")
        if self.margin is not None and not self.margin > 0:
            raise ValueError(f"margin is {self.margin}; it must be above 0")
        steps = np.arange(-(NUM_MEANS // 2), NUM_MEANS // 2 + 1)
        self._step = 2 / (NUM_MEANS + 1)
        self._means = steps * self._step  # [M], in units of the bound, without its ends
        fractions = (np.arange(NUM_BETS) + 0.5) / NUM_BETS
        up, down = fractions / (1 + self._means[:, None]), -fractions / (1 - self._means[:, None])
        self._bets: NDArray[np.float64] = np.concatenate([up, down], axis=1)  # [M, J]; 1 + bet * (x - m) > 0
        self._log_wealth = np.zeros_like(self._bets)
        self._possible = np.ones(NUM_MEANS, dtype=bool)
        self._total = 0.0
        self.result = SequentialResult(0, Interval(float("nan"), -self.bound, self.bound), 1.0)

    def add(self, difference: float) -> SequentialResult:
        """Add the difference of the next item and return the state. Raises ``ValueError`` beyond the bound."""
        if not abs(difference) <= self.bound:
            raise ValueError(f"a difference of {difference} is outside +-{self.bound}")
        self._log_wealth += np.log1p(self._bets * (difference / self.bound - self._means[:, None]))
        highest = self._log_wealth.max(axis=1)
        log_wealth = highest + np.log(np.exp(self._log_wealth - highest[:, None]).mean(axis=1))  # [M], log K_n(m)
        possible = self._possible & (log_wealth < -np.log(1 - self.confidence))
        if possible.any():  # none is left only if the mean itself changes
            self._possible = possible
        self._total += difference
        self.result = self._state(self.result, float(np.exp(min(log_wealth[NUM_MEANS // 2], MAX_LOG))))
        return self.result

    def add_all(self, differences: Iterable[float]) -> SequentialResult:
        """Add items up to the one that decides, and return the state."""
        for difference in differences:
            if self.add(difference).decided_at is not None:
                break
        return self.result

    def _state(self, before: SequentialResult, e_value: float) -> SequentialResult:
        items = before.items + 1
        kept = self._means[self._possible]
        sign = 0 if self._possible[NUM_MEANS // 2] else int(np.sign(kept[0] + kept[-1]))
        # A step of the grid wider, so that no mean between two of its points is lost; zero is such a point.
        low, high = (float(kept[0] - self._step) * self.bound, float(kept[-1] + self._step) * self.bound)
        equivalent = self.margin is not None and -self.margin < low and high < self.margin
        decided_at = before.decided_at or (items if sign or equivalent else None)
        return SequentialResult(items, Interval(self._total / items, low, high), e_value, sign, equivalent, decided_at)

"""The anytime-valid test: error level and coverage under reading after every item, and how soon it decides."""

from __future__ import annotations

import numpy as np
import pytest

from common.statistics import SequentialTest


def differences(rng: np.random.Generator, better: float, apart: float, items: int) -> list[float]:
    """Return paired differences of success: ``apart`` of the items differ, the first wins by ``better`` of all."""
    up, down = (apart + better) / 2, (apart - better) / 2
    return list(rng.choice([1.0, -1.0, 0.0], size=items, p=[up, down, 1 - apart]))


@pytest.mark.parametrize("apart", [0.1, 0.5, 1.0])
def test_equal_policies_are_told_apart_at_any_time_in_at_most_5_percent(apart: float):
    rng = np.random.default_rng(0)
    decided = sum(SequentialTest().add_all(differences(rng, 0, apart, 60)).sign != 0 for _ in range(100))
    assert decided / 100 <= 0.05 + 2 * (0.05 * 0.95 / 100) ** 0.5


def test_a_test_of_fixed_size_that_is_read_after_every_item_is_wrong_far_more_often():
    """The reason for the test: a sign test at 5 %, read after each of 100 items."""
    rng, wrong = np.random.default_rng(1), 0
    for _ in range(300):
        total = np.cumsum(differences(rng, 0, 1.0, 100))
        wrong += bool((np.abs(total[9:]) > 1.96 * np.sqrt(np.arange(10, 101))).any())
    assert wrong / 300 > 0.2


def test_the_confidence_sequence_covers_the_mean_at_every_time():
    rng, missed = np.random.default_rng(2), 0
    for _ in range(60):
        test = SequentialTest(bound=5)
        states = [test.add(x) for x in rng.choice([-5.0, 0.0, 1.0, 3.0], p=[0.1, 0.4, 0.3, 0.2], size=80)]
        missed += any(not state.interval.low <= 0.4 <= state.interval.high for state in states)
    assert missed / 60 <= 0.05 + 2 * (0.05 * 0.95 / 60) ** 0.5


def test_a_large_difference_is_known_soon_and_a_small_one_later():
    rng = np.random.default_rng(3)
    soon, later = (
        [SequentialTest().add_all(differences(rng, better, 0.4, 400)) for _ in range(30)] for better in (0.3, 0.15)
    )
    assert all(result.sign == 1 for result in soon)
    stopped = [np.mean([result.decided_at or 400 for result in results]) for results in (soon, later)]
    assert stopped[0] < 60 < stopped[1] < 250


def test_the_state_does_not_depend_on_the_order_and_follows_the_sign():
    xs = [1.0] * 12 + [0.0] * 5 + [-1.0] * 2
    one, other, negative = SequentialTest(), SequentialTest(), SequentialTest()
    for x, y in zip(xs, reversed(xs), strict=True):
        one.add(x), other.add(y), negative.add(-x)
    assert one.result.e_value == pytest.approx(other.result.e_value)
    assert one.result.sign == 1
    assert negative.result.sign == -1
    assert negative.result.interval.high == pytest.approx(-one.result.interval.low)


def test_of_success_it_is_the_beta_mixture_of_a_sign_test():
    """8 wins and 2 losses: 2^10 B(9, 3) with a uniform prior."""
    test = SequentialTest()
    for x in [1.0] * 8 + [-1.0] * 2:
        test.add(x)
    assert test.result.e_value == pytest.approx(2**10 / (11 * 45), rel=0.01)


def test_equivalence_ends_the_test_only_with_a_margin():
    quiet = [0.0] * 200
    assert SequentialTest().add_all(quiet).decided_at is None
    result = SequentialTest(margin=0.1).add_all(quiet)
    assert result.equivalent
    assert result.sign == 0
    assert 20 < result.decided_at == result.items < 100


def test_equal_policies_are_never_called_equivalent_before_the_interval_is_narrow():
    result = SequentialTest(margin=0.1).add_all([0.0] * 10)
    assert not result.equivalent
    assert result.interval.low < -0.1


@pytest.mark.parametrize(
    ("settings", "word"), [({"bound": 0}, "bound"), ({"confidence": 1.0}, "confidence"), ({"margin": 0}, "margin")]
)
def test_impossible_settings_are_refused(settings: dict[str, float], word: str):
    with pytest.raises(ValueError, match=word):
        SequentialTest(**settings)


def test_a_difference_beyond_the_bound_is_refused():
    with pytest.raises(ValueError, match="outside"):
        SequentialTest().add(1.5)

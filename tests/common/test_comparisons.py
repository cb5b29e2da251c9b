"""Comparisons of runs on the same items: error levels by simulation, Holm's correction, equivalence, control arm."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.statistics import (
    FEWEST_APART,
    LEVEL,
    control_of,
    holm,
    mean_of_runs,
    pair_of,
    paired_difference,
    pairs_of,
    rate_difference,
    rate_difference_p,
    with_holm,
)


def outcomes(rng: np.random.Generator, hardness: np.ndarray, runs: int, spread: float) -> np.ndarray:
    """Return successes [runs, items]; the rate of an item differs between runs by a normal number."""
    rates = np.clip(hardness + rng.normal(0, spread, (runs, 1)), 0.0, 1.0)
    return (rng.random((runs, len(hardness))) < rates).astype(float)


@pytest.mark.parametrize("spread", [0.0, 0.05, 0.1])
@pytest.mark.parametrize(("one", "other"), [(3, 3), (5, 5), (3, 5)])
def test_equal_objectives_are_called_different_in_at_most_about_5_percent(spread: float, one: int, other: int):
    """A bootstrap of 3 runs and 300 items is wrong in 20 % at a spread of 0.1, and in 0.3 % at 0."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(400):
        hardness = rng.uniform(0.1, 0.9, 300)
        wrong += paired_difference(outcomes(rng, hardness, one, spread), outcomes(rng, hardness, other, spread)).clear
    assert wrong / 400 < 0.08


def test_the_interval_of_a_mean_over_runs_covers_the_truth():
    rng, covered = np.random.default_rng(1), 0
    for _ in range(400):
        values = rng.normal(0, 1, (4, 1)) + rng.normal(0, 3, (1, 50)) + rng.normal(0, 1, (4, 50))
        interval = mean_of_runs(values)
        covered += interval.low <= 0 <= interval.high
    assert 0.92 <= covered / 400 <= 0.98


def test_one_run_has_the_error_level_of_the_bootstrap():
    rng = np.random.default_rng(2)
    wrong = 0
    for _ in range(400):
        hardness = rng.uniform(0.1, 0.9, 100)
        (pair,) = pairs_of({"a": outcomes(rng, hardness, 1, 0), "b": outcomes(rng, hardness, 1, 0)})
        wrong += pair.clear
    assert wrong / 400 < 0.08


def test_an_interval_of_runs_is_cut_to_what_is_possible():
    runs = np.array([[1.0, 1, 1, 1], [1, 1, 0, 1]])
    assert mean_of_runs(runs).high > 1
    assert mean_of_runs(runs, limits=(0, 1)).high == 1


def test_p_value_and_interval_agree():
    rng = np.random.default_rng(3)
    for runs in (1, 3):
        for _ in range(50):
            apart = paired_difference(rng.normal(0.2, 1, (runs, 80)), rng.normal(0, 1, (runs, 80)))
            assert (apart.p_value < 0.05) == apart.clear


# --- Holm ------------------------------------------------------------------------------------------------------------


def test_holm_of_a_textbook_case():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.7, 0.6]) == [1.0, 1.0]


@settings(deadline=None)  # a shared machine
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_lies_between_the_p_value_and_bonferroni_and_keeps_the_order(p_values: list[float]):
    adjusted = holm(p_values)
    for one, value in zip(p_values, adjusted, strict=True):
        assert one <= value <= min(1.0, len(p_values) * one)
    assert [adjusted[i] for i in np.argsort(p_values, kind="stable")] == sorted(adjusted)


def test_a_table_of_equal_objectives_has_a_false_verdict_in_at_most_about_5_percent():
    """Three objectives and four metrics: without a correction it is a third of the tables."""
    rng = np.random.default_rng(4)
    false = uncorrected = 0
    for _ in range(200):
        pairs = []
        for _ in range(4):
            hardness = rng.normal(0, 1, 60)
            pairs += pairs_of({name: hardness + rng.normal(0, 1, (3, 60)) for name in ("ar", "mdm", "bd")})
        uncorrected += any(pair.clear for pair in pairs)
        false += any(pair.clear for pair in with_holm(pairs))
    assert false / 200 < 0.09
    assert uncorrected > 3 * false


def test_a_corrected_pair_is_clear_only_below_the_level():
    values = {"a": np.tile([1.0, 1, 1, 0], 10), "b": np.zeros(40), "c": np.zeros(40)}
    found = {(pair.first, pair.second): pair for pair in with_holm(pairs_of(values))}
    assert found["a", "b"].clear
    assert found["a", "b"].adjusted <= LEVEL
    assert found["b", "c"].adjusted == 1.0
    assert found["b", "c"].p_value == 1.0
    assert found["a", "b"].as_json()["p_holm"] == found["a", "b"].adjusted


def test_no_p_value_is_below_that_of_a_sign_test():
    pair = pair_of("a", "b", np.ones((1, FEWEST_APART - 1)), np.zeros((1, FEWEST_APART - 1)))
    assert pair.p_value == 2.0 ** (2 - FEWEST_APART) > 0.05


def test_the_p_value_of_two_rates_is_where_newcombes_interval_reaches_zero():
    p = rate_difference_p((56, 70), (48, 80))
    assert rate_difference((56, 70), (48, 80), 1 - p).low == pytest.approx(0, abs=1e-6)
    assert p < 0.05
    assert rate_difference_p((3, 4), (3, 4)) == pytest.approx(1.0)
    assert rate_difference_p((0, 0), (3, 4)) == pytest.approx(1.0)


# --- equivalence and control -----------------------------------------------------------------------------------------


def test_equivalence_is_stated_falsely_in_at_most_2_and_a_half_percent():
    """The true difference is the margin itself."""
    rng = np.random.default_rng(5)
    false = 0
    for _ in range(400):
        hardness = rng.normal(0, 1, 60)
        one, other = hardness + rng.normal(0.2, 0.3, (3, 60)), hardness + rng.normal(0, 0.3, (3, 60))
        false += pair_of("a", "b", one, other).equivalent(0.2)
    assert false / 400 < 0.05


def test_a_small_difference_is_equivalent_and_an_unknown_one_is_not():
    rng = np.random.default_rng(6)
    base = rng.normal(0, 1, 400)
    (near,) = pairs_of({"a": base + rng.normal(0, 0.1, 400), "b": base})
    assert near.equivalent(0.05)
    (wide,) = pairs_of({"a": rng.normal(0, 1, 20), "b": rng.normal(0, 1, 20)})
    assert not wide.equivalent(0.05)


def test_no_differing_item_shows_equivalence_only_if_the_items_are_many():
    few, many = (pair_of("a", "b", np.ones((1, n)), np.r_[np.zeros(1), np.ones(n - 1)][None]) for n in (40, 400))
    assert few.difference.within(0.1)
    assert not few.equivalent(0.1)
    assert many.equivalent(0.05)


def test_the_control_arm_is_the_differences_between_runs_of_one_name():
    runs = np.stack([np.zeros(50), np.full(50, 0.1), np.full(50, 0.3)])
    control = control_of({"ar": runs, "bd": np.zeros((1, 50))})
    assert control is not None
    assert sorted(control.sizes) == pytest.approx([0.1, 0.2, 0.3])
    assert (control.median, control.largest, control.clear) == (pytest.approx(0.2), pytest.approx(0.3), 3)
    assert "at most 0.3; items alone would call 3 of 3 different" in str(control)
    assert control_of({"ar": np.zeros(5), "bd": np.zeros(5)}) is None

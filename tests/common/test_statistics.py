"""The intervals, against scipy and against known numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.statistics import average_length, bootstrap_mean, mean_of_runs, paired_difference, wilson


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (1, 10), (7, 10), (10, 10), (503, 1000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_agrees_with_scipy(successes, trials, confidence):
    scipy_stats = pytest.importorskip("scipy.stats")
    expected = scipy_stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    ours = wilson(successes, trials, confidence)
    assert (ours.low, ours.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert ours.point == successes / trials


def test_wilson_of_wilsons_textbook_case():
    # 81 of 263 (Newcombe 1998, table I, method 3): 0.2553 to 0.3662.
    assert wilson(81, 263).low == pytest.approx(0.2553, abs=5e-5)
    assert wilson(81, 263).high == pytest.approx(0.3662, abs=5e-5)


def test_wilson_without_a_trial_claims_nothing():
    nothing = wilson(0, 0)
    assert math.isnan(nothing.point)
    assert (nothing.low, nothing.high) == (0.0, 1.0)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_wilson_interval_holds_its_rate_and_stays_a_rate(case):
    interval = wilson(*case)
    assert 0 <= interval.low <= interval.point <= interval.high <= 1


def test_more_successes_than_trials_are_refused():
    with pytest.raises(ValueError, match="4 of 3"):
        wilson(4, 3)


def test_bootstrap_agrees_with_scipys_percentile_bootstrap():
    scipy_stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(1).integers(0, 6, size=200).astype(float)
    expected = scipy_stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(2)
    ).confidence_interval
    ours = bootstrap_mean(values)
    assert (ours.low, ours.high) == pytest.approx((expected.low, expected.high), abs=0.02)
    assert ours.point == values.mean()


def test_bootstrap_half_width_at_a_thousand_chains_is_the_known_tenth():
    # Average 4.1 of 5 over 1000 chains: docs/evaluation.md quotes a half-width of about 0.10.
    lengths = np.repeat([5, 4, 3, 2, 1, 0], [699, 66, 50, 46, 67, 72])
    interval = bootstrap_mean(lengths)
    assert (interval.high - interval.low) / 2 == pytest.approx(0.10, abs=0.01)


@pytest.mark.parametrize(("all_alike", "length"), [(0, 5), (5, 5), (2, 3)])
def test_an_average_length_is_never_without_an_interval_also_where_all_chains_end_alike(all_alike: int, length: int):
    few, many = (average_length([all_alike] * chains, length) for chains in (4, 400))
    assert few.point == many.point == all_alike
    assert few.low <= many.low <= all_alike <= many.high <= few.high
    assert many.high - many.low < 0.1 < few.high - few.low
    assert few.low >= 0
    assert few.high <= length


def test_an_average_length_is_the_bootstrap_where_chains_differ():
    assert average_length([0, 3, 1, 1], 3) == bootstrap_mean([0, 3, 1, 1])


def test_bootstrap_is_the_same_for_the_same_seed_however_it_is_split_into_parts():
    values = np.arange(3000.0)
    assert bootstrap_mean(values, resamples=3000) == bootstrap_mean(values, resamples=3000)


def test_bootstrap_of_one_value_is_that_value():
    assert bootstrap_mean([2.0]) == type(bootstrap_mean([2.0]))(2.0, 2.0, 2.0)


def test_an_interval_prints_with_its_ends():
    assert f"{wilson(5, 10):.2f}" == "0.50 [0.24, 0.76]"


def test_a_paired_difference_is_clear_where_the_unpaired_intervals_overlap():
    rng = np.random.default_rng(0)
    hardness = rng.normal(size=200)
    one, other = hardness + 0.2 + 0.1 * rng.normal(size=200), hardness + 0.1 * rng.normal(size=200)
    assert mean_of_runs(one).low < mean_of_runs(other).high
    apart = paired_difference(one, other)
    assert apart.clear
    assert apart.probability == 1.0
    assert apart.interval.point == pytest.approx((one - other).mean())
    assert 0.15 < apart.interval.low < 0.2 < apart.interval.high < 0.25


def test_a_difference_of_nothing_is_never_clear():
    values = np.random.default_rng(1).random(50)
    same = paired_difference(values, values)
    assert (same.clear, same.probability) == (False, 0.5)
    swapped = paired_difference(values, values[::-1])
    assert not swapped.clear


def test_the_sign_of_a_difference_follows_the_order_of_the_two():
    one, other = np.ones(30), np.zeros(30)
    assert paired_difference(one, other).probability == 1.0
    assert paired_difference(other, one).probability == 0.0
    assert paired_difference(other, one).clear


def test_weights_are_the_lengths_of_items():
    values, tokens = np.array([1.0, 0.0, 0.0]), np.array([2.0, 1.0, 1.0])
    assert mean_of_runs(values, tokens).point == pytest.approx(0.5)


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    held = 0
    for seed in range(200):
        interval = mean_of_runs(rng.normal(size=80), resamples=400, seed=seed)
        held += interval.low <= 0.0 <= interval.high
    assert 0.88 <= held / 200 <= 0.99


def test_seeds_that_disagree_widen_the_interval():
    rng = np.random.default_rng(3)
    item = rng.normal(size=100)
    agreeing, apart = np.stack([item, item, item]), np.stack([item - 1, item, item + 1])
    width = [mean_of_runs(runs).high - mean_of_runs(runs).low for runs in (agreeing, apart)]
    assert width[1] > 2 * width[0]


def test_other_items_and_no_items_are_refused():
    with pytest.raises(ValueError, match="same items"):
        paired_difference(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="nothing to resample"):
        mean_of_runs(np.zeros((1, 0)))

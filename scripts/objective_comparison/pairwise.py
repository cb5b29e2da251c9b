"""Compare evaluated runs pairwise on the same items, with intervals: is bd better than ar?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.statistics import (
    Control,
    Difference,
    Interval,
    Pair,
    control_of,
    mean_of_runs,
    pair_of,
    paired_difference,
    wilson,
    with_holm,
)
from scripts.objective_comparison.evaluate import HeldOut, RunResult
from scripts.objective_comparison.plan import RunPlan, pairs_of, read_curve

FIRST_STEP = ("image/loss", "action/loss")


@dataclass(frozen=True)
class Metric:
    """A metric by item: ``values(run)`` [items], ``weights(run)`` [items]; ``higher``: whether higher is better.

    ``margin``: a difference below this does not matter, in the metric's unit. The margins were fixed before any result.
    """

    name: str
    unit: str
    higher: bool
    margin: float
    values: Callable[[RunResult], np.ndarray]
    weights: Callable[[RunResult], np.ndarray]


def _ones(results: RunResult) -> np.ndarray:
    return np.ones(len(results.words.exact))


def _tokens(results: RunResult) -> np.ndarray:
    return np.array(results.words.tokens, dtype=float)


def _per_token(of: Callable[[RunResult], Sequence[float]]) -> Callable[[RunResult], np.ndarray]:
    return lambda results: np.array(of(results), dtype=float) / _tokens(results)


NATS = Metric("nats per token", "nats", False, 0.05, _per_token(lambda run: run.words.nats), _tokens)
EXACT = Metric("exact match", "share", True, 0.05, lambda run: np.array(run.words.exact, float), _ones)
TOKENS = Metric("token accuracy", "share", True, 0.05, _per_token(lambda run: run.words.right_tokens), _tokens)
SHUFFLED = Metric(
    "exact, shuffled images", "share", True, 0.05, lambda run: np.array(run.words.exact_shuffled, float), _ones
)
ACTION = Metric(
    "action MAE",
    "unit",
    False,
    0.01,
    lambda run: np.array(run.actions.errors),
    lambda run: np.array(run.actions.steps, float),
)
LENGTH = Metric(
    "tasks in a row", "tasks", True, 0.2, lambda run: np.array(run.chains, float), lambda run: np.ones(len(run.chains))
)
METRICS = (NATS, EXACT, TOKENS, ACTION)
"""Metrics of every comparison; LENGTH is added if chains were run."""


def metrics_of(results: Mapping[str, Sequence[RunResult]]) -> tuple[Metric, ...]:
    """Return ``METRICS``, and LENGTH if every run has closed-loop chains."""
    closed_loop = all(one.chains for runs in results.values() for one in runs)
    return (*METRICS, LENGTH) if closed_loop else METRICS


@dataclass(frozen=True)
class PairResult:
    """The difference ``first`` minus ``second`` in one metric."""

    metric: Metric
    pair: Pair

    @property
    def first(self) -> str:
        return self.pair.first

    @property
    def second(self) -> str:
        return self.pair.second

    @property
    def difference(self) -> Difference:
        return self.pair.difference

    @property
    def probability_better(self) -> float:
        """Return the probability that ``first`` is better."""
        above = self.difference.probability
        return above if self.metric.higher else 1 - above

    @property
    def words(self) -> str:
        if not self.pair.clear:
            return "equivalent" if self.pair.equivalent(self.metric.margin) else "these data cannot tell"
        better = self.first if (self.difference.interval.low > 0) == self.metric.higher else self.second
        return f"{better} is better"


def interval(metric: Metric, runs: Sequence[RunResult]) -> Interval:
    """Return the interval over one objective's runs (seeds). A rate of one run has a Wilson interval."""
    values = _table(metric, runs)
    if len(runs) == 1 and metric in (EXACT, SHUFFLED):
        return wilson(int(values.sum()), values.shape[1])
    return mean_of_runs(values, metric.weights(runs[0]))


def compare_pairs(results: Mapping[str, Sequence[RunResult]]) -> list[PairResult]:
    """Compare every pair of objectives in every metric, with Holm's correction over all of them.

    Runs of an objective are in the order of the seeds.
    """
    metrics, found = [], []
    for metric in metrics_of(results):
        for first, second in pairs_of(list(results)):
            one, other = (_table(metric, results[name]) for name in (first, second))
            metrics.append(metric)
            found.append(pair_of(first, second, one, other, metric.weights(results[first][0])))
    return [PairResult(metric, pair) for metric, pair in zip(metrics, with_holm(found), strict=True)]


def controls(results: Mapping[str, Sequence[RunResult]]) -> dict[str, Control]:
    """Return the differences between seeds of one objective, by metric; empty if there is one seed."""
    first = next(iter(results.values()))[0]
    found = {
        metric.name: control_of({name: _table(metric, runs) for name, runs in results.items()}, metric.weights(first))
        for metric in metrics_of(results)
    }
    return {name: control for name, control in found.items() if control is not None}


def _table(metric: Metric, runs: Sequence[RunResult]) -> np.ndarray:
    """Return the values of a metric [runs, items]."""
    return np.stack([metric.values(run) for run in runs])


def record_rows(
    results: Mapping[str, Sequence[RunResult]], seeds: Sequence[int], blind: bool = False
) -> Iterator[dict[str, str | int | float | None]]:
    """Yield a row for every item of every metric and run, in the columns of the table ``objectives/1``."""
    for name, runs in results.items():
        for seed, run in zip(seeds, runs, strict=True):
            for metric in (*metrics_of(results), SHUFFLED):
                for item, (value, weight) in enumerate(zip(metric.values(run), metric.weights(run), strict=True)):
                    yield {
                        "objective": name,
                        "seed": seed,
                        "blind": int(blind),
                        "metric": metric.name,
                        "unit": metric.unit,
                        "higher_is_better": int(metric.higher),
                        "item": item,
                        "value": float(value),
                        "weight": float(weight),
                    }


def drawing_error(runs: Sequence[RunResult]) -> float:
    """Return the standard error of nats per token due to random masking (0 for ar), not due to the questions."""
    variance = sum(sum(results.words.nats_variance) for results in runs)
    return float(np.sqrt(variance)) / sum(sum(results.words.tokens) for results in runs)


def image_gain(with_image: Sequence[RunResult], blind: Sequence[RunResult] | None = None) -> Difference:
    """Return exact match with the right image minus that with another question's (or that of runs trained blind)."""
    right = np.stack([EXACT.values(results) for results in with_image])
    without = np.stack(
        [SHUFFLED.values(results) for results in with_image]
        if blind is None
        else [EXACT.values(results) for results in blind]
    )
    return paired_difference(right, without)


def by_kind(kinds: Sequence[str], metric: Metric, runs: Sequence[RunResult]) -> dict[str, float]:
    """Return the mean of a metric over the questions of each kind, in order of appearance."""
    values = np.mean([metric.values(results) for results in runs], axis=0)
    return {kind: float(values[[k == kind for k in kinds]].mean()) for kind in dict.fromkeys(kinds)}


@dataclass(frozen=True)
class FirstStep:
    """Losses of the first step of all runs of one seed, by name: run -> loss."""

    seed: int
    losses: Mapping[str, Mapping[str, float]]

    @property
    def identical(self) -> bool:
        return all(len(set(of_runs.values())) == 1 for of_runs in self.losses.values())


def first_steps(runs: Sequence[RunPlan]) -> list[FirstStep]:
    """Return image and action losses of the first step. Raises ``ValueError`` for a run that did not log them."""
    found = []
    for seed in dict.fromkeys(run.seed for run in runs):
        losses: dict[str, dict[str, float]] = {name: {} for name in FIRST_STEP}
        for run in (run for run in runs if run.seed == seed):
            curve = read_curve(run)
            if not curve or curve[0]["step"] != 1 or any(name not in curve[0] for name in FIRST_STEP):
                raise ValueError(f"{run.metrics_file} has no {' and '.join(FIRST_STEP)} of step 1")
            for name in FIRST_STEP:
                losses[name][run.name] = curve[0][name]
        found.append(FirstStep(seed, losses))
    return found


def questions_and_answers(held_out: HeldOut) -> list[tuple[str, str]]:
    return [(question.text, question.answer) for question in held_out.questions]

"""Compare evaluated runs pairwise on the same items, with intervals: is bd better than ar?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.statistics import Difference, Interval, Pair, bootstrap_runs, pair_of, paired_difference, wilson
from scripts.objective_comparison.evaluate import HeldOut, RunResult
from scripts.objective_comparison.plan import RunPlan, pairs_of, read_curve

FIRST_STEP = ("image/loss", "action/loss")


@dataclass(frozen=True)
class Metric:
    """A metric by item: ``values(run)`` [items], ``weights(run)`` [items]; ``higher``: whether higher is better."""

    name: str
    unit: str
    higher: bool
    values: Callable[[RunResult], np.ndarray]
    weights: Callable[[RunResult], np.ndarray]


def _ones(results: RunResult) -> np.ndarray:
    return np.ones(len(results.words.exact))


def _tokens(results: RunResult) -> np.ndarray:
    return np.array(results.words.tokens, dtype=float)


def _per_token(of: Callable[[RunResult], Sequence[float]]) -> Callable[[RunResult], np.ndarray]:
    return lambda results: np.array(of(results), dtype=float) / _tokens(results)


NATS = Metric("nats per token", "nats", False, _per_token(lambda run: run.words.nats), _tokens)
EXACT = Metric("exact match", "share", True, lambda run: np.array(run.words.exact, float), _ones)
TOKENS = Metric("token accuracy", "share", True, _per_token(lambda run: run.words.right_tokens), _tokens)
SHUFFLED = Metric("exact, shuffled images", "share", True, lambda run: np.array(run.words.exact_shuffled, float), _ones)
ACTION = Metric(
    "action MAE",
    "unit",
    False,
    lambda run: np.array(run.actions.errors),
    lambda run: np.array(run.actions.steps, float),
)
LENGTH = Metric(
    "tasks in a row", "tasks", True, lambda run: np.array(run.chains, float), lambda run: np.ones(len(run.chains))
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
            return "these data cannot tell"
        better = self.first if (self.difference.interval.low > 0) == self.metric.higher else self.second
        return f"{better} is better"


def interval(metric: Metric, runs: Sequence[RunResult]) -> Interval:
    """Return the interval over one objective's runs (seeds). A rate of one run has a Wilson interval."""
    values = np.stack([metric.values(results) for results in runs])
    if len(runs) == 1 and metric in (EXACT, SHUFFLED):
        return wilson(int(values.sum()), values.shape[1])
    return bootstrap_runs(values, metric.weights(runs[0]))


def compare_pairs(results: Mapping[str, Sequence[RunResult]]) -> list[PairResult]:
    """Compare every pair of objectives in every metric; runs of an objective are in the order of the seeds."""
    found = []
    for metric in metrics_of(results):
        for first, second in pairs_of(list(results)):
            one, other = (np.stack([metric.values(run) for run in results[name]]) for name in (first, second))
            weights = metric.weights(results[first][0])
            found.append(PairResult(metric, pair_of(first, second, one, other, weights)))
    return found


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

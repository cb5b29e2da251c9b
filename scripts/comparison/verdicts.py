"""From judged runs to figures with intervals, and to answers to "is bd better than ar?"."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from policy_rollout.intervals import Difference, Interval, bootstrap_runs, paired_difference, wilson
from policy_rollout.paired import Pair, pair_of
from scripts.comparison.judge import HeldOut, Judged
from scripts.comparison.plan import Planned, pairs_of, read_curve

FIRST_STEP = ("image/loss", "action/loss")


@dataclass(frozen=True)
class Measure:
    """One figure by item: ``values(judged)`` [items], ``weights(judged)`` [items]; ``higher`` is better or lower."""

    name: str
    unit: str
    higher: bool
    values: Callable[[Judged], np.ndarray]
    weights: Callable[[Judged], np.ndarray]


def _ones(judged: Judged) -> np.ndarray:
    return np.ones(len(judged.words.exact))


def _tokens(judged: Judged) -> np.ndarray:
    return np.array(judged.words.tokens, dtype=float)


def _per_token(of: Callable[[Judged], Sequence[float]]) -> Callable[[Judged], np.ndarray]:
    return lambda judged: np.array(of(judged), dtype=float) / _tokens(judged)


NATS = Measure("nats per token", "nats", False, _per_token(lambda j: j.words.nats), _tokens)
EXACT = Measure("exact match", "share", True, lambda j: np.array(j.words.exact, dtype=float), _ones)
TOKENS = Measure("token accuracy", "share", True, _per_token(lambda j: j.words.right_tokens), _tokens)
SHUFFLED = Measure("exact, shuffled images", "share", True, lambda j: np.array(j.words.exact_shuffled, float), _ones)
ACTION = Measure(
    "action MAE", "unit", False, lambda j: np.array(j.actions.errors), lambda j: np.array(j.actions.steps, dtype=float)
)
LENGTH = Measure("tasks in a row", "tasks", True, lambda j: np.array(j.chains, float), lambda j: np.ones(len(j.chains)))
COMPARED = (NATS, EXACT, TOKENS, ACTION)
"""What every comparison measures; closed loops are played only when asked for."""


def compared(judged: Mapping[str, Sequence[Judged]]) -> tuple[Measure, ...]:
    """``COMPARED``, and the closed loop if every run was in it."""
    played = all(one.chains for runs in judged.values() for one in runs)
    return (*COMPARED, LENGTH) if played else COMPARED


@dataclass(frozen=True)
class Verdict:
    """``first`` minus ``second`` in one measure."""

    measure: Measure
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
        """That ``first`` is the better one."""
        above = self.difference.probability
        return above if self.measure.higher else 1 - above

    @property
    def words(self) -> str:
        if not self.pair.clear:
            return "these data cannot tell"
        better = self.first if (self.difference.interval.low > 0) == self.measure.higher else self.second
        return f"{better} is better"


def interval(measure: Measure, runs: Sequence[Judged]) -> Interval:
    """Of one objective's runs (seeds). A rate of one run is Wilson's: right at 0 and 1, too."""
    values = np.stack([measure.values(judged) for judged in runs])
    if len(runs) == 1 and measure in (EXACT, SHUFFLED):
        return wilson(int(values.sum()), values.shape[1])
    return bootstrap_runs(values, measure.weights(runs[0]))


def verdicts(judged: Mapping[str, Sequence[Judged]]) -> list[Verdict]:
    """Every pair of objectives in every measure; runs of an objective in the order of the seeds."""
    found = []
    for measure in compared(judged):
        for first, second in pairs_of(list(judged)):
            one, other = (np.stack([measure.values(j) for j in judged[name]]) for name in (first, second))
            weights = measure.weights(judged[first][0])
            found.append(Verdict(measure, pair_of(first, second, one, other, weights)))
    return found


def drawing_error(runs: Sequence[Judged]) -> float:
    """Standard error of nats per token that comes from drawing what is hidden (0 for ar), not from the questions."""
    variance = sum(sum(judged.words.nats_variance) for judged in runs)
    return float(np.sqrt(variance)) / sum(sum(judged.words.tokens) for judged in runs)


def needs_image(seeing: Sequence[Judged], blind: Sequence[Judged] | None = None) -> Difference:
    """Exact match with the right image, minus with another question's (or minus that of runs trained blind)."""
    right = np.stack([EXACT.values(judged) for judged in seeing])
    without = np.stack(
        [SHUFFLED.values(judged) for judged in seeing] if blind is None else [EXACT.values(judged) for judged in blind]
    )
    return paired_difference(right, without)


def by_kind(kinds: Sequence[str], measure: Measure, runs: Sequence[Judged]) -> dict[str, float]:
    """Mean of a measure over the questions of each kind, in order of appearance."""
    values = np.mean([measure.values(judged) for judged in runs], axis=0)
    return {kind: float(values[[k == kind for k in kinds]].mean()) for kind in dict.fromkeys(kinds)}


@dataclass(frozen=True)
class FirstStep:
    """Losses of the first step of all runs of one seed: run -> loss, by name."""

    seed: int
    losses: Mapping[str, Mapping[str, float]]

    @property
    def identical(self) -> bool:
        return all(len(set(of_runs.values())) == 1 for of_runs in self.losses.values())


def first_steps(runs: Sequence[Planned]) -> list[FirstStep]:
    """The image and action losses that runs of one seed start from. Raises ``ValueError`` for a run without them."""
    found = []
    for seed in dict.fromkeys(run.seed for run in runs):
        losses: dict[str, dict[str, float]] = {name: {} for name in FIRST_STEP}
        for run in (run for run in runs if run.seed == seed):
            curve = read_curve(run)
            if not curve or curve[0]["step"] != 1 or any(name not in curve[0] for name in FIRST_STEP):
                raise ValueError(f"{run.metrics_file} does not tell {' and '.join(FIRST_STEP)} of step 1")
            for name in FIRST_STEP:
                losses[name][run.name] = curve[0][name]
        found.append(FirstStep(seed, losses))
    return found


def questions_of(asked: HeldOut) -> list[tuple[str, str]]:
    return [(question.text, question.answer) for question in asked.questions]

"""The statistics of the study: figures of every arm, and paired comparisons with one correction for all of them.

Runs are paired by objective and seed, items by their number. Runs and items are both samples
(``common/statistics/runs.py``). Holm's correction covers the whole table. Equivalence: the interval lies inside a
margin, which was fixed before any result. The control arm compares runs that differ in their seed only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from common.statistics import Control, Interval, Pair, control_of, mean_of_runs, pair_of, with_holm
from scripts.objective_comparison.plan import JOINT, pairs_of
from scripts.study.measure import Measured
from scripts.study.plan import MAIN_TASKS, MAIN_TEXT, MAIN_WORDS, OBJECTIVES, PLACES, SCRATCH, Run

Results = Mapping[Run, Measured]
GROUP = "success: "


@dataclass(frozen=True)
class Metric:
    """A metric by item.

    ``higher``: whether higher is better; ``margin``: a smaller difference does not matter, in the metric's unit. Shares
    are between 0 and 1.
    """

    name: str
    unit: str
    higher: bool
    margin: float


TEXT_METRICS = (
    Metric("exact match", "share", True, 0.05),
    Metric("nats per token", "nats", False, 0.05),
    Metric("place error", "mm", False, 20.0),
    Metric("image use of words", "share", True, 0.1),
)
ACTION_METRICS = (
    Metric("success", "share", True, 0.05),
    Metric("tasks in a row", "tasks", True, 0.2),
    Metric("action MAE", "unit", False, 0.01),
    Metric("follows the task", "share", True, 0.1),
    Metric("follows the colour", "share", True, 0.1),
    Metric("image use of actions", "share", True, 0.1),
)
KEPT = TEXT_METRICS[:3]
"""Metrics of the text tax: words after learning to act, less words before."""


def metric_of(name: str) -> Metric:
    """Return a metric by its name; success by group of tasks has the margin of a share."""
    known = {metric.name: metric for metric in (*TEXT_METRICS, *ACTION_METRICS)}
    return known.get(name, Metric(name, "share", True, 0.1))


@dataclass(frozen=True)
class Comparison:
    """``pair.first`` less ``pair.second`` in one metric, with ``runs`` pairs of runs."""

    question: str
    metric: Metric
    pair: Pair
    runs: int

    @property
    def verdict(self) -> str:
        if not self.pair.clear:
            return "equivalent" if self.pair.equivalent(self.metric.margin) else "these data cannot tell"
        better = (self.pair.difference.interval.point > 0) == self.metric.higher
        return f"{self.pair.first if better else self.pair.second} is better"


Question = tuple[str, str, str, Sequence[Metric], list[tuple[Run, Run]]]
"""(question, name of the first, of the second, metrics, pairs of runs)."""


def compare(results: Results) -> list[Comparison]:
    """Return every comparison whose runs are measured, with Holm's correction over all of them."""
    found = []
    for question, first, second, metrics, runs in questions(results):
        for metric in metrics:
            one = _stack(metric.name, [results[run] for run, _ in runs])
            other = _stack(metric.name, [results[run] for _, run in runs])
            if one is None or other is None or one.shape != other.shape:
                continue
            weights = np.array(results[runs[0][0]].weights[metric.name])
            pair = pair_of(first, second, one, other, weights)
            if metric.unit == "share":  # also if no item shows it
                pair = replace(pair, value_range=max(pair.value_range, 1.0))
            found.append(Comparison(question, metric, pair, len(runs)))
    adjusted = with_holm([comparison.pair for comparison in found])
    return [replace(comparison, pair=pair) for comparison, pair in zip(found, adjusted, strict=True)]


def questions(results: Results) -> Iterator[Question]:
    """Yield the comparisons of the study that have at least one pair of runs."""
    for question in (*_objectives(results), *_taxes(results), *_factors(results)):
        if question[-1]:
            yield question


def _objectives(results: Results) -> Iterator[Question]:
    """Yield every pair of objectives before acting and in the main line, as far as they have the most seeds."""
    families: dict[Run, dict[str, list[int]]] = {}
    for run in (run for run in results if run.stage == 1 or is_main(run)):
        family = replace(run, objective="", seed=0)
        families.setdefault(family, {}).setdefault(run.objective, []).append(run.seed)
    most = max((len(seeds) for of in families.values() for seeds in of.values()), default=0)
    for family, seeds in families.items():
        metrics = TEXT_METRICS if family.stage == 1 else (*ACTION_METRICS, *KEPT)
        for first, second in pairs_of([name for name in OBJECTIVES if name in seeds]):
            common = sorted(set(seeds[first]) & set(seeds[second]))
            if len(common) >= min(2, most):
                runs = [tuple(replace(family, objective=o, seed=seed) for o in (first, second)) for seed in common]
                yield f"objectives, {title(family)}", first, second, metrics, runs  # type: ignore[misc]


def _taxes(results: Results) -> Iterator[Question]:
    """Yield words after acting, less words before: of each objective, and of all with other losses."""
    speaking = [run for run in results if run.stage == 2 and run.start is not None and run.start in results]
    for objective in OBJECTIVES:
        runs = [(run, run.start) for run in speaking if run.objective == objective and is_main(run) and run.start]
        yield f"text kept by {objective}, {title(_main())}", "after", "before", KEPT, runs
    others = [run for run in speaking if run.words == MAIN_WORDS and not is_main(run)]
    for family in dict.fromkeys(replace(run, objective="", seed=0) for run in others):
        runs = [(r, r.start) for r in others if replace(r, objective="", seed=0) == family and r.start is not None]
        yield f"text kept, {title(family)}", "after", "before", KEPT[:2], runs


def _factors(results: Results) -> Iterator[Question]:
    """Yield each factor on its own, with all objectives together; and each objective against no words."""

    def changed(base: Callable[[Run], bool], **factor: object) -> list[tuple[Run, Run]]:
        pairs = [(replace(run, **factor), run) for run in results if base(run)]  # type: ignore[arg-type]
        return [(one, other) for one, other in pairs if one in results]

    def speaks(run: Run) -> bool:
        return is_main(run) and run.speaks

    acting = (*ACTION_METRICS, *KEPT)
    yield "words", PLACES, MAIN_WORDS, ACTION_METRICS, changed(speaks, words=PLACES)
    yield "weight of text", "0", f"{MAIN_TEXT:g}", acting, changed(speaks, text=0.0)
    yield "weight of text", "1", f"{MAIN_TEXT:g}", acting, changed(speaks, text=1.0)
    yield "insulation", "insulated", "not", acting, changed(speaks, insulated=True)
    yield "image loss", "with", "without", acting, changed(speaks, image=True)
    for weight in sorted({run.next_token for run in results if run.stage == 1 and run.next_token != 1}):
        pairs = changed(lambda run: run.stage == 1 and run.label == JOINT, next_token=weight)
        yield "weight of next-token prediction in joint", f"{weight:g}", "1", TEXT_METRICS, pairs
    for objective in OBJECTIVES:
        pairs = [
            (run, replace(run, objective=SCRATCH, text=0.0))
            for run in results
            if is_main(run) and run.objective == objective
        ]
        runs = [(one, other) for one, other in pairs if other in results]
        yield "words before acting", objective, "no words", ACTION_METRICS, runs


def is_main(run: Run) -> bool:
    """Return True for runs of the main line, but not for those without words."""
    return replace(run, objective="", seed=0) == _main()


def _main() -> Run:
    return Run("", MAIN_WORDS, 0, MAIN_TASKS, MAIN_TEXT, image=False)


def title(run: Run) -> str:
    """Return what a run does, without its objective and seed."""
    if run.stage == 1:
        return f"before acting, {run.words}"
    losses = f"text {run.text:g}" + (", image loss" if run.image else "") + (", insulated" if run.insulated else "")
    return f"{run.tasks.replace('_', ' ')}, {run.words}, {losses}"


def figure_of(metric: str, runs: Sequence[Measured]) -> Interval | None:
    """Return the mean of a metric over runs and items with its interval; None if it was not measured."""
    values = _stack(metric, runs)
    if values is None:
        return None
    limits = (0.0, 1.0) if metric in ("exact match", "success") or metric.startswith(GROUP) else (-np.inf, np.inf)
    return mean_of_runs(values, np.array(runs[0].weights[metric]), limits=limits)


def controls(arms: Mapping[str, Sequence[Run]], results: Results) -> dict[str, Control]:
    """Return by metric how much another seed alone changes; empty with one seed."""
    found = {}
    for metric in (*TEXT_METRICS, *ACTION_METRICS):
        tables, weights = {}, None
        for arm, runs in arms.items():
            values = _stack(metric.name, [results[run] for run in runs if run in results])
            if values is not None and (weights is None or len(weights) == values.shape[1]):
                tables[arm] = values
                weights = np.array(next(results[run] for run in runs if run in results).weights[metric.name])
        control = control_of(tables, weights)
        if control is not None:
            found[metric.name] = control
    return found


def _stack(metric: str, runs: Sequence[Measured]) -> np.ndarray | None:
    """Return [runs, items]; None if a run lacks the metric, or there are no items."""
    rows = [run.values.get(metric) for run in runs]
    if not rows or any(not row for row in rows) or len({len(row) for row in rows if row}) > 1:
        return None
    return np.array(rows, dtype=float)


def record_rows(results: Results) -> Iterator[dict[str, str | int | float | None]]:
    """Yield a row for every item of every metric and run, in the columns of the table ``study/1``."""
    for run, found in results.items():
        for name, values in found.values.items():
            metric = metric_of(name)
            for item, (value, weight) in enumerate(zip(values, found.weights[name], strict=True)):
                yield {
                    "run": run.name,
                    "stage": run.stage,
                    "objective": run.label,
                    "words": run.words if run.speaks else None,
                    "seed": run.seed,
                    "tasks": run.tasks or None,
                    "text_weight": run.text,
                    "image_loss": int(run.image),
                    "insulated": int(run.insulated),
                    "metric": metric.name,
                    "unit": metric.unit,
                    "higher_is_better": int(metric.higher),
                    "item": item,
                    "value": value,
                    "weight": weight,
                }

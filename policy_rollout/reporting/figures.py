"""The figures of a report: large ones, curves, and tables with intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.tables import percent, points, probability
from policy_rollout.compare import Comparison, Side, TaskRow, task_difference
from policy_rollout.intervals import Interval, wilson
from policy_rollout.reporting.charts import bars, curve, legend, rate_bar, steps_histogram
from policy_rollout.reporting.markup import Html, el, figures, join, table
from policy_rollout.results import attempts, average_length, success_rates, task_counts


def _brackets(interval: Interval, scale: float, digits: int) -> str:
    return f"[{scale * interval.low:.{digits}f}, {scale * interval.high:.{digits}f}]"


def headline(sides: Sequence[Side]) -> Html:
    """The average length of each side; of a single one the rate of the first and of all tasks, too."""
    shown: list[tuple[str, object, object]] = []
    for side in sides:
        mean = average_length(side.runs)
        name = f"tasks per chain, {side.name}" if len(sides) > 1 else "tasks per chain"
        shown.append((name, f"{mean.point:.2f}", _brackets(mean, 1, 2)))
    runs = sides[0].runs
    if len(sides) == 1:
        rates = success_rates(runs)
        for place in dict.fromkeys((1, len(rates))):
            rate = rates[place - 1]
            shown.append((f"{place}/{len(rates)}", f"{100 * rate.point:.0f} %", _brackets(rate, 100, 0)))
    shown.append(("chains", str(len(runs[0].chains)), f"{len(runs)} runs" if len(runs) > 1 else ""))
    return figures(shown)


def charts_section(sides: Sequence[Side]) -> Html:
    length = sides[0].runs[0].length
    places = [f"{i}/{length}" for i in range(1, length + 1)]
    ordinal = [str(i) for i in range(1, length + 1)]
    done = {side.name: np.concatenate([run.completed() for run in side.runs]) for side in sides}
    shares = {name: [float((d == i).mean()) for i in range(length + 1)] for name, d in done.items()}
    tries = {
        side.name: [(ok, steps) for run in side.runs for chain in run.chains for _, ok, steps in attempts(chain)]
        for side in sides
    }
    limit = max((steps for of_side in tries.values() for _, steps in of_side), default=1)
    drawn = [
        (
            "Chains with at least so many tasks",
            "",
            curve({s.name: success_rates(s.runs) for s in sides}, places, "success by number of tasks"),
        ),
        (
            "Each task by its place in the chain",
            "of the chains that came so far, how many did it",
            curve({name: _by_place(d, length) for name, d in done.items()}, ordinal, "success by place in the chain"),
        ),
        (
            "How far chains came",
            "tasks done",
            bars(shares, [str(i) for i in range(length + 1)], "tasks done per chain", " tasks done"),
        ),
        (
            "Control steps of a task",
            "share of all tasks that were begun, and of those that were not done",
            steps_histogram(tries, limit, "control steps of a task"),
        ),
    ]
    made = [el("figure", el("figcaption", name, el("small", note)), chart) for name, note, chart in drawn]
    return join([el("h2", "At a glance"), legend([side.name for side in sides]), el("div", *made, class_="charts")])


def _by_place(completed: np.ndarray, length: int) -> list[Interval]:
    """Success at each place, of the chains that reached it."""
    return [wilson(int((completed >= i).sum()), int((completed >= i - 1).sum())) for i in range(1, length + 1)]


def rates_section(sides: Sequence[Side], found: Comparison | None) -> Html:
    length = sides[0].runs[0].length
    head = ["", "tasks per chain", *(f"{i}/{length}" for i in range(1, length + 1))]
    rows = [[side.name, f"{average_length(side.runs):.2f}", *map(percent, success_rates(side.runs))] for side in sides]
    parts = [el("h2", "Chains"), table(head, rows)]
    if found is not None:
        apart = [
            [
                f"{pair.first} − {pair.second}",
                f"{pair.difference.interval:+.2f}",
                *(points(of_place[number].difference.interval) for of_place in found.rates),
                probability(pair.difference.probability),
            ]
            for number, pair in enumerate(found.lengths)
        ]
        parts += [
            el("p", "Differences, chain by chain (rates in percentage points):", class_="note"),
            table([*head, "P(first is better)"], apart),
        ]
    return join(parts)


def task_section(sides: Sequence[Side]) -> Html:
    """Every task that was begun; the rarest successes last."""
    counts = [task_counts(side.runs) for side in sides]
    tasks = sorted({task for of_side in counts for task in of_side})
    rows = []
    for task in sorted(tasks, key=lambda task: -_pooled([of_side.get(task, (0, 0)) for of_side in counts])):
        row = TaskRow(task, tuple(of_side.get(task, (0, 0)) for of_side in counts))
        rates = [wilson(*count) for count in row.counts]
        told = [f"{percent(rate)} of {tried}" for rate, (_, tried) in zip(rates, row.counts, strict=True)]
        cells: list[object] = [task.replace("_", " "), rate_bar(rates, "; ".join(told)), *told]
        cells += [points(task_difference(row, 0, other)) for other in range(1, len(sides))]
        rows.append(cells)
    first, *others = [side.name for side in sides]
    head = ["task", "0 to 100 %", *(side.name if others else "done" for side in sides)]
    head += [f"{first} − {other}, points" for other in others]
    note = "A chain goes on only after a success, so later tasks are tried less often. " + (
        "Differences: Newcombe's interval, not paired; about one in twenty would look clear by chance."
        if others
        else "Average steps are of tasks that were done."
    )
    if not others:
        head.append("steps when done")
        steps = _mean_steps(sides[0])
        rows = [[*row, steps.get(str(row[0]).replace(" ", "_"), "–")] for row in rows]
    return join(
        [el("h2", "Tasks"), el("p", note, class_="note"), legend([side.name for side in sides]), table(head, rows)]
    )


def _pooled(counts: Sequence[tuple[int, int]]) -> float:
    return sum(done for done, _ in counts) / max(sum(tried for _, tried in counts), 1)


def _mean_steps(side: Side) -> dict[str, str]:
    steps: dict[str, list[int]] = {}
    for run in side.runs:
        for chain in run.chains:
            for task, done, taken in attempts(chain):
                if done:
                    steps.setdefault(task, []).append(taken)
    return {task: f"{np.mean(taken):.0f}" for task, taken in steps.items()}

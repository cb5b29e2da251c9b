"""Write the page of the study from the runs that are measured: summary.md, study.png, records.csv, results.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from common.files import write_text
from common.record_table import write_record_table
from common.statistics import Interval
from common.tables import interval_json, markdown_table, probability
from scripts.study.figure import draw
from scripts.study.measure import SPOKEN, SPOKEN_LESS, WAYS, Measured, read_measured
from scripts.study.plan import Run
from scripts.study.table import (
    ACTION_METRICS,
    GROUP,
    TEXT_METRICS,
    Comparison,
    Results,
    compare,
    controls,
    figure_of,
    metric_of,
    record_rows,
    title,
)
from scripts.study.work import Study

TEMPLATE = Path(__file__).with_name("summary.md.j2")
FIGURE, RECORDS, DECODING = "study.png", "records.csv", "decoding/summary.md"
SPOKEN_FIGURES = ("success", SPOKEN, SPOKEN_LESS)
TABLE = "study/1"
"""Kind and version of the table of records (docs/evaluation.md)."""


@dataclass(frozen=True)
class FirstStep:
    """One loss of the first step of runs that have to agree in it, by run."""

    loss: str
    what: str
    values: Mapping[str, float]

    @property
    def identical(self) -> bool:
        return len(set(self.values.values())) <= 1

    def __str__(self) -> str:
        low, high = min(self.values.values()), max(self.values.values())
        same = f"identical to the last digit ({low:.9g})" if self.identical else f"**differ by {high - low:.3g}**"
        return f"{self.loss}, {self.what}: {same} in {len(self.values)} run{'s' * (len(self.values) > 1)}"


def read_results(study: Study) -> dict[Run, Measured]:
    """Return the results of the runs that are measured, in the order of the plan."""
    found = {run: read_measured(run, study.plan, study.folder) for run in study.plan.runs}
    return {run: measured for run, measured in found.items() if measured is not None}


def write_report(study: Study, command: str, failures: Sequence[str] = ()) -> dict[Run, Measured]:
    """Write the page; return the results. Nothing is written before the first run is measured."""
    from policy_rollout.policies.upvla import pick_device
    from scripts.objective_comparison.evaluate import machine

    results = read_results(study)
    if not results:
        return results
    comparisons = compare(results)
    date, where = f"{datetime.now(timezone.utc):%Y-%m-%d}", machine(pick_device())
    draw(study.plan.arms, results, study.folder / FIGURE, f"{date}, {where}; plan {study.plan.name}; 95 % intervals")
    write_record_table(study.folder / RECORDS, TABLE, list(record_rows(results)))
    content = as_json(study, results, comparisons, command, date, where)
    write_text(study.folder / "results.json", json.dumps(content, indent=1) + "\n")
    write_text(study.folder / "summary.md", as_markdown(study, results, comparisons, command, date, where, failures))
    return results


def as_markdown(
    study: Study,
    results: Results,
    comparisons: Sequence[Comparison],
    command: str,
    date: str,
    machine: str,
    failures: Sequence[str],
) -> str:
    from common.html import render

    arms = _measured_arms(study, results)
    return render(
        TEMPLATE,
        command=command,
        date=date,
        machine=machine,
        plan=study.plan,
        finished=len(results),
        figure=FIGURE,
        decoding=DECODING if (study.folder / DECODING).is_file() else "",
        words_table=_words_table(arms, results),
        acting_table=_acting_table(arms, results),
        group_table=_group_table(arms, results),
        spoken_table=_spoken_table(arms, results),
        comparisons=comparisons,
        comparison_table=_comparison_table(comparisons),
        control_lines=[f"{name}: {control}." for name, control in controls(study.plan.arms, results).items()],
        records=RECORDS,
        first_lines=[str(first) for first in first_steps(results)],
        cost_line=_cost_line(arms, results),
        failures=failures,
    )


def _measured_arms(study: Study, results: Results) -> dict[str, list[Run]]:
    arms = {arm: [run for run in runs if run in results] for arm, runs in study.plan.arms.items()}
    return {arm: runs for arm, runs in arms.items() if runs}


def _words_table(arms: Mapping[str, Sequence[Run]], results: Results) -> str:
    rows = []
    for runs in (runs for runs in arms.values() if runs[0].stage == 1):
        of_arm = [results[run] for run in runs]
        cells = [shown(metric.name, figure_of(metric.name, of_arm)) for metric in TEXT_METRICS]
        numbers = [f"{_number(of_arm, name):.3g}" for name in ("ms per answer", "tokens per forward")]
        rows.append([f"{runs[0].label}, {runs[0].words}", str(len(runs)), *cells, *numbers])
    head = ["objective, words", "seeds", "exact match", "nats per token", "error of a place", "use of the image"]
    return markdown_table([*head, "ms per answer", "tokens per forward"], rows)


def _acting_table(arms: Mapping[str, Sequence[Run]], results: Results) -> str:
    rows = []
    for runs in (runs for runs in arms.values() if runs[0].stage == 2):
        of_arm = [results[run] for run in runs]
        cells = [shown(metric.name, figure_of(metric.name, of_arm)) for metric in ACTION_METRICS]
        kept = [_kept(name, runs, results) for name in ("exact match", "nats per token")]
        rows.append([f"{runs[0].objective}: {title(runs[0])}", str(len(runs)), *cells, *kept])
    head = ["arm", "seeds", "success", "tasks in a row", "action MAE", "follows the task", "follows the colour"]
    return markdown_table([*head, "use of the image", "exact match kept", "nats kept"], rows)


def _kept(metric: str, runs: Sequence[Run], results: Results) -> str:
    after = figure_of(metric, [results[run] for run in runs])
    starts = [run.start for run in runs if run.start is not None]
    before = figure_of(metric, [results[start] for start in starts if start in results])
    if after is None or before is None:
        return "–"
    scale, unit = (100, " %") if metric_of(metric).unit == "share" else (1, "")
    digits = 0 if unit else 3
    return f"{scale * after.point:.{digits}f}{unit} ({scale * (after.point - before.point):+.{digits}f})"


def _group_table(arms: Mapping[str, Sequence[Run]], results: Results) -> str:
    acting = {arm: runs for arm, runs in arms.items() if runs[0].tasks == "all"}
    names = dict.fromkeys(n for runs in acting.values() for n in results[runs[0]].values if n.startswith(GROUP))
    rows = []
    for runs in acting.values():
        figures = [figure_of(name, [results[run] for run in runs]) for name in names]
        cells = ["–" if f is None else f"{100 * f.point:.0f} [{100 * f.low:.0f}, {100 * f.high:.0f}]" for f in figures]
        rows.append([f"{runs[0].objective}: {title(runs[0])}", *cells])
    return markdown_table(["arm", *(name.removeprefix(GROUP) for name in names)], rows) if rows else ""


def _spoken_table(arms: Mapping[str, Sequence[Run]], results: Results) -> str:
    rows = []
    for runs in (runs for runs in arms.values() if runs[0].acts_by_words):
        of_arm = [results[run] for run in runs]
        cells = [shown(name, figure_of(name, of_arm), sign=name == SPOKEN_LESS) for name in SPOKEN_FIGURES]
        forwards, *times = (
            _number(of_arm, name) for name in ("forwards per spoken chunk", *(f"ms per {way} chunk" for way in WAYS))
        )
        numbers = [forwards, 1000 * forwards / times[WAYS.index("spoken")], *times]
        outside = f"{100 * _number(of_arm, 'sentences outside the grammar'):.0f} %"
        rows.append([runs[0].objective, str(len(runs)), *cells, *(f"{number:.3g}" for number in numbers), outside])
    head = ["objective", "seeds", "regression head", "sentences", "difference", "forwards per sentence"]
    head += ["forwards per second", "ms per sentence", "ms per regressed chunk", "outside the grammar"]
    return markdown_table(head, rows) if rows else ""


def _comparison_table(comparisons: Sequence[Comparison]) -> str:
    rows = [
        [
            one.question,
            f"{one.pair.first} − {one.pair.second}",
            one.metric.name,
            str(one.runs),
            shown(one.metric.name, one.pair.difference.interval, sign=True),
            probability(one.pair.difference.probability),
            f"{one.pair.adjusted:.3f}",
            f"{100 * one.metric.margin:g} points" if one.metric.unit == "share" else f"{one.metric.margin:g}",
            one.verdict,
        ]
        for one in comparisons
    ]
    head = ["question", "difference", "in", "pairs of runs", "size", "P(above 0)", "p (Holm)", "margin", "answer"]
    return markdown_table(head, rows)


def shown(metric: str, interval: Interval | None, sign: bool = False) -> str:
    """Return a figure of a metric with its interval, in the unit of the metric."""
    if interval is None:
        return "–"
    unit = metric_of(metric).unit
    scale, digits = (100, 0) if unit == "share" else (1, 0 if unit == "mm" else 2 if unit == "tasks" else 3)
    plus = "+" if sign or (unit == "share" and metric.startswith(("follows", "image use"))) else ""
    point, low, high = (f"{scale * value:{plus}.{digits}f}" for value in (interval.point, interval.low, interval.high))
    return f"{point}{' %' if unit == 'share' and not plus else ''} [{low}, {high}]"


def _number(of_arm: Sequence[Measured], name: str) -> float:
    return float(np.mean([measured.numbers.get(name, float("nan")) for measured in of_arm]))


def _cost_line(arms: Mapping[str, Sequence[Run]], results: Results) -> str:
    """Return the samples per second of stage 1 by arm, as the runs logged them."""
    found = []
    for runs in (runs for runs in arms.values() if runs[0].stage == 1):
        rate = results[runs[0]].samples_per_s
        if rate is not None:
            found.append(f"{runs[0].label}, {runs[0].words} {rate:.3g}")
    return "samples per second before acting: " + ", ".join(found) if found else "not logged"


def first_steps(results: Results) -> list[FirstStep]:
    """Return the losses that the objective must not change: of stage 1 by seed, of stage 2 by model and data.

    Losses of one run alone are left out, as there is nothing to compare them with.
    """
    groups: dict[tuple[str, str], dict[str, float]] = {}
    for run, measured in results.items():
        start = run.start.name if run.start is not None else "no words"
        what = f"before acting, seed {run.seed}" if run.stage == 1 else f"{run.tasks} from {start}, seed {run.seed}"
        for loss, value in measured.first_step.items():
            groups.setdefault((loss, what), {})[run.name] = value
    return [FirstStep(loss, what, values) for (loss, what), values in groups.items() if len(values) > 1]


def as_json(
    study: Study, results: Results, comparisons: Sequence[Comparison], command: str, date: str, machine: str
) -> dict[str, object]:
    """Return the figures of the page as plain JSON values."""
    figures: dict[str, dict[str, object]] = {}
    for arm, runs in _measured_arms(study, results).items():
        of_arm = [results[run] for run in runs]
        found = {name: figure_of(name, of_arm) for name in of_arm[0].values}
        figures[arm] = {name: interval_json(figure) for name, figure in found.items() if figure is not None}
        figures[arm] |= {name: _number(of_arm, name) for name in of_arm[0].numbers} | {"seeds": [r.seed for r in runs]}
    pairs = [
        {"question": c.question, "first": c.pair.first, "second": c.pair.second, "metric": c.metric.name}
        | {"margin": c.metric.margin, "runs": c.runs, "answer": c.verdict, **c.pair.as_json()}
        for c in comparisons
    ]
    first = [asdict(one) | {"identical": one.identical} for one in first_steps(results)]
    about = {"command": command, "date": date, "machine": machine, "plan": study.plan.name}
    return {**about, "sizes": asdict(study.plan.sizes), "arms": figures, "comparisons": pairs, "first_step": first}

"""What was played, by whom and with what; and what became of every chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from policy_rollout.compare import Side
from policy_rollout.reporting.markup import Html, el, join, table
from policy_rollout.reports.results import FIGURES, Results, dotted


def settings_section(sides: Sequence[Side]) -> Html:
    """Every setting of every run, one column each; what is the same everywhere stands once."""
    runs = [run for side in sides for run in side.runs]
    names = [
        side.name if len(side.runs) == 1 else f"{side.name} {i + 1}" for side in sides for i in range(len(side.runs))
    ]
    told = [_provenance(run) for run in runs]
    keys = list(dict.fromkeys(key for of_run in told for key in of_run))
    rows = [[key, *(of_run.get(key, "–") for of_run in told)] for key in keys]
    if len(runs) == 1:
        body = table(["", ""], rows, "settings")
    else:
        same = [row for row in rows if len(set(row[1:])) == 1]
        other = [row for row in rows if len(set(row[1:])) > 1]
        body = join(
            [table(["differs", *names], other, "settings"), table(["the same", ""], [r[:2] for r in same], "settings")]
        )
    return join([el("h2", "Settings and versions"), body])


def _provenance(run: Results) -> dict[str, str]:
    """Settings, and whatever else the file tells beside its figures."""
    told: dict[str, str] = {}
    for name, value in run.content.items():
        if name in FIGURES:
            continue
        flat = dotted(value) if isinstance(value, Mapping) else {"": value}
        for key, one in flat.items():
            label = key if name == "settings" else f"{name}.{key}" if key else name
            told[label] = "–" if one is None else str(one)
    return told


def chains_section(sides: Sequence[Side]) -> Html:
    """Every chain, folded away."""
    columns = [(side.name, run) for side in sides for run in side.runs]
    records = [{chain.index: chain for chain in run.chains} for _, run in columns]
    rows = []
    for chain in columns[0][1].chains:
        done = [f"{of_run[chain.index].completed} of {len(chain.tasks)}" for of_run in records]
        steps = [", ".join(map(str, of_run[chain.index].steps)) for of_run in records]
        rows.append([str(chain.index), ", ".join(task.replace("_", " ") for task in chain.tasks), *done, *steps])
    several = len(columns) > 1
    head = ["chain", "tasks", *(f"done, {name}" if several else "done" for name, _ in columns)]
    head += [f"steps, {name}" if several else "steps" for name, _ in columns]
    return join([el("h2", "Every chain"), el("details", el("summary", f"{len(rows)} chains"), table(head, rows))])

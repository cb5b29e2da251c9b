"""The report of a desk evaluation: summary.md and results.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

from common.tables import interval_json, markdown_table, percent, points
from policy_rollout.desk.task_sets import TaskSet
from scripts.desk_evaluation.evaluation import EXPERTS, Outcome

WORLDS = {"desk": "on the desk", "calvin": "in the real CALVIN"}
Sensitivity = Mapping[str, tuple[float, float]]


def summary(
    outcomes: Sequence[Outcome], sensitivity: Sensitivity, tasks: TaskSet, folder: Path, where: str, command: str
) -> str:
    """Return the report as Markdown; the model is the first outcome. ``where``: the machine."""
    model, ensemble = outcomes[0], f", chunks averaged ({tasks.ensemble:g})" if tasks.ensemble is not None else ""
    head = [
        "policy",
        "tasks done",
        "success [95 %]",
        f"tasks in a row of {tasks.chain_length} [95 %]",
        "model ahead by",
    ]
    named = tasks.name.replace("_", " ") + (" tasks" if tasks.name == "all" else "")
    return "\n".join(
        [
            f"# A small model {WORLDS[tasks.environment]}: {named}",
            "",
            f"{datetime.now(timezone.utc):%Y-%m-%d}; {where}; `{command}`.",
            "",
            f"{len(model.done)} single tasks ({len(tasks.tasks)} in turn, scene {tasks.scene}, {tasks.max_steps} "
            f"control steps, replanned every {tasks.replan_every}{ensemble}), the same starts for all policies; "
            f"{len(model.chains)} chains of {tasks.chain_length} by CALVIN's rules. Wilson intervals for rates, "
            "bootstrap for lengths, paired bootstrap for how far the model is ahead (percentage points of success in "
            "the same episodes).",
            "",
            markdown_table(head, [_row(one, model, tasks) for one in outcomes]),
            "",
            *_task_table(outcomes, tasks),
            *_sensitivity_table(sensitivity),
            f"Model: `{folder.name}`; its configuration is config.yaml in its folder.",
            "",
        ]
    )


def _row(one: Outcome, model: Outcome, tasks: TaskSet) -> list[str]:
    length = one.length(tasks.chain_length)
    return [
        one.name,
        f"{sum(one.done)}/{len(one.done)}",
        percent(one.success),
        "–" if length is None else f"{length.point:.2f} [{length.low:.2f}, {length.high:.2f}]",
        "–" if one is model else points(one.behind(model)),
    ]


def _task_table(outcomes: Sequence[Outcome], tasks: TaskSet) -> list[str]:
    model = outcomes[0]
    columns = [one for one in outcomes if one is model or one.name.startswith(model.name) or one.name == EXPERTS]
    rows = [[task, *(percent(one.of_task(tasks, task)) for one in columns)] for task in tasks.tasks]
    return [markdown_table(["task", *(one.name for one in columns)], rows), ""]


def _sensitivity_table(sensitivity: Sensitivity) -> list[str]:
    if not sensitivity:
        return []
    rows = [[name, f"{change:.3f}", f"{size:.3f}"] for name, (change, size) in sensitivity.items()]
    return [
        "What the model's actions depend on: RMS change of a chunk (all numbers but the gripper's) if a part of the "
        "observation is exchanged, on frames of experts that are not evaluated.",
        "",
        markdown_table(["exchanged", "change", "RMS of the actions"], rows),
        "",
    ]


def results(outcomes: Sequence[Outcome], sensitivity: Sensitivity, tasks: TaskSet) -> dict[str, object]:
    """Return the report as JSON values."""
    return {
        "settings": {
            "task_set": tasks.name,
            "environment": tasks.environment,
            "scene": tasks.scene,
            "static_size": tasks.static_size,
            "tasks": list(tasks.tasks),
            "patience": tasks.max_steps,
            "replan_every": tasks.replan_every,
            "ensemble": tasks.ensemble,
            "chain_length": tasks.chain_length,
        },
        "policies": {
            one.name: {
                "success": interval_json(one.success),
                "done": one.done,
                "chains": one.chains,
                **({} if one.indices is None else {"episodes": one.indices}),
            }
            for one in outcomes
        },
        "sensitivity": {name: {"change": change, "rms": size} for name, (change, size) in sensitivity.items()},
    }

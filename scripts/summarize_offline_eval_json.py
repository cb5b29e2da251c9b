"""Print a Markdown table of several offline evaluations.

python scripts/summarize_offline_eval_json.py --inputs results/ar.json results/mdm.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.arguments import command_parser, path_argument
from common.command import report_errors, run_command
from common.files import write_text
from common.tables import markdown_table

DESCRIPTION = """\
Prints a Markdown table with one row for each file that eval_upvla_offline_actions.py wrote; --per-task adds a table of
one metric per task. Rows are named after their files."""

COLUMNS = {
    "samples": "samples",
    "steps": "steps",
    "mae_all": "MAE",
    "rmse_all": "RMSE",
    "mae_pos": "MAE position",
    "mae_rot": "MAE rotation",
    "mae_gripper": "MAE gripper",
    "gripper_sign_acc": "gripper sign",
}
OF_GROUPS = ("mae_pos", "mae_rot", "mae_gripper", "gripper_sign_acc")
"""Metrics that exist only if the action's layout names their group."""


def read(path: Path) -> dict[str, Any]:
    """Read a result file. Raises ``ValueError`` or ``FileNotFoundError`` if it lacks the metrics of a row."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from None
    overall = content.get("overall") if isinstance(content, dict) else None
    needed = [name for name in COLUMNS if name not in OF_GROUPS]
    missing = [name for name in needed if not isinstance(overall, dict) or name not in overall]
    if missing:
        raise ValueError(f"{path} is not an offline evaluation: overall.{missing[0]} is missing")
    return dict(content)


def overall_table(named: Sequence[tuple[str, dict[str, Any]]]) -> str:
    return markdown_table(
        ("evaluation", *COLUMNS.values()),
        [(name, *(_figure(content["overall"].get(key)) for key in COLUMNS)) for name, content in named],
    )


def task_table(named: Sequence[tuple[str, dict[str, Any]]], metric: str) -> str:
    """Return a table of ``metric`` by task, with a dash for a task without samples."""
    tasks = sorted({task for _, content in named for task in content.get("per_task", {})})
    rows = [
        (task, *(_figure(content.get("per_task", {}).get(task, {}).get(metric)) for _, content in named))
        for task in tasks
    ]
    return markdown_table((f"{COLUMNS[metric]} per task", *(name for name, _ in named)), rows)


COMPARABLE = ("dataset_root", "split", "start_only", "stride", "max_samples", "action_key", "clip_action")
"""Settings that must be equal: errors on other frames or other actions are not comparable."""


def differences(named: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """Return a note for every setting of ``COMPARABLE`` in which the evaluations differ."""
    notes = []
    for key in COMPARABLE:
        values = {name: content.get("settings", {}).get(key) for name, content in named}
        if len({json.dumps(value) for value in values.values()}) > 1:
            text = ", ".join(f"{value} in {name}" for name, value in values.items())
            notes.append(f"Note: {key} differs ({text}): these rows are not comparable.")
    return notes


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def names_of(paths: Sequence[Path]) -> list[str]:
    """Return file names without suffix, with their folder if two files share a name."""
    stems = [path.stem for path in paths]
    return [path.stem if stems.count(path.stem) == 1 else f"{path.parent.name}/{path.stem}" for path in paths]


def parser() -> argparse.ArgumentParser:
    made = command_parser(DESCRIPTION)
    made.add_argument("--inputs", type=path_argument, nargs="+", required=True, help="result files")
    made.add_argument("--per-task", choices=tuple(COLUMNS), metavar="METRIC", help=f"one of {', '.join(COLUMNS)}")
    made.add_argument("--output", type=path_argument, help="also write the table to this file")
    return made


@report_errors("summarize_offline_eval_json")
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    named = list(zip(names_of(options.inputs), map(read, options.inputs), strict=True))
    text = overall_table(named)
    if options.per_task:
        text += "\n\n" + task_table(named, options.per_task)
    text += "".join(f"\n\n{note}" for note in differences(named))
    print(text)
    if options.output is not None:
        write_text(options.output, text + "\n")
    return 0


if __name__ == "__main__":
    run_command(main)

"""The table over the runs of a sweep: what was changed, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.files import write_text
from config.sweep_run import LOG, name_of, read_record

METRICS = "metrics.jsonl"
SHOWN = (
    "total/loss",
    "image/loss",
    "action/loss",
    "text/loss",
    "text/nats_per_token",
    "validation/action/mae",
    "validation/text/nats_per_token",
)
"""Columns of the table, by the names that a run writes. Of text only ``nats_per_token`` is comparable between
objectives (docs/algorithm.md)."""


def write_table(folder: Path, names: Sequence[str], combinations: Sequence[Sequence[str]]) -> int:
    """Write `sweep.json` and `sweep.md` beside the runs and print the latter; returns how many runs failed."""
    rows = [row_of(folder / name, values) for name, values in zip(names, combinations, strict=True)]
    text = markdown(rows)
    write_text(folder / "sweep.json", json.dumps(rows, indent=1) + "\n")
    write_text(folder / "sweep.md", text)
    failed = [row for row in rows if row["state"] != "done"]
    print(f"\n{text}\n{len(rows) - len(failed)} of {len(rows)} runs done: {folder / 'sweep.md'}, sweep.json beside it")
    for row in failed:
        print(f"  {row['state']}: {Path(row['folder']) / LOG}{': ' + row['said'] if row['said'] else ''}")
    if failed:
        print("the same command again skips the finished runs and continues the others")
    return len(failed)


def row_of(folder: Path, values: Sequence[str]) -> dict[str, Any]:
    """One run: what it was given, how it ended, its last metrics."""
    record, last = read_record(folder), last_metrics(folder / METRICS)
    code = record.get("exit")
    return {
        "overrides": {value.partition("=")[0]: value.partition("=")[2] for value in values},
        "state": "done" if code == 0 else "not finished" if code is None else f"failed (exit {code})",
        "steps": int(last.pop("step", 0)),
        "seconds": record.get("seconds"),
        "metrics": last,
        "said": record.get("said", ""),
        "name": name_of(values),
        "folder": str(folder),
    }


def last_metrics(file: Path) -> dict[str, float]:
    """The last value of every number a run has told, and its last step."""
    found: dict[str, float] = {}
    if not file.is_file():
        return found
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # the half line of a killed run
            continue
        found |= {tag: value for tag, value in record.items() if isinstance(value, int | float)}
    return found


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Columns: the swept keys, the last losses, steps, seconds, state, folder."""
    keys = list(rows[0]["overrides"])
    tags = [tag for tag in SHOWN if any(tag in row["metrics"] for row in rows)]
    head = [*keys, *tags, "steps", "seconds", "state", "folder"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        numbers = [f"{row['metrics'][tag]:.4g}" if tag in row["metrics"] else "" for tag in tags]
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.0f}"
        cells = [*row["overrides"].values(), *numbers, str(row["steps"]), seconds, row["state"], row["name"]]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines) + "\n"

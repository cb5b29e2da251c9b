"""Records of an evaluation that several processes write and any of them may be killed in.

    <folder>/settings.json        what the records depend on; a folder holds the records of one such thing only
    <folder>/records/<rank>.jsonl one line for each finished chain, flushed
    <folder>/results.json         written by whoever finds that nothing is missing any more

No process waits for another: who finishes last sums up. Started again, an evaluation plays what is missing, with as
many processes as it likes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from policy_rollout.calvin.sequences import success_rates
from policy_rollout.chains import ChainRecord
from policy_rollout.statistics import Interval, bootstrap_mean, wilson


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make ``folder`` that of these settings. Raises ``ValueError`` where it has records of others."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "settings.json"
    mine = folder / f".settings-{os.getpid()}.tmp"
    mine.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    try:
        os.link(mine, file)  # of several processes exactly one succeeds, and the file is never half there
    except FileExistsError:
        theirs = json.loads(file.read_text(encoding="utf-8"))
        wanted = json.loads(json.dumps(settings))
        for name in sorted({*theirs, *wanted}):
            if theirs.get(name) != wanted.get(name):
                raise ValueError(
                    f"log_dir={folder} holds records made with {name}={theirs.get(name)}, now it is "
                    f"{wanted.get(name)}: records of both do not mix; choose another log_dir"
                ) from None
    finally:
        mine.unlink()


def append(folder: Path, rank: int, record: ChainRecord) -> None:
    file = folder / "records" / f"{rank}.jsonl"
    file.parent.mkdir(exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(asdict(record)) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def read(folder: Path) -> dict[int, ChainRecord]:
    """All records by the chain's index; a line that a kill cut off is left out."""
    found: dict[int, ChainRecord] = {}
    for file in sorted((folder / "records").glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            found[row["index"]] = ChainRecord(row["index"], tuple(row["tasks"]), row["completed"], tuple(row["steps"]))
    return found


def write_results(folder: Path, records: Sequence[ChainRecord], settings: Mapping[str, Any]) -> dict[str, Any]:
    """``results.json``, whole or not at all: average chain length, success of 1/5 .. 5/5, every task, every chain."""
    completed = [record.completed for record in records]
    length = max(len(record.tasks) for record in records)
    results: dict[str, Any] = {
        "num_sequences": len(records),
        "average_length": _interval(bootstrap_mean(completed)),
        "success_rates": [
            {"tasks": i, **_interval(wilson(sum(done >= i for done in completed), len(completed)))}
            for i in range(1, length + 1)
        ],
        "per_task": _per_task(records),
        "settings": dict(settings),
        "records": [asdict(record) for record in records],
    }
    assert abs(sum(success_rates(completed, length)) - results["average_length"]["value"]) < 1e-9
    unfinished = folder / f".results-{os.getpid()}.tmp"
    unfinished.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, folder / "results.json")
    return results


def _per_task(records: Sequence[ChainRecord]) -> dict[str, dict[str, float]]:
    """Of every task that was begun: how often, and how often it was done."""
    outcomes: dict[str, list[bool]] = {}
    for record in records:
        for place in range(len(record.steps)):
            outcomes.setdefault(record.tasks[place], []).append(place < record.completed)
    return {
        task: {"tried": len(done), **_interval(wilson(sum(done), len(done)))} for task, done in sorted(outcomes.items())
    }


def _interval(interval: Interval) -> dict[str, float]:
    return {"value": interval.point, "low": interval.low, "high": interval.high}

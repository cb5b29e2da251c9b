"""Records of an evaluation that several processes write and any of them may be killed in.

    <folder>/settings.json        what the records depend on; a folder holds the records of one such thing only
    <folder>/records/<name>.jsonl one line for each finished chain, flushed; each process has a file of its own, so that
                                  nobody writes behind a line that a kill cut off
    <folder>/results.json         written when nothing is missing any more

Started again, an evaluation plays what is missing, with as many processes as it likes.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.files import remove, write_json
from policy_rollout.calvin.sequences import success_rates
from policy_rollout.closed_loop.env_slot import ChainRecord
from policy_rollout.intervals import Interval, average_length, wilson


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make ``folder`` that of these settings. Raises ``ValueError`` where it has records of others."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "settings.json"
    mine = folder / f".settings-{_own_name()}.tmp"
    mine.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    try:
        os.link(mine, file)  # of several processes exactly one succeeds, and the file is never half there
    except FileExistsError:
        require_same(folder, settings_of(folder), json.loads(json.dumps(settings)))
    finally:
        remove(mine)


def _own_name() -> str:
    """Of no other process: the numbers of processes on two machines, or in two containers, may be the same."""
    return f"{os.getpid()}-{secrets.token_hex(4)}"


def settings_of(folder: Path) -> dict[str, Any]:
    """What the records of ``folder`` were made with. Raises ``FileNotFoundError`` where it has none."""
    file = folder / "settings.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} is no folder of an evaluation: it has no settings.json")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def require_same(folder: Path, theirs: Mapping[str, Any], wanted: Mapping[str, Any], path: str = "") -> None:
    """Raises ``ValueError`` naming the first setting in which ``wanted`` differs from those of ``folder``."""
    for name in sorted({*theirs, *wanted}):
        old, new = theirs.get(name), wanted.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            require_same(folder, old, new, f"{path}{name}.")
        elif old != new:
            raise ValueError(
                f"log_dir={folder} holds records made with {path}{name}={old}, now it is {new}: records of both do not "
                "mix; choose another log_dir"
            )


def append(folder: Path, name: str, record: ChainRecord) -> None:
    """One more line in the file of the process that is called ``name``; on the disk when this returns."""
    file = folder / "records" / f"{name}.jsonl"
    file.parent.mkdir(exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(asdict(record)) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def read(folder: Path) -> dict[int, ChainRecord]:
    """All records by the chain's index. A last line without its end, which a kill cut off, is left out; a chain that
    was played twice counts once, as the lesser of the two where they differ (docs/evaluation.md).

    Raises ``ValueError`` naming file and line where anything else cannot be read."""
    found: dict[int, ChainRecord] = {}
    for file in sorted((folder / "records").glob("*.jsonl")):
        whole, _, _ = file.read_text(encoding="utf-8", errors="replace").rpartition("\n")
        for number, line in enumerate(whole.split("\n") if whole else [], start=1):
            record = _parse(line, file, number)
            known = found.get(record.index, record)
            if known.tasks != record.tasks:
                raise ValueError(f"{file}, line {number}: chain {record.index} has other tasks than in another record")
            found[record.index] = min(known, record, key=lambda r: (r.completed, r.steps))
    return found


def chain_of(row: Mapping[str, Any]) -> ChainRecord:
    """A record as it was written. Raises ``KeyError``, ``TypeError`` or ``ValueError`` where it is none, or one that no
    chain can have."""
    chain = ChainRecord(
        int(row["index"]), tuple(map(str, row["tasks"])), int(row["completed"]), tuple(map(int, row["steps"]))
    )
    if chain.index < 0 or not 0 <= chain.completed <= len(chain.steps) <= len(chain.tasks):
        raise ValueError(f"chain {chain.index} says {chain.completed} of {len(chain.tasks)} tasks in {chain.steps}")
    return chain


def _parse(line: str, file: Path, number: int) -> ChainRecord:
    try:
        record = chain_of(json.loads(line))
    except (json.JSONDecodeError, KeyError, TypeError, ValueError):
        raise ValueError(
            f"{file}, line {number} is no record of a chain: {line[:80]!r}; remove the line, and the chain is played "
            "again"
        ) from None
    return record


def merge(folders: Sequence[Path], into: Path) -> dict[int, ChainRecord]:
    """The records of several folders in one, which counts every chain once however often it is done. Raises
    ``ValueError`` naming the setting in which two of them differ."""
    for folder in folders:
        require_same(folders[0], settings_of(folders[0]), settings_of(folder))
    claim(into, settings_of(folders[0]))
    known = read(into)
    for i, folder in enumerate(folders):
        for record in read(folder).values():
            if known.get(record.index) != record:
                append(into, f"merged-{i}", record)
        known = read(into)
    return known


def write_results(
    folder: Path, records: Sequence[ChainRecord], settings: Mapping[str, Any], **more: Any
) -> dict[str, Any]:
    """``results.json``, whole or not at all: average chain length, success of 1/5 .. 5/5, every task, every chain."""
    completed = [record.completed for record in records]
    length = max(len(record.tasks) for record in records)
    results: dict[str, Any] = {
        "num_sequences": len(records),
        "average_length": _interval(average_length(completed, length)),
        "success_rates": [
            {"tasks": i, **_interval(wilson(sum(done >= i for done in completed), len(completed)))}
            for i in range(1, length + 1)
        ],
        "per_task": _per_task(records),
        "settings": dict(settings),
        **more,
        "records": [asdict(record) for record in records],
    }
    assert abs(sum(success_rates(completed, length)) - results["average_length"]["value"]) < 1e-9
    write_json(folder / "results.json", results)
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

"""Records of an evaluation that several processes write and any of which may be killed.

    <folder>/settings.json        what the records depend on; all records of a folder have the same
    <folder>/records/<name>.jsonl one line for each finished chain, flushed; each process has its own file, so that no
                                  process appends to a line that a kill truncated
    <folder>/results.json         written when every chain has a record

An evaluation that is started again runs the missing chains, with any number of processes.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from common.files import read_object, remove, write_json
from common.statistics import Interval, average_length, wilson
from policy_rollout.calvin.sequences import success_rates
from policy_rollout.closed_loop.interface import ChainRecord

RESULTS_FILE = "results.json"


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make ``folder`` with these settings. Raises ``ValueError`` if it has records made with others."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "settings.json"
    mine = folder / f".settings-{os.getpid()}-{secrets.token_hex(4)}.tmp"  # process ids of two containers may be equal
    mine.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    try:
        os.link(mine, file)  # exactly one of several processes succeeds, and the file is never incomplete
    except FileExistsError:
        require_same(folder, settings_of(folder), json.loads(json.dumps(settings)))
    finally:
        remove(mine)


def settings_of(folder: Path) -> dict[str, Any]:
    """Return the settings of a folder's records. Raises ``FileNotFoundError`` if it has none."""
    file = folder / "settings.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} is no folder of an evaluation: it has no settings.json")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def require_same(folder: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any], path: str = "") -> None:
    """Raise ``ValueError`` naming the first setting in which ``ours`` differ from those of ``folder``."""
    for name in sorted({*theirs, *ours}):
        old, new = theirs.get(name), ours.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            require_same(folder, old, new, f"{path}{name}.")
        elif old != new:
            raise ValueError(
                f"log_dir={folder} holds records made with {path}{name}={old}, now it is {new}: records of both do not "
                "mix; choose another log_dir"
            )


def append(folder: Path, name: str, record: ChainRecord) -> None:
    """Append a record to the file of process ``name``; it is on disk when this returns."""
    file = folder / "records" / f"{name}.jsonl"
    file.parent.mkdir(exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(asdict(record)) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def read(folder: Path) -> dict[int, ChainRecord]:
    """Return all records by the chain's index.

    A last line without a newline, which a kill truncated, is skipped. A chain that was run twice counts once, with the
    lower of two different outcomes (docs/evaluation.md). Raises ``ValueError`` naming file and line for any other line
    that cannot be read.
    """
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
    """Return a record from its JSON. Raises ``KeyError``, ``TypeError`` or ``ValueError`` for an impossible one."""
    chain = ChainRecord(
        int(row["index"]), tuple(map(str, row["tasks"])), int(row["completed"]), tuple(map(int, row["steps"]))
    )
    if chain.index < 0 or not 0 <= chain.completed <= len(chain.steps) <= len(chain.tasks):
        raise ValueError(f"chain {chain.index} has {chain.completed} of {len(chain.tasks)} tasks done in {chain.steps}")
    return chain


def attempts(chain: ChainRecord) -> list[tuple[str, bool, int]]:
    """Return (task, done, control steps) of every task that was started."""
    return [(chain.tasks[i], i < chain.completed, steps) for i, steps in enumerate(chain.steps)]


def _parse(line: str, file: Path, number: int) -> ChainRecord:
    try:
        return chain_of(json.loads(line))
    except (json.JSONDecodeError, KeyError, TypeError, ValueError):
        raise ValueError(
            f"{file}, line {number} is no record of a chain: {line[:80]!r}; remove the line, and the chain is run again"
        ) from None


def merge(folders: Sequence[Path], into: Path) -> dict[int, ChainRecord]:
    """Copy the records of several folders into one and return them. Merging twice gives the same records.

    Raises ``ValueError`` naming the setting in which two folders differ.
    """
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


def merge_results(folders: Sequence[Path], into: Path) -> str:
    """Merge the records of several folders, write the results if no chain is missing, and return a summary."""
    found = merge(folders, into)
    if not found:
        raise ValueError(f"no record of a chain in {', '.join(map(str, folders))}")
    missing = sorted(set(range(max(found) + 1)) - set(found))
    if missing:
        some = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        return (
            f"{len(found)} chains in {into}; {len(missing)} before the last are missing ({some}): an evaluation with "
            f"log_dir={into} runs them"
        )
    chains = [found[index] for index in sorted(found)]
    results = write_results(into, chains, settings_of(into), **_policy_from([*folders, into]))
    mean = results["average_length"]
    return (
        f"average length {mean['value']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}] over {len(found)} chains; "
        f"results in {into / RESULTS_FILE}"
    )


def _policy_from(folders: Sequence[Path]) -> dict[str, Any]:
    """Return ``policy_from`` of the folders' first results, with the cut instructions of all of them."""
    contents = [read_object(file) for folder in folders if (file := folder / RESULTS_FILE).is_file()]
    found = [policy for content in contents if isinstance(policy := content.get("policy_from"), Mapping)]
    cut = dict.fromkeys(text for policy in found for text in policy.get("cut_instructions", ()))
    return {"policy_from": {**found[0], "cut_instructions": list(cut)}} if found else {}


def write_results(
    folder: Path, records: Sequence[ChainRecord], settings: Mapping[str, Any], **extra: Any
) -> dict[str, Any]:
    """Write ``results.json`` and return it: average length, success of 1/5 .. 5/5, every task, every chain, the day."""
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
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d}",
        **extra,
        "records": [asdict(record) for record in records],
    }
    assert abs(sum(success_rates(completed, length)) - results["average_length"]["value"]) < 1e-9
    write_json(folder / RESULTS_FILE, results)
    return results


def _per_task(records: Sequence[ChainRecord]) -> dict[str, dict[str, float]]:
    """Return for every task that was started how often it was tried, and its success rate."""
    outcomes: dict[str, list[bool]] = {}
    for record in records:
        for task, done, _ in attempts(record):
            outcomes.setdefault(task, []).append(done)
    return {
        task: {"tried": len(done), **_interval(wilson(sum(done), len(done)))} for task, done in sorted(outcomes.items())
    }


def _interval(interval: Interval) -> dict[str, float]:
    return {"value": interval.point, "low": interval.low, "high": interval.high}

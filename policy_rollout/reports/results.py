"""What a closed-loop evaluation left behind (``results.json``, written by ``records.py``), read for people: reports and
comparisons. Imports no torch, so that looking at results takes no time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.text import shortened
from policy_rollout import intervals
from policy_rollout.closed_loop.env_slot import ChainRecord
from policy_rollout.closed_loop.records import chain_of
from policy_rollout.intervals import Interval, bootstrap_runs, wilson

FILE = "results.json"
PLAYER = ("checkpoint", "model", "weights", "image_tokenizer", "policy", "action_decoder", "precision", "num_sequences")
"""How the names of settings begin that say who played, and how many chains; all others say what was played."""


def attempts(chain: ChainRecord) -> list[tuple[str, bool, int]]:
    """(task, was it done, its control steps) of every task that was begun."""
    return [(chain.tasks[place], place < chain.completed, steps) for place, steps in enumerate(chain.steps)]


FIGURES = ("num_sequences", "average_length", "success_rates", "per_task", "records")
"""What a file tells beside settings and the like."""


@dataclass(frozen=True)
class Results:
    """One evaluation. ``content``: the file, whole; ``chains`` by their index."""

    file: Path
    content: Mapping[str, Any]
    chains: tuple[ChainRecord, ...]

    @property
    def folder(self) -> Path:
        return self.file.parent

    @property
    def settings(self) -> Mapping[str, Any]:
        found = self.content.get("settings", {})
        return found if isinstance(found, Mapping) else {}

    @property
    def played(self) -> dict[str, Any]:
        """The settings that say what was played, without those that say who did: dotted name -> value."""
        return {name: value for name, value in dotted(self.settings).items() if not name.startswith(PLAYER)}

    @property
    def cut_instructions(self) -> list[str]:
        """Instructions that were longer than the policy reads."""
        found = self.content.get("policy_from")
        return list(found.get("cut_instructions", ())) if isinstance(found, Mapping) else []

    def cut_note(self) -> str | None:
        """Return a sentence about the instructions that were cut; None if none was."""
        if not (cut := self.cut_instructions):
            return None
        return (
            f"{self.file}: the policy read {len(cut)} instructions cut to dataset.preprocessing.max_seq_length, such "
            f"as {shortened(cut[0])}"
        )

    @property
    def length(self) -> int:
        return max(len(chain.tasks) for chain in self.chains)

    def completed(self) -> NDArray[np.float64]:
        """[chains]: tasks done in each."""
        return np.array([chain.completed for chain in self.chains], dtype=np.float64)

    def per_task(self) -> dict[str, tuple[int, int]]:
        """Of every task that was begun: (how often it was done, how often it was begun)."""
        counts: dict[str, tuple[int, int]] = {}
        for chain in self.chains:
            for task, done, _ in attempts(chain):
                before = counts.get(task, (0, 0))
                counts[task] = (before[0] + done, before[1] + 1)
        return dict(sorted(counts.items()))


def dotted(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level: benchmark.renderer -> its value."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= dotted(value, f"{prefix}{name}.")
        else:
            flat[prefix + str(name)] = value
    return flat


def read_results(path: Path) -> Results:
    """Of ``results.json`` or the folder that holds it. Raises ``ValueError`` or ``FileNotFoundError`` in one line."""
    file = path / FILE if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        unfinished = (path / "records").is_dir()
        hint = "its evaluation has not finished; start it again, it goes on where it was" if unfinished else (
            "give a results.json of calvin_evaluate_upvla, or its log_dir"
        )  # fmt: skip
        raise FileNotFoundError(f"{file} does not exist: {hint}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not readable JSON: {error}") from None
    try:
        chains = tuple(sorted((chain_of(row) for row in content["records"]), key=lambda chain: chain.index))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file} is no result of a closed loop: {_told(error)}") from None
    if not chains:
        raise ValueError(f"{file} has no chain")
    for one, other in pairwise(chains):
        if one.index == other.index:
            raise ValueError(f"{file} has chain {one.index} twice")
    return Results(file, content, chains)


def _told(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


# --- figures ---------------------------------------------------------------------------------------------------------


def average_length(runs: Sequence[Results]) -> Interval:
    """Tasks done per chain, of one evaluation or of several (seeds) on the same chains."""
    done = np.stack([run.completed() for run in runs])
    if len(runs) == 1 or (done == done[0, 0]).all():
        return intervals.average_length(done[0], runs[0].length)
    return bootstrap_runs(done)


def success_rates(runs: Sequence[Results]) -> list[Interval]:
    """Share of chains with at least 1, 2, ... tasks done."""
    found = []
    for least in range(1, runs[0].length + 1):
        done = np.stack([run.completed() >= least for run in runs])
        found.append(wilson(int(done.sum()), done.size) if len(runs) == 1 else bootstrap_runs(done))
    return found


def task_counts(runs: Sequence[Results]) -> dict[str, tuple[int, int]]:
    """``Results.per_task`` of several evaluations together."""
    total: dict[str, tuple[int, int]] = {}
    for run in runs:
        for task, (done, tried) in run.per_task().items():
            before = total.get(task, (0, 0))
            total[task] = (before[0] + done, before[1] + tried)
    return dict(sorted(total.items()))


def names_of(files: Sequence[Path]) -> list[str]:
    """Short names that tell results apart: the folder's; with as many of its parents as it takes; numbered where even
    whole paths agree."""
    folders = [(file.parent if file.name == FILE else file.with_suffix("")).resolve().parts for file in files]
    for depth in range(1, max(map(len, folders)) + 1):
        names = ["/".join(parts[-depth:]) for parts in folders]
        if len(set(names)) == len(names):
            return names
    return [f"{parts[-1]} #{number}" for number, parts in enumerate(folders, start=1)]

"""Read the results of closed-loop evaluations (``results.json``) for reports and comparisons. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import statistics
from common.constants import CALVIN_MAX_STEPS
from common.files import read_json
from common.statistics import Interval, mean_of_runs, wilson
from common.text import shortened
from policy_rollout.closed_loop.interface import ChainRecord
from policy_rollout.closed_loop.records import RESULTS_FILE, chain_of
from policy_rollout.closed_loop.records import attempts as attempts

PLAYER = ("checkpoint", "model", "weights", "image_tokenizer", "policy", "action_decoder", "precision", "num_sequences")
"""Prefixes of the settings of the policy, and the number of chains; all other settings are of the benchmark."""
FIGURES = ("num_sequences", "average_length", "success_rates", "per_task", "date", "records")
"""The keys of a results file that are no settings."""


@dataclass(frozen=True)
class Results:
    """One evaluation. ``content``: the whole file; ``chains``: in the order of their index."""

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
    def environment(self) -> str:
        """The environment, for a title. The desk is no benchmark of CALVIN, and the title has to state it."""
        benchmark = self.settings.get("benchmark")
        stamp = benchmark if isinstance(benchmark, Mapping) else {}
        scene = f", scene {stamp['scene']}" if "scene" in stamp else ""
        return {"desk": f"Desk{scene} (not CALVIN)", "calvin": f"CALVIN simulator{scene}"}.get(
            str(stamp.get("name")), "Environment not recorded"
        )

    @property
    def policy(self) -> str:
        """The checkpoint as its last two folders."""
        origin = self.content.get("policy_from")
        checkpoint = origin.get("checkpoint") if isinstance(origin, Mapping) else None
        return f"policy {'/'.join(Path(str(checkpoint)).parts[-2:])}" if checkpoint else "policy not recorded"

    @property
    def step_limit(self) -> str:
        """The limit of a task."""
        limit = self.settings.get("ep_len")
        if limit is None:
            return "step limit not recorded"
        protocol = "" if limit == CALVIN_MAX_STEPS else f", not CALVIN's {CALVIN_MAX_STEPS}"
        return f"{limit} control steps per task{protocol}"

    @property
    def date(self) -> str:
        """The day of the results; that of the file if they do not have one."""
        found = self.content.get("date")
        return str(found) if found else f"{datetime.fromtimestamp(self.file.stat().st_mtime):%Y-%m-%d}"

    @property
    def conditions(self) -> list[str]:
        """What was evaluated besides the environment: policy, step limit, number of chains, date."""
        return [self.policy, self.step_limit, f"{len(self.chains)} chains", self.date]

    @property
    def benchmark_settings(self) -> dict[str, Any]:
        """The settings of the benchmark, without those of the policy: dotted name -> value."""
        return benchmark_settings(self.settings)

    @property
    def cut_instructions(self) -> list[str]:
        """Instructions that the policy cut because of their length."""
        found = self.content.get("policy_from")
        return list(found.get("cut_instructions", ())) if isinstance(found, Mapping) else []

    def cut_note(self) -> str | None:
        """Return a note about the cut instructions; None if there are none."""
        if not (cut := self.cut_instructions):
            return None
        return (
            f"{self.file}: the policy read {len(cut)} instructions cut to dataset.preprocessing.max_seq_length, such "
            f"as {shortened(cut[0])}"
        )

    @property
    def length(self) -> int:
        """Tasks per chain."""
        return max(len(chain.tasks) for chain in self.chains)

    def completed(self) -> NDArray[np.float64]:
        """Return the number of tasks done in each chain, [chains]."""
        return np.array([chain.completed for chain in self.chains], dtype=np.float64)

    def per_task(self) -> dict[str, tuple[int, int]]:
        """Return (number of successes, number of attempts) of every task that was started."""
        outcomes = sorted((task, done) for chain in self.chains for task, done, _ in attempts(chain))
        tried, succeeded = Counter(task for task, _ in outcomes), Counter(task for task, done in outcomes if done)
        return {task: (succeeded[task], count) for task, count in tried.items()}


def benchmark_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of records without those of the policy: dotted name -> value."""
    return {name: value for name, value in dotted(settings).items() if not name.startswith(PLAYER)}


def dotted(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one level: benchmark.renderer -> its value."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= dotted(value, f"{prefix}{name}.")
        else:
            flat[prefix + str(name)] = value
    return flat


def read_results(path: Path) -> Results:
    """Read ``results.json``, or that of a folder. Raises ``ValueError`` or ``FileNotFoundError`` in one line."""
    file = path / RESULTS_FILE if path.is_dir() else path
    incomplete = (path / "records").is_dir()
    hint = "its evaluation has not finished; start it again to continue" if incomplete else (
        "give a results.json of calvin_evaluate_upvla, or its log_dir"
    )  # fmt: skip
    content = read_json(file, hint)
    try:
        chains = tuple(sorted((chain_of(row) for row in content["records"]), key=lambda chain: chain.index))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file} is no result of a closed-loop evaluation: {_describe(error)}") from None
    if not chains:
        raise ValueError(f"{file} has no chain")
    for one, other in pairwise(chains):
        if one.index == other.index:
            raise ValueError(f"{file} has chain {one.index} twice")
    return Results(file, content, chains)


def _describe(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


# --- figures ---------------------------------------------------------------------------------------------------------


def average_length(runs: Sequence[Results]) -> Interval:
    """Return the tasks done per chain, of one evaluation or of several (seeds) on the same chains."""
    done = np.stack([run.completed() for run in runs])
    if len(runs) == 1 or (done == done[0, 0]).all():
        return statistics.average_length(done[0], runs[0].length)
    return mean_of_runs(done, limits=(0, runs[0].length))


def success_rates(runs: Sequence[Results]) -> list[Interval]:
    """Return the fraction of chains with at least 1, 2, ... tasks done."""
    found = []
    for count in range(1, runs[0].length + 1):
        done = np.stack([run.completed() >= count for run in runs])
        alike = len(runs) == 1 or (done == done[0, 0]).all()  # a chain then counts once: runs are no new chains
        found.append(wilson(int(done[0].sum()), done.shape[1]) if alike else mean_of_runs(done, limits=(0, 1)))
    return found


def task_counts(runs: Sequence[Results]) -> dict[str, tuple[int, int]]:
    """Return the sums of ``Results.per_task`` over several evaluations."""
    counts = [run.per_task() for run in runs]
    tasks = sorted({task for of_run in counts for task in of_run})
    pairs = {task: [of_run.get(task, (0, 0)) for of_run in counts] for task in tasks}
    return {task: (sum(done for done, _ in found), sum(tried for _, tried in found)) for task, found in pairs.items()}


def names_of(files: Sequence[Path]) -> list[str]:
    """Return short distinct names: the folder's, with parents as necessary; numbered if whole paths are equal."""
    folders = [(file.parent if file.name == RESULTS_FILE else file.with_suffix("")).resolve().parts for file in files]
    for depth in range(1, max(map(len, folders)) + 1):
        names = ["/".join(parts[-depth:]) for parts in folders]
        if len(set(names)) == len(names):
            return names
    return [f"{parts[-1]} #{number}" for number, parts in enumerate(folders, start=1)]

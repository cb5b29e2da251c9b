"""The chains of a benchmark, played by whoever takes part until none is missing. Loads no network."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from policy_rollout.closed_loop import records
from policy_rollout.closed_loop.progress import Progress
from policy_rollout.closed_loop.recorder import Recorder
from policy_rollout.closed_loop.runner import MAX_STEPS, Arena, ChainJob, ChainRecord, run_chains
from policy_rollout.closed_loop.work_queue import Owner
from policy_rollout.policies.interface import Policy

PAUSE = 1.0
"""Seconds between two looks at whether the chains that others play are recorded."""


@dataclass(frozen=True)
class RolloutSettings:
    """How chains are played; see ``run_chains``. The first three decide outcomes."""

    max_steps: int = MAX_STEPS
    replan_every: int | None = None
    ensemble: float | None = None
    parallel: int = 8
    workers: int = 0


def run_distributed(
    folder: Path,
    world: Arena,
    policy: Policy,
    jobs: Sequence[ChainJob],
    manner: RolloutSettings,
    progress: Progress,
    recorder: Recorder | None = None,
    processes: int = 1,
    **more: Mapping[str, Any],
) -> dict[str, Any]:
    """Play chains that nobody else in ``folder`` has taken, wait for those that others have, take over from the dead,
    and write the results, with ``more`` in them. Returns them. ``folder`` has been claimed for these settings
    (``records.claim``). ``processes``: how many take part; none of them has more than its share of the missing chains
    at a time, so that the others get some where there are fewer chains than environments."""
    _recorded(folder, jobs)
    with progress, Owner(folder) as owner:

        def finished(record: ChainRecord) -> None:
            records.append(folder, owner.name, record)
            progress.heard(record)

        while missing := progress.missing():
            share = -(-len(missing) // processes)
            run_chains(
                world,
                policy,
                owner.take(missing, lambda index: index in records.read(folder)),
                finished,
                recorder=recorder,
                **vars(replace(manner, parallel=min(manner.parallel, share))),
            )
            if progress.missing():
                time.sleep(PAUSE)  # others still play
        results = records.write_results(folder, _recorded(folder, jobs), records.settings_of(folder), **more)
        progress.tell(results)
    return results


def _recorded(folder: Path, jobs: Sequence[ChainJob]) -> list[ChainRecord]:
    """What became of the chains so far. Raises ``ValueError`` where a record is of another chain than these."""
    done = records.read(folder)
    for job in jobs:
        if job.index in done and done[job.index].tasks != job.tasks:
            raise ValueError(
                f"{folder}: chain {job.index} was recorded as {', '.join(done[job.index].tasks)}, now it is "
                f"{', '.join(job.tasks)}; choose another log_dir"
            )
    return [done[job.index] for job in jobs if job.index in done]

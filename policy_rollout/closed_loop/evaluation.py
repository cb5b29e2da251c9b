"""The chains of a benchmark, run by any number of processes until every chain has a record. Loads no network."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.constants import CALVIN_MAX_STEPS
from policy_rollout.closed_loop import records
from policy_rollout.closed_loop.interface import ChainJob, ChainRecord, EnvFactory, Recorder
from policy_rollout.closed_loop.progress import Progress
from policy_rollout.closed_loop.runner import run_chains
from policy_rollout.closed_loop.stopping import EarlyStop
from policy_rollout.closed_loop.work_queue import Worker
from policy_rollout.policies.interface import Policy

POLL_SECONDS = 1.0
"""Seconds between two checks for the records of other processes."""


@dataclass(frozen=True)
class RolloutSettings:
    """How chains are run; see ``run_chains``. The first three change outcomes."""

    max_steps: int = CALVIN_MAX_STEPS
    replan_every: int | None = None
    ensemble: float | None = None
    parallel: int = 8
    workers: int = 0


def run_distributed(
    folder: Path,
    factory: EnvFactory,
    policy: Policy,
    jobs: Sequence[ChainJob],
    settings: RolloutSettings,
    progress: Progress,
    recorder: Recorder | None = None,
    processes: int = 1,
    stop: EarlyStop | None = None,
    **extra: Mapping[str, Any],
) -> dict[str, Any]:
    """Run the chains of ``jobs`` that no other process of ``folder`` has claimed, and wait for the others.

    Claims the chains of processes that died. Writes the results, with ``extra`` in them, and returns them. ``folder``
    has to be claimed for the settings (``records.claim``). ``processes``: number of processes that take part; none runs
    more than its share of the missing chains at a time, so that all have work if there are few chains. ``stop``: no
    chain is started after its decision.
    """
    _recorded(folder, jobs)
    with progress, Worker(folder) as worker:

        def on_record(record: ChainRecord) -> None:
            records.append(folder, worker.name, record)
            progress.add(record)

        def is_decided() -> bool:
            return stop is not None and stop.is_decided(records.read(folder))

        def claims(missing: Sequence[ChainJob]) -> Iterator[ChainJob]:
            found = worker.claim(missing, lambda index: index in records.read(folder))
            while not is_decided() and (job := next(found, None)) is not None:
                yield job

        while (missing := progress.missing()) and not is_decided():
            share = -(-len(missing) // processes)
            run_chains(
                factory,
                policy,
                claims(missing),
                on_record,
                recorder=recorder,
                **vars(replace(settings, parallel=min(settings.parallel, share))),
            )
            if progress.missing() and not is_decided():
                time.sleep(POLL_SECONDS)
        if stop is not None:
            extra = {**extra, "sequential": stop.as_json()}
        results = records.write_results(folder, _recorded(folder, jobs), records.settings_of(folder), **extra)
        progress.report(results)
    return results


def _recorded(folder: Path, jobs: Sequence[ChainJob]) -> list[ChainRecord]:
    """Return the records so far. Raises ``ValueError`` if a record has other tasks than the job of its index."""
    done = records.read(folder)
    for job in jobs:
        if job.index in done and done[job.index].tasks != job.tasks:
            raise ValueError(
                f"{folder}: chain {job.index} was recorded as {', '.join(done[job.index].tasks)}, now it is "
                f"{', '.join(job.tasks)}; choose another log_dir"
            )
    return [done[job.index] for job in jobs if job.index in done]

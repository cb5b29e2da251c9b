"""Progress of an evaluation: a progress bar, wandb, and a summary at the end."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from common.command import progress_bar
from policy_rollout.closed_loop import records
from policy_rollout.closed_loop.interface import ChainJob, ChainRecord

REFRESH_SECONDS = 5.0
"""Seconds between two reads of the records of other processes."""


def require_wandb() -> None:
    """Raise ``ValueError`` if wandb is not installed."""
    if importlib.util.find_spec("wandb") is None:
        raise ValueError("log_wandb=true: the package wandb is not installed (pip install wandb)")


class Progress:
    """Progress over ``jobs``, from the records of all processes in ``folder``. Only process 0 (``rank``) prints.

    ``wandb_config``: the config of the wandb run; None: do not log to wandb.
    """

    def __init__(
        self, folder: Path, jobs: Sequence[ChainJob], rank: int = 0, wandb_config: Mapping[str, Any] | None = None
    ) -> None:
        self._folder, self._jobs, self._rank, self._config = folder, jobs, rank, wandb_config
        self._wandb: Any = None

    def __enter__(self) -> Progress:
        self._read_records()
        self._done_before, self._started = len(self._done), time.monotonic()
        self._bar = progress_bar(
            total=len(self._jobs), initial=self._done_before, desc="chains", unit="chain", disable=self._rank != 0
        )
        if self._config is not None and self._rank == 0:
            import wandb

            self._wandb = wandb.init(
                project="blockdiff-vla", job_type="closed loop", name=self._folder.name, config=dict(self._config)
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=int(kind is not None))

    def add(self, record: ChainRecord) -> None:
        """Add the record of a chain that this process has finished."""
        self._done[record.index] = record
        if time.monotonic() - self._read_at > REFRESH_SECONDS:
            self._read_records()
        self._update_bar()

    def missing(self) -> list[ChainJob]:
        """Return the chains without a record."""
        self._read_records()
        self._update_bar()
        return [job for job in self._jobs if job.index not in self._done]

    def _read_records(self) -> None:
        found = records.read(self._folder).items()
        self._done = {index: record for index, record in found if index < len(self._jobs)}
        self._read_at = time.monotonic()

    def _update_bar(self) -> None:
        if self._rank != 0 or len(self._done) == self._bar.n:
            return
        mean = sum(record.completed for record in self._done.values()) / len(self._done)
        self._bar.set_postfix_str(f"average length {mean:.2f}", refresh=False)
        self._bar.update(len(self._done) - self._bar.n)
        if self._wandb is not None:
            self._wandb.log({"average_length": mean}, step=len(self._done))

    def report(self, results: Mapping[str, Any]) -> None:
        """Print the results and the path of their file."""
        if self._rank != 0:
            return
        self._bar.close()
        if self._wandb is not None:
            self._wandb.summary.update(_flat(results))
        mean, count = results["average_length"], len(self._done) - self._done_before
        duration = f"{count} of them in {time.monotonic() - self._started:.0f} s now; " if count else ""
        rates = results["success_rates"]
        print("success", *(f"{rate['tasks']}/{len(rates)}: {rate['value']:.1%}" for rate in rates))
        print(
            f"average length {mean['value']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}] over "
            f"{results['num_sequences']} chains, {duration}results in {self._folder / 'results.json'}"
        )


def _flat(results: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of the results as one level of names."""
    values = {f"average_length/{name}": value for name, value in results["average_length"].items()}
    values |= {f"success/{rate['tasks']}": rate["value"] for rate in results["success_rates"]}
    return values | {f"task/{task}": row["value"] for task, row in results["per_task"].items()}

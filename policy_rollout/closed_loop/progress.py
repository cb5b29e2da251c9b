"""What an evaluation says while it is played: a progress bar, wandb, a last line."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from policy_rollout.closed_loop import records
from policy_rollout.closed_loop.env_slot import ChainJob, ChainRecord

REFRESH = 5.0
"""Seconds between two looks at what other processes have recorded."""


def require_wandb() -> None:
    """Raises ``ValueError`` where it is not installed."""
    if importlib.util.find_spec("wandb") is None:
        raise ValueError("log_wandb=true: the package wandb is not installed (pip install wandb)")


class Progress:
    """Of the chains ``jobs`` whose records are in ``folder``, whoever plays them. Process 0 tells, the others count.

    ``wandb_config``: what wandb is told of the run, if it is to be told."""

    def __init__(
        self, folder: Path, jobs: Sequence[ChainJob], rank: int = 0, wandb_config: Mapping[str, Any] | None = None
    ) -> None:
        self._folder, self._jobs, self._rank, self._config = folder, jobs, rank, wandb_config
        self._wandb: Any = None

    def __enter__(self) -> Progress:
        self._done = {index: record for index, record in records.read(self._folder).items() if self._counts(index)}
        self._had, self._looked, self._began = len(self._done), time.monotonic(), time.monotonic()
        self._bar = tqdm(total=len(self._jobs), initial=self._had, desc="chains", unit="chain", disable=self._rank != 0)
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

    def _counts(self, index: int) -> bool:
        return index < len(self._jobs)

    def heard(self, record: ChainRecord) -> None:
        """A chain was finished here."""
        self._done[record.index] = record
        if time.monotonic() - self._looked > REFRESH:
            self._look()
        self._show()

    def missing(self) -> list[ChainJob]:
        """The chains that nobody has recorded yet."""
        self._look()
        self._show()
        return [job for job in self._jobs if job.index not in self._done]

    def _look(self) -> None:
        self._done = {index: record for index, record in records.read(self._folder).items() if self._counts(index)}
        self._looked = time.monotonic()

    def _show(self) -> None:
        if self._rank != 0 or len(self._done) == self._bar.n:
            return
        mean = sum(record.completed for record in self._done.values()) / len(self._done)
        self._bar.set_postfix_str(f"average length {mean:.2f}", refresh=False)
        self._bar.update(len(self._done) - self._bar.n)
        if self._wandb is not None:
            self._wandb.log({"average_length": mean}, step=len(self._done))

    def tell(self, results: Mapping[str, Any]) -> None:
        """The figures, and where they are."""
        if self._rank != 0:
            return
        self._bar.close()
        if self._wandb is not None:
            self._wandb.summary.update(_flat(results))
        mean, played = results["average_length"], len(self._done) - self._had
        took = f"{played} of them in {time.monotonic() - self._began:.0f} s now; " if played else ""
        rates = results["success_rates"]
        print("success", *(f"{rate['tasks']}/{len(rates)}: {rate['value']:.1%}" for rate in rates))
        print(
            f"average length {mean['value']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}] over "
            f"{results['num_sequences']} chains, {took}results in {self._folder / 'results.json'}"
        )


def _flat(results: Mapping[str, Any]) -> dict[str, float]:
    """The figures under names of their own."""
    figures = {f"average_length/{name}": value for name, value in results["average_length"].items()}
    figures |= {f"success/{rate['tasks']}": rate["value"] for rate in results["success_rates"]}
    return figures | {f"task/{task}": row["value"] for task, row in results["per_task"].items()}

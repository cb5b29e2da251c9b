"""When a run has to stop before its end, and how: all ranks in the same step, with one message, nothing half done.

asked to stop (a signal)               ends its step, checkpoint, exit code ``PREEMPTED``
something is wrong on one rank         all stop before the next step; the message is that rank's
loss, gradient or weights are bad      no checkpoint of them; the last good one and the samples are named
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NoReturn, TypeVar

from torch import nn

from common.files import reason_of, write_json
from config.schema import Job
from training.checkpointing.checkpoint import list_checkpoints, why_unwritable
from training.data.batch import CoBatch
from training.data.worker_processes import LostWorker
from training.failure.loss_monitor import LASTING, LossMonitor, RecentBatches, Verdict, has_only_numbers
from training.failure.preemption import PREEMPTED
from training.failure.status import write_status
from training.run import Run

T = TypeVar("T")
FINE, ASKED, WRONG = 0, 1, 2


class RunGuard:
    """One run's. What went wrong on this rank is kept until all ranks hear of it (``agree``)."""

    def __init__(self, job: Job, run: Run) -> None:
        self.job, self.run = job, run
        self.watch = LossMonitor(job.training.explosion_factor, run.device, scaled=run.accelerator.scaler is not None)
        self._recent = RecentBatches()
        self._wrong: str | None = None

    def read(self, batches: Iterator[CoBatch], count: int, step: int) -> list[CoBatch]:
        """The micro-batches of step ``step``; none where this rank is to stop before it."""
        if self.run.asked.signal:
            return []
        try:
            taken = [next(batches) for _ in range(count)]
        except (ValueError, FileNotFoundError) as error:  # a file of the data is bad; the message names it
            self._wrong = f"stopped before step {step}: {error}"
            return []
        except LostWorker as error:
            self._wrong = f"stopped before step {step}: {error}; the same command goes on from the last checkpoint"
            return []
        self._recent.saw(step, taken)
        return taken

    def tell(self, write: Callable[[], T]) -> T | None:
        """Do something whose failure the other ranks have to hear of: writing down, looking at data."""
        try:
            return write()
        except SystemExit as error:  # a bad file among the data that is looked at
            self._wrong = self._wrong or str(error)
        except OSError as error:
            name = error.filename or self.run.output_dir
            self._wrong = self._wrong or (
                f"stopped: {name} cannot be written ({why_unwritable(error, self.run.output_dir)}); "
                f"{self._last_good()}. Make room and start the same command again."
            )
        return None

    def agree(self, step: int, save: Callable[[], None] | None = None) -> None:
        """Called by all ranks after ``step`` steps: stop if one of them has to. ``save`` writes a checkpoint; without
        it, whoever was asked to stop waits for the next time."""
        state = self.run.ranks.most(WRONG if self._wrong else ASKED if self.run.asked.signal else FINE)
        if state == WRONG:
            first = next(text for text in self.run.ranks.all(self._wrong) if text is not None)
            self._leave("stopped", step, first)
        if state == ASKED and save is not None:
            save()
            asked = next(name for name in self.run.ranks.all(self.run.asked.signal) if name is not None)
            self.run.say(
                f"stopped by {asked} after step {step}: checkpoint-{step} is written, and the same command goes on "
                f"from it (exit code {PREEMPTED})"
            )
            self._leave("preempted", step, asked)

    def check(self, step: int, losses: Mapping[str, float], model: nn.Module | None = None) -> None:
        """Stop if loss or gradient were bad in a step up to ``step``, or ``model``'s weights are now. Waits for the
        device. ``losses``: to be told."""
        verdict = self.watch.verdict()
        if verdict is None and model is not None and self.run.ranks.most(float(not has_only_numbers(model))):
            verdict = Verdict(step, f"the weights are not finite after step {step}")
        if verdict is None:
            self._recent.harmless_before(step - LASTING)
            return
        good = [p for p in list_checkpoints(self.run.output_dir) if int(p.name.rpartition("-")[2]) < verdict.step]
        samples = self._write_samples(verdict, step)
        told = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        go_on = f" with experiment.resume_from_checkpoint={good[-1].name.rpartition('-')[2]}" if good else ""
        self._leave(
            "stopped",
            step,
            f"stopped: {verdict.reason}{f' ({told})' if told else ''}; {self._last_good(good)}; {samples}. "
            "A lower optimizer.params.learning_rate or training.max_grad_norm=1.0 usually helps; "
            f"the same command goes on{go_on}.",
            good,
        )

    def _write_samples(self, verdict: Verdict, step: int) -> str:
        """Which samples the bad step was taken with, on every rank, in a file; says where."""
        by_rank = self.run.ranks.all(self._recent.told(verdict.step, step))
        params = self.job.dataset.params
        record = {
            "step": verdict.step,
            "reason": verdict.reason,
            "robot": params.train_pre_shards_path_or_url,
            "mmu": params.train_mmu_sources or params.train_mmu_shards_path_or_url,
            "samples": [{"rank": rank, "steps": steps} for rank, steps in enumerate(by_rank)],
        }
        file = self.run.output_dir / f"bad_batch-{verdict.step}.json"
        if self.run.writes:
            try:
                write_json(file, record, indent=1)
            except OSError as error:
                return f"its samples could not be written down ({reason_of(error)})"
        return f"its samples are named in {file}"

    def _last_good(self, good: list[Path] | None = None) -> str:
        good = list_checkpoints(self.run.output_dir) if good is None else good
        return f"the last good checkpoint is {good[-1]}" if good else "no checkpoint had been written yet"

    def _leave(
        self, state: Literal["preempted", "stopped"], step: int, reason: str, good: list[Path] | None = None
    ) -> NoReturn:
        run = self.run
        kept = list_checkpoints(run.output_dir) if good is None else good
        if run.writes:
            write_status(run.output_dir, state, step, kept[-1] if kept else None, reason)
        run.ranks.most(0)  # ranks that leave at different times have been seen to abort the others
        if state == "preempted":
            raise SystemExit(PREEMPTED)
        raise SystemExit(reason if run.writes else 1)

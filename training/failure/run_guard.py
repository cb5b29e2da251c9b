"""Stop a run before its end: all ranks in the same step, with one message.

stop signal                            finish the step, save a checkpoint, exit code ``PREEMPTED``
error on one rank                      all ranks stop before the next step with the message of that rank
bad loss, gradient or weights          no checkpoint is saved; the last good one and the samples are reported
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NoReturn, TypeVar

from torch import nn

from common.files import reason_of, write_json
from training.checkpointing.checkpoint import step_of
from training.checkpointing.manifest import list_checkpoints
from training.data.batch import CoBatch
from training.data.worker_processes import LostWorker
from training.failure.known_errors import describe_write_error
from training.failure.loss_monitor import LASTING, Failure, LossMonitor, RecentSamples, has_finite_weights
from training.failure.preemption import PREEMPTED
from training.failure.status import write_status
from training.run import Run

T = TypeVar("T")
CONTINUE, PREEMPT, STOP = 0, 1, 2


class RunGuard:
    """Stops one run. An error of this rank is kept until all ranks exchange theirs (``sync_stop``)."""

    def __init__(self, run: Run) -> None:
        self.run = run
        factor = run.job.training.explosion_factor
        self.monitor = LossMonitor(factor, run.device, scaled=run.accelerator.scaler is not None)
        self._recent = RecentSamples()
        self._error: str | None = None

    def read(self, batches: Iterator[CoBatch], count: int, step: int) -> list[CoBatch]:
        """Return the micro-batches of step ``step``; an empty list if this rank has to stop before it."""
        if self.run.stop_request.signal:
            return []
        try:
            micro_batches = [next(batches) for _ in range(count)]
        except (ValueError, FileNotFoundError) as error:  # a bad data file, which the message names
            self._error = f"stopped before step {step}: {error}"
            return []
        except LostWorker as error:
            self._error = f"stopped before step {step}: {error}; the same command resumes from the last checkpoint"
            return []
        self._recent.add(step, micro_batches)
        return micro_batches

    def capture_errors(self, action: Callable[[], T]) -> T | None:
        """Run an action on this rank; keep its error for ``sync_stop`` and return None."""
        try:
            return action()
        except SystemExit as error:  # a bad file among the validation data
            self._error = self._error or str(error)
        except OSError as error:
            name = error.filename or self.run.output_dir
            self._error = self._error or (
                f"stopped: {name} cannot be written ({describe_write_error(error, self.run.output_dir)}); "
                f"{self._last_good()}. Free space and start the same command again."
            )
        return None

    def sync_stop(self, step: int, save: Callable[[], None] | None = None) -> None:
        """Exit on all ranks if one of them has to stop. All ranks call it after ``step`` steps.

        Args:
            save: writes a checkpoint. Without it a stop signal is handled at the next call.
        """
        run, requested = self.run, self.run.stop_request
        state = run.comm.all_max(STOP if self._error else PREEMPT if requested.signal else CONTINUE)
        if state == STOP:
            first = next(text for text in run.comm.all_gather(self._error) if text is not None)
            self._exit("stopped", step, first)
        if state == PREEMPT and save is not None:
            save()
            signal = next(name for name in run.comm.all_gather(requested.signal) if name is not None)
            run.log(
                f"stopped by {signal} after step {step}: checkpoint-{step} is written, and the same command resumes "
                f"from it (exit code {PREEMPTED})"
            )
            self._exit("preempted", step, signal)

    def check(self, step: int, losses: Mapping[str, float], model: nn.Module | None = None) -> None:
        """Exit if the loss or gradient of a step up to ``step`` was bad, or if ``model`` has bad weights now.

        Waits for the device. ``losses`` are shown in the message.
        """
        failure = self.monitor.failure()
        if failure is None and model is not None and self.run.comm.all_max(float(not has_finite_weights(model))):
            failure = Failure(step, f"the weights are not finite after step {step}")
        if failure is None:
            self._recent.drop_before(step - LASTING)
            return
        good = [path for path in list_checkpoints(self.run.output_dir) if step_of(path) < failure.step]
        samples = self._write_samples(failure, step)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        option = f" with experiment.resume_from_checkpoint={step_of(good[-1])}" if good else ""
        self._exit(
            "stopped",
            step,
            f"stopped: {failure.reason}{f' ({shown})' if shown else ''}; {self._last_good(good)}; {samples}. "
            "A lower optimizer.params.learning_rate or training.max_grad_norm=1.0 usually helps; "
            f"the same command resumes{option}.",
            good,
        )

    def _write_samples(self, failure: Failure, step: int) -> str:
        """Write the samples of the bad steps on all ranks to a file; return a sentence that names it."""
        by_rank = self.run.comm.all_gather(self._recent.to_json(failure.step, step))
        params = self.run.job.dataset.params
        record = {
            "step": failure.step,
            "reason": failure.reason,
            "robot": params.train_pre_shards_path_or_url,
            "mmu": params.train_mmu_sources or params.train_mmu_shards_path_or_url,
            "samples": [{"rank": rank, "steps": steps} for rank, steps in enumerate(by_rank)],
        }
        file = self.run.output_dir / f"bad_batch-{failure.step}.json"
        if self.run.is_main_process:
            try:
                write_json(file, record, indent=1)
            except OSError as error:
                return f"its samples could not be written ({reason_of(error)})"
        return f"its samples are named in {file}"

    def _last_good(self, good: list[Path] | None = None) -> str:
        good = list_checkpoints(self.run.output_dir) if good is None else good
        return f"the last good checkpoint is {good[-1]}" if good else "no checkpoint had been written yet"

    def _exit(
        self, state: Literal["preempted", "stopped"], step: int, reason: str, good: list[Path] | None = None
    ) -> NoReturn:
        run = self.run
        saved = list_checkpoints(run.output_dir) if good is None else good
        if run.is_main_process:
            write_status(run.output_dir, state, step, saved[-1] if saved else None, reason)
        run.comm.barrier()  # ranks that exit at different times can abort the others
        if state == "preempted":
            raise SystemExit(PREEMPTED)
        raise SystemExit(reason if run.is_main_process else 1)

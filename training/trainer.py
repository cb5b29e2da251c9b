"""The loop around the algorithm: batches in, gradients and optimizer steps, and everything that is due now and then.

How the losses are normalised: every loss is a sum over counted things (codes, action numbers, answer tokens). Before
the first backward of an optimizer step the counts of all its micro-batches on all ranks are added up, once, and each
micro-batch's sums are divided by these totals. One process with batch 4, two with batch 2, and accumulation 2 with
batch 2 therefore take the same step, to rounding.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from config.schema import Job
from models.device import to_device_async
from models.losses import SumAndCount
from models.rng import SampleRng
from models.text_metrics import COUNTS, NATS, derived
from models.upvla import Losses
from training import memory
from training.batch_to_tasks import COUNTED, Tasks, coefficients
from training.build import Parts
from training.checkpointing import checkpoint, optimizer_state, trained_weights
from training.data.batch import CoBatch
from training.data.sampling_order import START, Position
from training.distributed.full_state import Whole
from training.distributed.launch import configure_deepspeed, configure_fsdp
from training.distributed.reshard import validate_resume
from training.evaluator import Validator
from training.failure.run_guard import RunGuard
from training.failure.status import write_status
from training.metrics_logger import Meter
from training.optim.optimizer import set_lr
from training.prefetch import prefetch_to_device
from training.run import Run

LATE = 0.1
"""Share of the time waiting for data above which it is said out loud, ..."""
LONG_ENOUGH = 5.0
"""... if it was measured over this many seconds."""


class Trainer:
    """One run's loop. ``step`` is the number of optimizer steps done; ``model`` is the wrapped network."""

    def __init__(self, job: Job, run: Run, parts: Parts) -> None:
        self.job, self.run, self.parts = job, run, parts
        self.step = run.start_step
        self.coefficients = torch.tensor(coefficients(job), device=run.device)  # as COUNTED
        accelerator = run.accelerator
        checkpoint.leave_weights_to_model_folder(accelerator)
        if trained_weights.is_needed(job):
            accelerator.register_save_state_pre_hook(self._save_live)
        memory.tell(run, parts)
        configure_deepspeed(accelerator, job)
        configure_fsdp(accelerator, parts.model)
        validate_resume(accelerator, run.resumed)
        trained = optimizer_state.record(parts.model, job)
        for note in optimizer_state.match(accelerator, parts.optimizer, run.resumed, trained, job):
            run.say(note)
        self.whole = Whole(accelerator, parts.model)
        self.model, self.optimizer = accelerator.prepare(parts.model, parts.optimizer)
        if run.resumed is not None:
            checkpoint.load_state(accelerator, run.resumed, self.optimizer)
            checkpoint.require_finite_state(run.ranks, run.resumed, self.optimizer, parts.model)
        self.validator = Validator(job, run, parts, self.whole)
        self.meter, self.guard = Meter(), RunGuard(job, run)
        self._grad_norm: Tensor | None = None  # not told yet
        self._norm: Tensor | None = None  # of the last step, where it was measured
        self._go_on()
        run.begin()
        conditions = checkpoint.conditions(job, run.accelerator, parts.data)
        self.saver = checkpoint.Saver(
            accelerator, run.ranks, run.output_dir, job.experiment.checkpoints_total_limit, conditions, trained
        )
        self._total = torch.zeros((), device=run.device)  # this rank's share of the last step's loss
        self._watched = self.step  # the step up to which the losses were looked at
        self._divisors = torch.ones(len(COUNTED), device=run.device)
        self._saved_step = self.step
        self._window, self._logs, self._complained = _Window(), 0, False
        self._bar: Any = None

    def steps(self) -> Iterator[list[CoBatch]]:
        """The micro-batches of one optimizer step after another; what is due after a step happens in between."""
        job, last = self.job, self.job.training.max_train_steps
        if self.step >= last:
            self.run.say(f"nothing to train: step {self.step} of training.max_train_steps={last} is already done")
        micro_steps = job.training.gradient_accumulation_steps
        batches = self.parts.data.batches(self._position())
        self.model.train()
        with (
            closing(batches),
            tqdm(
                total=last,
                initial=self.step,
                desc=job.experiment.name,
                unit="step",
                disable=not self.run.writes,
                dynamic_ncols=True,
                mininterval=0.5 if sys.stderr.isatty() else 10.0,  # a log file wants few lines
            ) as self._bar,
        ):
            self._window = _Window()
            arrived = prefetch_to_device(batches, self.run.device)
            while self.step < last:
                before, step = time.perf_counter(), self.step
                micro_batches = self.guard.read(arrived, micro_steps, step + 1)
                self.guard.agree(step, self._save)
                self._window.saw(micro_batches, time.perf_counter() - before)
                yield micro_batches
                assert self.step == step + 1, "every step of the loop ends in update()"
                self._after_step()
        self.guard.agree(self.step)
        self._finish()

    def _go_on(self) -> None:
        """Take up what a checkpoint knows beside weights and optimizer."""
        run, data = self.run, self.parts.data
        self._origin, self._origin_step = START, self.step
        if run.resumed is None:
            return
        for note in checkpoint.changes(run.resumed, checkpoint.conditions(self.job, run.accelerator, data)):
            run.say(note)
        before = run.resumed.position
        done = self.step * self.job.training.gradient_accumulation_steps
        self._origin = data.after(START, done) if before is None else before
        for saved in checkpoint.saved_progress(run.resumed, run.rank, run.world):
            self.meter.restore(saved["meter"], run.device)
        for saved in checkpoint.saved_progress(run.resumed, 0, run.world)[:1]:  # the same on all ranks
            self.guard.watch.restore(saved["watch"])
            if saved["grad_norm"] is not None:
                self._grad_norm = torch.tensor(saved["grad_norm"], dtype=torch.float64)

    def _position(self) -> Position:
        """Where the run stands in its data after ``step`` steps."""
        micro_steps = (self.step - self._origin_step) * self.job.training.gradient_accumulation_steps
        return self.parts.data.after(self._origin, micro_steps)

    def draws(self) -> SampleRng:
        """The text objective's random draws in this step: a function of seed, step and sample, so that every split of
        a batch over ranks and micro-batches hides the same words."""
        return SampleRng(self.job.training.seed, self.step)

    def share(self, tasks: list[Tasks]) -> Iterator[Tasks]:
        """Agree on the step's divisors over ranks and micro-batches, then hand out the micro-batches one by one.

        Gradients are exchanged between ranks in the backward of the last one only.
        """
        counts = to_device_async(torch.stack([task.counts for task in tasks]).sum(0), self.run.device)
        sums = self.run.sum(torch.cat([counts, self._total[None]]))  # one exchange, the last step's loss in it
        self._divisors = sums[:-1].clamp_min(1.0)
        self._watch(sums[-1])
        self._total = torch.zeros_like(self._total)
        set_lr(self.optimizer, self.parts.schedule(self.step))  # DeepSpeed steps inside backward
        for task in tasks:
            with self.run.accelerator.accumulate(self.model):
                yield task

    def backward(self, losses: Losses) -> None:
        """Add this micro-batch's share of the total's gradient."""
        sums = torch.stack([getattr(losses, name).sum for name in COUNTED])
        shares = self.coefficients * sums / self._divisors
        # accelerate (or DeepSpeed) divides by the micro-batches, the gradient exchange by the ranks.
        scale = self.job.training.gradient_accumulation_steps * self.run.world
        self.run.accelerator.backward(shares.sum() * scale)
        tallies = {f"{name}/loss": getattr(losses, name) for name in COUNTED}
        total = shares.detach().sum()
        self._total = self._total + total.float()
        # The total's shares of all micro-batches and ranks add up to one step's total.
        tallies["total/loss"] = SumAndCount(total, torch.full_like(total, 1.0 / scale))
        details = dict(losses.details)
        for name in COUNTS:  # of an optimizer step
            details[name] = SumAndCount(details[name].sum, torch.full_like(total, 1.0 / scale))
        self.meter.add({**tallies, **details, NATS: losses.nats})

    def update(self) -> None:
        """One optimizer step."""
        accelerator, settings = self.run.accelerator, self.job.training
        due = _due(self.job.experiment.log_grad_norm_every, self.step + 1)
        if settings.max_grad_norm is not None or due:
            limit = float("inf") if settings.max_grad_norm is None else settings.max_grad_norm
            self._grad_norm = self._norm = _plain(accelerator.clip_grad_norm_(self.model.parameters(), limit))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._norm = None if self._norm is None else self._norm.to(self.run.device)
        if self.parts.average is not None:
            self.parts.average.update(self.step)

    # --- what is due after a step --------------------------------------------------------------------------------

    def _after_step(self) -> None:
        every, last = self.job.experiment, self.step == self.job.training.max_train_steps
        self._bar.update(1)
        if last or _due(every.log_every, self.step):
            self._log()
        started = time.perf_counter()
        if _due(every.eval_every, self.step) or (last and every.eval_every):
            self._write(self.guard.tell(self.validator.measure) or {})
        if _due(every.generate_every, self.step) or (last and every.generate_every):
            self.guard.tell(lambda: self.validator.show(self.step))
        if _due(every.save_every, self.step) or last:
            self.guard.agree(self.step)  # nothing is saved that could not be told
            self._save()
        self._window.aside += time.perf_counter() - started

    def _log(self) -> None:
        """The means since the last log: the one place where the host waits for the device."""
        values = self.meter.read(self.run.sum)
        values |= derived(values, self.job.training.text_objective)
        if self._grad_norm is not None:
            values["grad_norm"] = float(self._grad_norm)
            self._grad_norm = None
        self._settle()
        self.guard.check(self.step, {name: values[name] for name in _loss_names() if name in values})
        values["lr"] = self.parts.schedule(self.step - 1)
        values["samples_per_s"] = self._window.samples * self.run.world / self._window.seconds
        values["data_wait_share"] = self.run.ranks.most(self._window.waited / self._window.seconds)
        self._warn_data_bound(values["data_wait_share"])
        self._window = _Window()
        self._write(values)
        shown = {name: f"{values[name]:.3f}" for name in ("total/loss", *_loss_names()) if name in values}
        self._bar.set_postfix({name.removesuffix("/loss"): text for name, text in shown.items()}, refresh=False)

    def _warn_data_bound(self, share: float) -> None:
        """Say once that the data is late; the first log is let off, it contains the loaders' start."""
        self._logs += 1
        if self._logs == 1 or share <= LATE or self._window.seconds < LONG_ENOUGH or self._complained:
            return
        self._complained = True
        workers, cores = self.job.dataset.params.num_workers, len(os.sched_getaffinity(0))
        remedy = f"raise dataset.params.num_workers (now {workers})"
        if workers >= cores:
            remedy = (
                f"dataset.params.num_workers={workers} is no fewer than the {cores} CPU cores here: store the frames "
                "at dataset.preprocessing.resolution, or on a faster disk, or give the process more cores"
            )
        self.run.say(f"warning: {share:.0%} of the time is spent waiting for data: {remedy}")

    def _write(self, values: dict[str, float]) -> None:
        if values:
            self.guard.tell(lambda: self.run.board.scalars(values, self.step))

    def _watch(self, total: Tensor) -> None:
        """Look at the loss of the last step, summed over all ranks; once."""
        if self._watched < self.step:
            self.guard.watch.saw(self.step, total, self._norm)
        self._watched, self._norm = self.step, None

    def _settle(self) -> None:
        """Look at it now, where a decision depends on it."""
        if self._watched < self.step:
            self._watch(self.run.sum(self._total))

    def _save(self) -> None:
        if self._saved_step == self.step:
            return
        self._settle()
        self.guard.check(self.step, {}, self.parts.model)
        state = self.whole.state()

        def save_model(path: Path) -> None:
            self.run.board.on_disk()
            self.parts.save_model(path, step=self.step, state=state)

        norm = None if self._grad_norm is None else float(self._grad_norm)
        mine = {"meter": self.meter.state(), "watch": self.guard.watch.state(), "grad_norm": norm}
        saved = self.saver.save(self.step, self._position(), save_model, mine)
        self._saved_step = self.step
        self.run.say(f"saved {saved.path}")
        if self.run.writes:
            write_status(self.run.output_dir, "running", self.step, saved.path)

    def _save_live(self, models: list[object], weights: list[object], folder: str) -> None:
        """What learns, where it is not what acts; accelerate calls this on all ranks when it saves."""
        state = self.whole.state()
        if self.run.writes:
            self.parts.save_live(Path(folder), state)

    def _finish(self) -> None:
        run = self.run
        state = self.whole.state()
        if run.writes:
            checkpoint.save_final_model(
                run.output_dir, lambda path: self.parts.save_model(path, step=self.step, state=state)
            )
            write_status(run.output_dir, "finished", self.step, run.output_dir / f"checkpoint-{self.step}")
        run.accelerator.wait_for_everyone()
        self._report_conversations()
        curves = {
            "tensorboard": f"; tensorboard --logdir {shlex.quote(str(run.output_dir))}",
            "wandb": "; curves in wandb",
            "none": "",
        }
        run.say(
            f"done at step {self.step}: model and config.yaml in {run.output_dir}, last checkpoint "
            f"checkpoint-{self.step} there, numbers in metrics.jsonl{curves[self.job.experiment.tracker]}"
        )

    def _report_conversations(self) -> None:
        """Log how many conversations were cut or left out while they were read, over all ranks."""
        flow = self.parts.data.text
        counts = self.run.ranks.all((0, 0) if flow is None else (flow.left_out.cut, len(flow.left_out)))
        cut, left_out = (sum(of_ranks) for of_ranks in zip(*counts, strict=True))
        if cut:
            self.run.say(f"note: {cut} conversations were cut (dataset.preprocessing.max_seq_length)")
        if left_out:
            self.run.say(f"note: {left_out} conversations could not be used and were left out")


class _Window:
    """What happened since the last log: samples of both flows on this rank, and seconds."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.aside = 0.0  # seconds in evaluation, images and saving
        self.waited = 0.0  # seconds in which the loop had no batch
        self.samples = 0

    @property
    def seconds(self) -> float:
        return max(time.perf_counter() - self.started - self.aside, 1e-9)

    def saw(self, batches: list[CoBatch], waited: float) -> None:
        self.waited += waited
        self.samples += sum(len(flow) for batch in batches for flow in (batch.robot, batch.text) if flow is not None)


def _due(every: int, step: int) -> bool:
    """Does something with this interval (0: never) happen after this step?"""
    return every > 0 and step % every == 0


def _plain(norm: Any) -> Tensor | None:
    """A gradient norm as a 0-d tensor; DeepSpeed gives a number, and none before its first step, FSDP a DTensor."""
    if norm is None:
        return None
    return norm.full_tensor() if isinstance(norm, DTensor) else torch.as_tensor(norm).detach()


def _loss_names() -> list[str]:
    return [f"{name}/loss" for name in COUNTED]

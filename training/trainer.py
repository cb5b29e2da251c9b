"""The training loop: micro-batches in, gradients and optimizer steps, and periodic logs, evaluations and checkpoints.

Normalisation: every loss is a sum over counted targets (codes, action numbers, answer tokens). Before the first
backward of an optimizer step the counts of all its micro-batches on all ranks are added up, once, and each
micro-batch's sums are divided by these totals. One process with batch 4, two with batch 2, and accumulation 2 with
batch 2 therefore take the same step, up to rounding.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from common.command import print_next, progress_bar
from config.schema import Job
from models.device import to_device_async
from models.upvla import Losses
from training.batch_to_tasks import COUNTED, MicroBatch, coefficients
from training.build import Components
from training.checkpointing import checkpoint, optimizer_state
from training.checkpointing.checkpointer import Checkpointer
from training.checkpointing.conditions import changes
from training.checkpointing.manifest import Checkpoint
from training.data.batch import CoBatch
from training.data.sampling_order import START, Position
from training.distributed.full_state import FullModel, use_fp32_copies
from training.distributed.launch import configure_deepspeed, configure_fsdp
from training.distributed.reshard import validate_resume
from training.evaluator import Evaluator
from training.failure.run_guard import RunGuard
from training.metrics.reporter import LOSS_NAMES, MetricsReporter
from training.metrics.throughput import Throughput
from training.optim.optimizer import set_lr
from training.prefetch import DevicePrefetcher
from training.run import Run


class Trainer:
    """The loop of one run. ``step``: optimizer steps done; ``model``: the network, wrapped for the processes."""

    def __init__(self, run: Run, components: Components) -> None:
        self.run, self.components, self.step = run, components, run.start_step
        job, accelerator = run.job, run.accelerator
        configure_deepspeed(accelerator, job)
        configure_fsdp(accelerator, components.model)
        validate_resume(accelerator, run.resumed)
        trained = optimizer_state.record(components.model, job)
        throughput = Throughput(components.model, run.device, job.training.mixed_precision, run.world)
        for note in optimizer_state.match(accelerator, components.optimizer, run.resumed, trained, job):
            run.log(note)
        full_model = FullModel(accelerator, components.model)
        self.checkpointer = Checkpointer(run, components, full_model, trained)
        self.model, self.optimizer = accelerator.prepare(components.model, components.optimizer)
        use_fp32_copies(accelerator, components.ema)
        if run.resumed is not None:
            checkpoint.load_state(accelerator, run.resumed, self.optimizer)
            checkpoint.require_finite_state(run.comm, run.resumed, self.optimizer, components.model)
        self.evaluator, self.guard = Evaluator(run, components, full_model), RunGuard(run)
        self.reporter = MetricsReporter(run, components, self.guard, throughput)
        run.log(f"speed/mfu is a share of {throughput.peak / 1e12:.3g} TFLOP/s ({throughput.peak_source})")
        self._prefetcher = DevicePrefetcher(run.device)
        self._on_device: Iterator[CoBatch] = iter(())
        self._start, self._start_step = START, self.step  # position in the data at which this run begins
        if run.resumed is not None:
            self._restore_progress(run.resumed)
        run.prepare_output_dir()
        self._coefficients = torch.tensor(coefficients(job), device=run.device)  # as COUNTED
        self._divisors = torch.ones(len(COUNTED), device=run.device)
        self._total = torch.zeros((), device=run.device)  # this rank's part of the last step's loss
        self._grad_norm: Tensor | None = None  # of the last step, if it was measured
        self._monitored_step = self.step  # last step whose loss was passed to the loss monitor

    def steps(self) -> Iterator[list[CoBatch]]:
        """Yield the micro-batches of each optimizer step, and do the periodic work after each step."""
        job, last = self.run.job, self.run.job.training.max_train_steps
        if self.step >= last:
            self.run.log(f"nothing to train: step {self.step} of training.max_train_steps={last} is already done")
        batches = self.components.data.batches(self._position())
        self.model.train()
        bar = progress_bar(
            total=last,
            initial=self.step,
            desc=job.experiment.name,
            unit="step",
            disable=not self.run.is_main_process,
        )
        with closing(batches), bar:
            self.reporter.start()
            while self.step < last:
                before, step = time.perf_counter(), self.step
                micro_batches = self.guard.read(batches, job.training.gradient_accumulation_steps, step + 1)
                self.guard.sync_stop(step, self._save)
                self._on_device = self._prefetcher.start(micro_batches)
                self.reporter.add_batches(micro_batches, time.perf_counter() - before)
                yield micro_batches
                assert self.step == step + 1, "every step of the loop ends in update()"
                self._after_step(bar)
        self.guard.sync_stop(self.step)
        self._finish()

    def normalized_microbatches(self, micro_batches: Sequence[MicroBatch]) -> Iterator[MicroBatch]:
        """Sum the counts of a step over ranks and micro-batches; yield its micro-batches with images on the device.

        Gradients are exchanged between ranks in the backward of the last one only.
        """
        counts = to_device_async(torch.stack([batch.counts for batch in micro_batches]).sum(0), self.run.device)
        sums = self.run.sum(torch.cat([counts, self._total[None]]))  # one exchange, with the loss of the last step
        self._divisors = sums[:-1].clamp_min(1.0)
        self._monitor_loss(sums[-1])
        self._total = torch.zeros_like(self._total)
        set_lr(self.optimizer, self.components.schedule(self.step))  # DeepSpeed steps inside backward
        for batch in micro_batches:
            with self.run.accelerator.accumulate(self.model):
                yield replace(batch, data=next(self._on_device))

    def backward(self, losses: Losses) -> None:
        """Add the gradient of this micro-batch's part of the total loss."""
        sums = torch.stack([getattr(losses, name).sum for name in COUNTED])
        weighted = self._coefficients * sums / self._divisors
        # accelerate (or DeepSpeed) divides by the micro-batches, the gradient exchange by the ranks.
        scale = self.run.job.training.gradient_accumulation_steps * self.run.world
        self.run.accelerator.backward(weighted.sum() * scale)
        total = weighted.detach().sum()
        self._total = self._total + total.float()
        self.reporter.add(losses, total, scale)

    def update(self) -> None:
        """Take one optimizer step."""
        accelerator, job = self.run.accelerator, self.run.job
        max_norm = job.training.max_grad_norm
        if max_norm is not None or _is_due(job.experiment.log_grad_norm_every, self.step + 1):
            limit = float("inf") if max_norm is None else max_norm
            norm = _to_tensor(accelerator.clip_grad_norm_(self.model.parameters(), limit))
            self.reporter.grad_norm = norm
            self._grad_norm = None if norm is None else norm.to(self.run.device)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.components.ema is not None:
            self.components.ema.update(self.step)

    def _restore_progress(self, resumed: Checkpoint) -> None:
        """Restore the position in the data, the metrics since the last log, and the loss monitor."""
        run, data = self.run, self.components.data
        for note in changes(resumed, self.checkpointer.conditions):
            run.log(note)
        done = self.step * run.job.training.gradient_accumulation_steps
        self._start = data.after(START, done) if resumed.position is None else resumed.position
        own = checkpoint.saved_progress(resumed, run.rank, run.world)
        main = next(iter(checkpoint.saved_progress(resumed, 0, run.world)), None)  # the same for all ranks
        self.reporter.restore(own, main)
        if main is not None:
            self.guard.monitor.restore(main["watch"])

    def _position(self) -> Position:
        """Return the position in the data after ``step`` steps."""
        micro_steps = (self.step - self._start_step) * self.run.job.training.gradient_accumulation_steps
        return self.components.data.after(self._start, micro_steps)

    def _after_step(self, bar: Any) -> None:
        every, last = self.run.job.experiment, self.step == self.run.job.training.max_train_steps
        bar.update(1)
        if last or _is_due(every.log_every, self.step):
            values = self.reporter.read()
            losses = {name: values[name] for name in LOSS_NAMES if name in values}
            self._flush_monitor()
            self.guard.check(self.step, losses)
            self.reporter.log(self.step, values)
            shown = {"total": values["total/loss"], **{name.removesuffix("/loss"): v for name, v in losses.items()}}
            speed = {"tokens/s": f"{values['speed/tokens_per_s']:.0f}", "mfu": f"{values['speed/mfu']:.0%}"}
            bar.set_postfix({**{name: f"{v:.3f}" for name, v in shown.items()}, **speed}, refresh=False)
        with self.reporter.paused():
            if _is_due(every.eval_every, self.step) or (last and every.eval_every):
                self.reporter.write(self.step, self.guard.capture_errors(self.evaluator.evaluate) or {})
            if _is_due(every.generate_every, self.step) or (last and every.generate_every):
                self.guard.capture_errors(lambda: self.evaluator.log_samples(self.step))
            if _is_due(every.save_every, self.step) or last:
                self.guard.sync_stop(self.step)  # a step that could not be logged is not saved
                self._save()

    def _monitor_loss(self, total: Tensor) -> None:
        """Pass the loss of the last step, summed over all ranks, to the loss monitor once."""
        if self._monitored_step < self.step:
            self.guard.monitor.update(self.step, total, self._grad_norm)
        self._monitored_step, self._grad_norm = self.step, None

    def _flush_monitor(self) -> None:
        """Pass the loss of the last step to the loss monitor now, because a decision depends on it."""
        if self._monitored_step < self.step:
            self._monitor_loss(self.run.sum(self._total))

    def _save(self) -> None:
        if self.checkpointer.is_saved(self.step):
            return
        self._flush_monitor()
        self.guard.check(self.step, {}, self.components.model)
        progress = {**self.reporter.state(), "watch": self.guard.monitor.state()}
        self.checkpointer.save(self.step, self._position(), progress)

    def _finish(self) -> None:
        run = self.run
        self.checkpointer.save_final_model(self.step)
        self.reporter.report_conversations()
        curves = {
            "tensorboard": f"; tensorboard --logdir {shlex.quote(str(run.output_dir))}",
            "wandb": "; curves in wandb",
            "none": "",
        }
        run.log(
            f"done at step {self.step}: model and config.yaml in {run.output_dir}, last checkpoint "
            f"checkpoint-{self.step} there, numbers in metrics.jsonl{curves[run.job.experiment.tracker]}"
        )
        if run.is_main_process:
            print_next(_next_command(run.job), folder=run.output_dir)


def _next_command(job: Job) -> str:
    """Return the command that usually follows a run in ``{folder}``: evaluation, or training of actions."""
    if job.training.act_coeff > 0:
        return "blockdiff-vla eval --checkpoint {folder} --dataset-root DATA --output-json FILE (docs/evaluation.md)"
    return "train actions from this model: config=FILE model.showo.pretrained_model_path={folder}"


def _is_due(every: int, step: int) -> bool:
    """Return True if periodic work with this interval (0: never) follows this step."""
    return every > 0 and step % every == 0


def _to_tensor(norm: Any) -> Tensor | None:
    """Return a gradient norm (a number, DTensor, or None before DeepSpeed's first step) as a 0-d tensor."""
    if norm is None:
        return None
    return norm.full_tensor() if isinstance(norm, DTensor) else torch.as_tensor(norm).detach()

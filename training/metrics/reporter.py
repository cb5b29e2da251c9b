"""Report the metrics of a run: sums on the device, whose means are logged every ``experiment.log_every`` steps."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from models.losses import SumAndCount
from models.text_metrics import COUNTS, NATS, derived
from models.upvla import Losses
from training.batch_to_tasks import COUNTED
from training.build import Components
from training.data.batch import CoBatch
from training.failure.run_guard import RunGuard
from training.metrics.logger import Meter
from training.metrics.throughput import WORK, Throughput, work_metrics
from training.run import Run

MAX_DATA_WAIT = 0.1
"""Warn if the loop waits for data for more than this fraction of the time."""
MIN_WINDOW_S = 5.0
"""Minimum length, in seconds, of the window in which the data wait is measured for that warning."""
LOSS_NAMES = tuple(f"{name}/loss" for name in COUNTED)


class MetricsReporter:
    """Metrics since the last log. ``grad_norm``: last gradient norm that was measured and not logged yet."""

    def __init__(self, run: Run, components: Components, guard: RunGuard, throughput: Throughput) -> None:
        self.run, self.components, self.guard, self.throughput = run, components, guard, throughput
        self.grad_norm: Tensor | None = None
        self._meter, self._window = Meter(), _Window()
        self._logs, self._warned = 0, False

    def start(self) -> None:
        """Start to measure throughput."""
        self._window = _Window()

    def add_batches(self, batches: Sequence[CoBatch], waited: float) -> None:
        """Count the samples of a step. ``waited``: seconds in which the loop had no batch."""
        self._window.waited += waited
        flows = [flow for batch in batches for flow in (batch.robot, batch.text) if flow is not None]
        self._window.samples += sum(map(len, flows))
        self._window.steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time inside the context out of the throughput."""
        started = time.perf_counter()
        yield
        self._window.excluded += time.perf_counter() - started

    def add(self, losses: Losses, total: Tensor, scale: float) -> None:
        """Add a micro-batch. ``total``: its part of the step's loss; ``scale``: micro-batches x ranks of a step."""
        per_step = torch.full_like(total, 1.0 / scale)  # the sums of all micro-batches and ranks make one step
        details = {**losses.details, **{name: SumAndCount(losses.details[name].sum, per_step) for name in COUNTS}}
        means = {f"{name}/loss": getattr(losses, name) for name in COUNTED}
        sizes = work_metrics(losses.work, per_step)
        self._meter.add({**means, "total/loss": SumAndCount(total, per_step), **details, NATS: losses.nats, **sizes})

    def read(self) -> dict[str, float]:
        """Return the means since the last log over all ranks. The only place where the host waits for the device."""
        values = self._meter.read(self.run.sum)
        values |= derived(values, self.run.job.training.text_objective)
        if self.grad_norm is not None:
            values["grad_norm"] = float(self.grad_norm)
            self.grad_norm = None
        return values

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write the means of ``read`` with learning rate and throughput, and start a new window."""
        run, window, self._window = self.run, self._window, _Window()
        values["lr"] = self.components.schedule(step - 1)
        values["speed/samples_per_s"] = window.samples * run.world / window.seconds
        sizes = {name: values.pop(name) for name in WORK}
        values |= self.throughput.rates(sizes, window.steps / window.seconds)
        own = window.waited / window.seconds, self.throughput.peak_memory_gb()
        of_ranks = run.comm.all_gather(own)
        values["speed/data_wait_share"], values["speed/peak_memory_gb"] = map(max, zip(*of_ranks, strict=True))
        self._warn_data_bound(values["speed/data_wait_share"], window)
        self.write(step, values)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write metrics. A write error stops the run on all ranks."""
        if values:
            self.guard.capture_errors(lambda: self.run.metrics_logger.scalars(values, step))

    def state(self) -> dict[str, Any]:
        """Return this rank's sums for a checkpoint, as JSON values."""
        return {"meter": self._meter.state(), "grad_norm": None if self.grad_norm is None else float(self.grad_norm)}

    def restore(self, own: Sequence[Mapping[str, Any]], main: Mapping[str, Any] | None) -> None:
        """Continue from ``state`` of a checkpoint: the sums of ``own`` records, the gradient norm of ``main``."""
        for record in own:
            self._meter.restore(record["meter"], self.run.device)
        if main is not None and main["grad_norm"] is not None:
            self.grad_norm = torch.tensor(main["grad_norm"], dtype=torch.float64)

    def _warn_data_bound(self, fraction: float, window: _Window) -> None:
        """Log once that the loop waits for data. The first window is ignored: in it the data workers start."""
        self._logs += 1
        if self._warned or self._logs == 1 or fraction <= MAX_DATA_WAIT or window.seconds < MIN_WINDOW_S:
            return
        self._warned = True
        workers, cores = self.run.job.dataset.params.num_workers, len(os.sched_getaffinity(0))
        remedy = f"raise dataset.params.num_workers (now {workers})"
        if workers >= cores:
            remedy = (
                f"dataset.params.num_workers={workers} is no fewer than the {cores} CPU cores here: store the frames "
                "at dataset.preprocessing.resolution, or on a faster disk, or give the process more cores"
            )
        self.run.log(f"warning: {fraction:.0%} of the time is spent waiting for data: {remedy}")

    def report_conversations(self) -> None:
        """Log how many conversations of all ranks were cut or left out while they were read."""
        flow = self.components.data.text
        counts = self.run.comm.all_gather((0, 0) if flow is None else (flow.left_out.cut, len(flow.left_out)))
        cut, left_out = (sum(of_ranks) for of_ranks in zip(*counts, strict=True))
        if cut:
            self.run.log(f"note: {cut} conversations were cut (dataset.preprocessing.max_seq_length)")
        if left_out:
            self.run.log(f"note: {left_out} conversations could not be used and were left out")


class _Window:
    """Samples of both flows on this rank since the last log, and seconds."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.excluded = 0.0  # seconds of evaluation and saving
        self.waited = 0.0  # seconds in which the loop had no batch
        self.samples = self.steps = 0

    @property
    def seconds(self) -> float:
        return max(time.perf_counter() - self.started - self.excluded, 1e-9)

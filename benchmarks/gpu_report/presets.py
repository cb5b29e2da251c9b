"""Cases that take the steps of a preset on the longest rows that its runs allow, and compare memory with the card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_report.case import Case, Context
from benchmarks.gpu_report.recipes import recipe, step_of
from benchmarks.harness.memory import MB, measure
from benchmarks.harness.problems import Problem
from benchmarks.harness.timing import lap
from config.cli_help import PRESET_DIR
from training.batch_to_tasks import COUNTED, Tasks
from training.memory import longest_rows
from training.optim.ema import EMA

SECTION = "presets"
CONTEXT_GIB = 1.0
"""Memory of a card that torch's allocator does not have: the CUDA context and libraries."""
MICRO_BATCHES = 2
"""Micro-batches of a step with accumulation: from the second on, gradients exist already."""


def preset_names() -> list[str]:
    """Return the presets that are named after a card's memory, such as ``24gb``."""
    names = [path.stem for path in sorted(Path(PRESET_DIR).glob("*gb.yaml"))]
    return [name for name in names if name.removesuffix("gb").isdecimal()]


def cases(size: str, networks: Sequence[str]) -> list[Case]:
    return [
        Case(SECTION, f"{network}, bd, preset={name}", partial(preset, network, name))
        for network in networks
        for name in preset_names()
    ]


def preset(network: str, name: str, context: Context) -> Mapping[str, Any]:
    """Take two steps of block-diffusion action tuning, and compare the memory that torch reserves with the card."""
    size = context.network(network)
    job = recipe("bd", size, f"preset={name}")
    if context.tiny:
        job.training.batch_size_pre = job.training.batch_size_mmu = 1
    rows = job.training.batch_size_pre
    context.free()
    made = step_of(job, size, context.device, rows)
    average = None if job.training.ema_decay is None else EMA(made.parts.model, job.training.ema_decay)
    tasks = longest_rows(made.parts)
    micro_batches = min(MICRO_BATCHES, job.training.gradient_accumulation_steps)
    take = partial(_step, context, made, tasks, micro_batches, average)
    first = measure(take, context.device)
    again = lap(take, context.device)
    peak = max(first.peak, reserved_mb(context.device))
    gib, card = peak * MB / 2**30, int(name.removesuffix("gb"))
    return {
        "rows": rows,
        "tokens": tasks_length(tasks),
        "peak_gib": gib,
        "card_gib": card,
        "fits": gib + CONTEXT_GIB <= card,
        "ms_a_micro_batch": 1e3 * again.wall / micro_batches,
    }


def reserved_mb(device: torch.device) -> float:
    """Return the most memory that torch has reserved on a GPU since ``measure``; 0 on a CPU."""
    return torch.cuda.max_memory_reserved(device) / MB if device.type == "cuda" else 0.0


def tasks_length(tasks: Tasks) -> int:
    """Return the slots of the longest sequence."""
    assert tasks.future is not None
    assert tasks.text is not None
    return max(tasks.future.full_sequence.ids.shape[1], tasks.text.sequence.ids.shape[1])


def _step(context: Context, made: Problem, tasks: Tasks, micro_batches: int, average: EMA | None) -> None:
    parts = made.parts
    for _ in range(micro_batches):
        with context.autocast():
            losses = parts.model(tasks.future, tasks.text)
        means = [getattr(losses, n).mean for n, c in zip(COUNTED, tasks.counts, strict=True) if c > 0]
        torch.autograd.backward(torch.stack(means).sum() / micro_batches)
    parts.optimizer.step()
    parts.optimizer.zero_grad(set_to_none=True)
    if average is not None:
        average.update(1)

"""Cases that time training steps: speed, model FLOPs utilisation and peak memory."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_report.case import Case, Context
from benchmarks.gpu_report.recipes import recipe, step_of
from benchmarks.harness.memory import measure
from benchmarks.harness.problems import Problem
from benchmarks.harness.steps import PackageStep
from benchmarks.harness.timing import alternate
from config.schema import Objective
from training.metrics.throughput import WORK, ModelFlops, device_peak
from training.optim.compile import compile_backbone

SECTION = "training"
CACHE, PIXELS = "token cache", "pixels"
FULL, LORA = "full", "LoRA"
ROWS = {"real": 8, "tiny": 1}
LORA_RANK = 32
PLAIN = ("training.mixed_precision=bf16", "model.gradient_checkpointing=false")


def cases(size: str, networks: Sequence[str]) -> list[Case]:
    """Return a case for each network, objective, way of training and source of images; compiled ones at the end."""
    objectives: tuple[Objective, ...] = ("ar", "mdm", "bd")
    found = [
        Case(SECTION, ", ".join(names), partial(step, *names))
        for names in itertools.product(networks, objectives, (FULL, LORA), (CACHE, PIXELS))
    ]
    first = networks[0]
    name = f"{first}, bd, {FULL}, {CACHE}, compiled"
    return [*found, Case(SECTION, name, partial(step, first, "bd", FULL, CACHE, compiled=True), limit=180)]


def step(
    network: str, objective: Objective, trained: str, images: str, context: Context, compiled: bool = False
) -> Mapping[str, Any]:
    """Time steps of the action tuning in bf16, without gradient checkpointing."""
    size = context.network(network)
    overrides = [*PLAIN, *([f"lora.rank={LORA_RANK}"] if trained == LORA else [])]
    job = recipe(objective, size, *overrides)
    rows = ROWS[context.size]
    made = context.shared(("training", network, objective, trained), lambda: step_of(job, size, context.device, rows))
    batch = made.coded() if images == CACHE else made.batch
    one = PackageStep(made.parts, itertools.repeat(batch), context.autocast, wait=False)
    with context.compiling():
        if compiled:
            compile_backbone(made.parts.model.backbone)
        work = work_of(made, one)
        peak = measure(one.step, context.device)
        timings = alternate({images: one.step}, context.rounds, context.device, warmup=0)
    if compiled:
        context.free()
    seconds = timings.seconds(images).median
    stated, source = device_peak(context.device, "bf16")
    flops = ModelFlops.of(made.parts.model).count(work) / seconds
    return {
        "ms": 1e3 * seconds,
        "samples_per_s": 2 * rows / seconds,
        "tokens_per_s": work[WORK[0]] / seconds,
        "tflops": flops / 1e12,
        "mfu": flops / stated,
        "peak_gb": peak.peak * 2**20 / 1e9,
        "of": source,
    }


def work_of(made: Problem, one: PackageStep) -> dict[str, float]:
    """Return the work of a step, which is taken."""
    seen: list[Any] = []
    hook = made.parts.model.register_forward_hook(lambda module, inputs, losses: seen.append(losses.work))
    one.step()
    hook.remove()
    return {name: float(value) for name, value in zip(WORK, torch.stack(_values(seen[0])), strict=True)}


def _values(work: Any) -> list[torch.Tensor]:
    return [work.tokens, work.pairs, work.scored]

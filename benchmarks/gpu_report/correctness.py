"""Cases that compare ways to compute the same: attention kernels, compiled forwards, bf16, CUDA graphs, TF32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_report.acting import FRAMES_SEED, GRAPHED, WAYS, policy_of, way_of_acting
from benchmarks.gpu_report.case import (
    Case,
    Context,
    Skipped,
    Unequal,
    largest_difference,
    require_at_most,
)
from benchmarks.gpu_report.recipes import recipe, step_of
from benchmarks.harness.problems import Problem, Size, image_tokenizer, with_layers
from benchmarks.policy import SAME_ACTIONS_BF16, observations
from config.schema import Objective
from models.attention_mask import TILE
from models.language_model.backbone import FLEX
from models.rng import SampleRng
from training.batch_to_tasks import COUNTED, Tasks, bundle, encode_image, encode_views, robot_task, text_task
from training.optim.compile import compile_backbone

SECTION = "correctness"
LAYERS = 4
"""Layers of the networks that are compared, at their real widths: their number does not change what is compared."""
SAME_LOSS, SAME_GRADIENT = 1e-5, 1e-3
"""Largest relative differences of float32 sums in another order."""
CLOSE_LOSS = 0.02
"""Largest relative difference of a loss in bf16."""
ROWS = 2


def cases(size: str, networks: Sequence[str]) -> list[Case]:
    """Return the comparisons of training steps by network and objective, of policies, and of the image tokenizer."""
    objectives: tuple[Objective, ...] = ("ar", "mdm", "bd")
    found = []
    for network in networks:
        found += [Case(SECTION, f"{network}, {one}, {FLEX}", partial(flex, network, one)) for one in objectives]
        found.append(Case(SECTION, f"{network}, bd, compiled", partial(compiled, network), limit=150))
        found.append(Case(SECTION, f"{network}, bd, bf16", partial(bf16, network)))
        for way in WAYS[1:]:
            found.append(Case(SECTION, f"{network}, policy, {way}", partial(acting, network, way), limit=120))
    return [*found, Case(SECTION, "image tokenizer", partial(codes, networks[0]))]


def shallow(size: Size) -> Size:
    """Return a size with at most ``LAYERS`` layers of the language model."""
    return with_layers(size, min(LAYERS, size.llm.num_hidden_layers))


def problem_of(context: Context, network: str, objective: Objective) -> Problem:
    size = shallow(context.network(network))
    key = ("correctness", network, objective)
    job = recipe(objective, size, "model.gradient_checkpointing=false")
    return context.shared(key, lambda: step_of(job, size, context.device, ROWS))


def tasks_of(made: Problem) -> Tasks:
    """Return the tasks of the step that is compared."""
    parts = made.parts
    codes, turn = encode_views(parts, made.robot), encode_image(parts, made.text)
    return bundle(parts, robot_task(parts, codes, 0), text_task(parts, turn, SampleRng(0, 0)))


def losses(made: Problem, tasks: Tasks, backward: bool = True) -> tuple[Tensor, list[Tensor]]:
    """Return (the mean losses that have targets, the gradients of their sum; none without ``backward``)."""
    model = made.parts.model
    with nullcontext() if backward else torch.no_grad():
        found = model(tasks.future, tasks.text)
        means = torch.stack([getattr(found, n).mean for n, c in zip(COUNTED, tasks.counts, strict=True) if c > 0])
    if not backward:
        return means, []
    torch.autograd.backward(means.sum())
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return means.detach(), gradients


def compare(expected: tuple[Tensor, list[Tensor]], found: tuple[Tensor, list[Tensor]]) -> dict[str, float | None]:
    """Return the largest relative differences of losses, and of gradients per parameter. Raises ``Unequal``."""
    loss = float((found[0] / expected[0] - 1).abs().max())
    require_at_most("losses", loss, SAME_LOSS)
    if len(expected[1]) != len(found[1]):
        raise Unequal(f"{len(expected[1])} and {len(found[1])} parameters have gradients")
    pairs = zip(expected[1], found[1], strict=True)
    gradient = max((float((b - a).norm() / a.norm().clamp_min(1e-6)) for a, b in pairs), default=None)
    if gradient is not None:
        require_at_most("gradients", gradient, SAME_GRADIENT)
    return {"loss": loss, "gradient": gradient}


def flex(network: str, objective: Objective, context: Context) -> Mapping[str, Any]:
    """Compare FlexAttention with SDPA on the same masks, in float32."""
    if context.device.type == "cpu":
        raise Skipped("FlexAttention has no backward on a CPU")
    made = problem_of(context, network, objective)
    model, tasks = made.parts.model, tasks_of(made)
    expected = losses(made, tasks)
    model.backbone.set_attn_implementation(FLEX)
    model.length_multiple = TILE
    try:
        return compare(expected, losses(made, tasks))
    finally:
        model.backbone.set_attn_implementation("sdpa")
        model.length_multiple = 1


def compiled(network: str, context: Context) -> Mapping[str, Any]:
    """Compare the compiled backbone (``training.compile``) with the eager one, in float32."""
    made = problem_of(context, network, "bd")
    tasks = tasks_of(made)
    expected = losses(made, tasks)
    with context.compiling():
        compile_backbone(made.parts.model.backbone)
        try:
            return {**compare(expected, losses(made, tasks)), "backend": context.compiler}
        finally:
            context.free()  # a compiled module stays compiled


def bf16(network: str, context: Context) -> Mapping[str, Any]:
    """Compare losses in bf16 autocast with those in float32."""
    made = problem_of(context, network, "bd")
    tasks = tasks_of(made)
    expected, _ = losses(made, tasks, backward=False)
    with context.autocast():
        found, _ = losses(made, tasks, backward=False)
    difference = float((found / expected - 1).abs().max())
    require_at_most("losses", difference, CLOSE_LOSS)
    return {"loss": difference}


def acting(network: str, way: str, context: Context) -> Mapping[str, Any]:
    """Compare the actions of a way of acting with eager ones, both in bf16; a CUDA graph also bit for bit."""
    size = shallow(context.network(network))
    policy = policy_of(context, size)
    seen = observations(3, seed=FRAMES_SEED)
    expected = [torch.from_numpy(policy.act([one])) for one in seen]
    with way_of_acting(context, policy, way) as act:
        found = [torch.from_numpy(act([one])) for one in seen]
    difference = max(largest_difference(a, b) for a, b in zip(expected, found, strict=True))
    require_at_most("actions", difference, SAME_ACTIONS_BF16)
    identical = all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    graph = "yes" if context.device.type == "cuda" else "no (CPU)"
    return {"actions": difference, "identical": identical, **({"graph": graph} if way in GRAPHED else {})}


def codes(network: str, context: Context) -> Mapping[str, Any]:
    """Compare codes of the device with those of the CPU, of a batch with those of single images, and with TF32.

    Codes are signs: a latent near 0 may flip with the order of a sum. Only their shares are measured.
    """
    size = context.network(network)
    pixels = torch.rand(4, 3, size.resolution, size.resolution, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vq = image_tokenizer(size, context.device)
    on_device = vq.encode(pixels.to(context.device)).cpu()
    single = torch.cat([vq.encode(one[None].to(context.device)) for one in pixels]).cpu()
    with torch.no_grad():
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        latent = vq.latent(pixels.to(context.device))
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with_tf32 = vq.quantize.codes(latent).flatten(1).cpu()
    on_cpu = image_tokenizer(size, context.device).to("cpu").encode(pixels)
    shares = {"in a batch": single, "with TF32": with_tf32, "on the CPU": on_cpu}
    return {f"other codes {name}": float((other != on_device).float().mean()) for name, other in shares.items()}

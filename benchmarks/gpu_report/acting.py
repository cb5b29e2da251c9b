"""Cases that time a policy: latency of one observation, throughput in batches, and actions with an image."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_report.case import Case, Context, require_at_most
from benchmarks.harness.problems import Size, image_tokenizer, language_model
from benchmarks.harness.timing import alternate
from benchmarks.policy import SAME_ACTIONS_BF16, observations
from models.action.inference import ActionPredictor, compiled_forward
from policy_rollout.policies.upvla import Observation, UPVLAPolicy

LATENCY, THROUGHPUT = "policy latency", "policy throughput"
WAYS = EAGER, COMPILED, GRAPH, COMPILED_GRAPH = "eager", "compiled", "CUDA graph", "compiled, CUDA graph"
GRAPHED = (GRAPH, COMPILED_GRAPH)
BATCHES = {"real": (1, 8, 32), "tiny": (1, 2)}
FRAMES_SEED = 1
WARM_UP = 3
"""Runs before a graph is recorded, in which libraries choose their kernels."""
Act = Callable[[Sequence[Observation]], np.typing.NDArray[np.float32]]


def cases(size: str, networks: Sequence[str]) -> list[Case]:
    found = []
    for network in networks:
        found += [Case(LATENCY, f"{network}, {way}", partial(latency, network, way), limit=150) for way in WAYS]
        found += [
            Case(THROUGHPUT, f"{network}, batch {batch}", partial(throughput, network, batch))
            for batch in BATCHES[size]
        ]
    return found


def policy_of(context: Context, size: Size) -> UPVLAPolicy:
    """Return a policy with random weights, in bf16; its image tokenizer computes in float32 without TF32."""

    def build() -> UPVLAPolicy:
        built = language_model(size, context.device)
        built.model.requires_grad_(False)
        return UPVLAPolicy(built, image_tokenizer(size, context.device), device=context.device, precision="bf16")

    return context.shared(("policy", size.name, str(size.llm.num_hidden_layers)), build)


@contextlib.contextmanager
def way_of_acting(context: Context, policy: UPVLAPolicy, way: str) -> Iterator[Act]:
    """Yield the policy's ``act`` in one of ``WAYS``; shapes are compiled and recorded at their first call.

    CUDA graphs are of the whole image tokenizer and the whole backbone, on rows padded as for the compiler.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(context.compiling())
        forward = None
        if way in (COMPILED, COMPILED_GRAPH):
            forward = compiled_forward(policy.model)
        if way in GRAPHED:
            forward = Graphed(forward or partial(policy.model.backbone.forward, cache=None))
            stack.enter_context(mock.patch.object(policy.vq, "encode", Graphed(policy.vq.encode)))
        if forward is not None:
            predictor = ActionPredictor(policy.model, forward)
            stack.enter_context(mock.patch.object(policy, "predictor", predictor))
        yield policy.act


def latency(network: str, way: str, context: Context) -> Mapping[str, Any]:
    """Time calls with one observation, of which every one is another image."""
    policy = policy_of(context, context.network(network))
    calls = 8 * context.rounds
    seen = observations(calls, seed=FRAMES_SEED)
    expected = policy.act(seen[:1])
    inputs = itertools.cycle(seen)
    with way_of_acting(context, policy, way) as act:
        difference = float(np.abs(act(seen[:1]) - expected).max())
        require_at_most("actions", difference, SAME_ACTIONS_BF16)
        timings = alternate({way: lambda: act([next(inputs)])}, calls, context.device, warmup=6)
    p50, p95 = np.percentile(timings.values(way, "wall"), [50, 95]).tolist()
    return {"p50_ms": 1e3 * p50, "p95_ms": 1e3 * p95, "calls_per_s": 1 / p50, "actions": difference, "calls": calls}


def throughput(network: str, batch: int, context: Context) -> Mapping[str, Any]:
    """Time eager calls with a batch, for actions alone and with the predicted images."""
    policy = policy_of(context, context.network(network))
    seen = observations(batch)
    ways = {"actions": lambda: policy.act(seen), "images": lambda: policy.act_and_predict(seen)}
    timings = alternate(ways, context.rounds, context.device)
    per_s = {name: timings.rate(name, batch, "wall").median for name in ways}
    return {"batch": batch, "observations_per_s": per_s["actions"], "with_images_per_s": per_s["images"]}


class Graphed:
    """A function of tensors whose kernels are launched together. Its results are copies.

    On a CPU there is no graph: the function is called on the copied inputs, so that the rest of the path is the same.
    """

    def __init__(self, run: Callable[..., Tensor]) -> None:
        self._run = run
        self._recorded: dict[tuple[object, ...], tuple[list[Tensor], Callable[[], Tensor]]] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        key = tuple((tuple(one.shape), one.dtype) for one in inputs)
        if key not in self._recorded:
            static = [one.clone() for one in inputs]
            self._recorded[key] = static, self._record(static)
        static, replay = self._recorded[key]
        for target, source in zip(static, inputs, strict=True):
            target.copy_(source)
        return replay().clone()

    def _record(self, static: list[Tensor]) -> Callable[[], Tensor]:
        if static[0].device.type != "cuda":
            return lambda: self._run(*static)
        now, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(now)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._run(*static)
        now.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = self._run(*static)

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

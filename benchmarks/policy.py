"""Time one policy call, from an observation to a chunk of actions, against the original's rollout step.

Times UPVLAPolicy.act on frames of 200 x 200 pixels: p50 and p95 of one call at batch 1, observations per second in
batches, and how far that is above the counted operations at the machine's rate for matrix products. The original's step
alternates with it on the same weights: instruction padded to its limit, logits of every slot, two images decoded. It
is also timed with equal work: without a decoded image against act, with one against act_and_predict.
Actions, codes and images of both are compared first. The reference is tests/benchmarks/naive_acting.py.

Examples:
  the figures of the documentation (a few minutes on one core):
    python -m benchmarks.policy --out benchmarks/results/policy.json
  at the real size, on a GPU:
    python -m benchmarks.policy --size phi --device cuda --precision bf16 --compile --batches 1,8,32
  operations at the real size, counted without computing:
    python -m benchmarks.policy --size phi --count
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.harness.problems import SIZES, Size, add_size, check_size, image_tokenizer, language_model
from benchmarks.harness.record import Parser, settings_of, write
from benchmarks.harness.timing import PRODUCT, Product, alternate, counted
from common.arguments import whole
from common.command import run_command
from models.action.inference import ActionPredictor
from models.processing.image import fit, normalise
from policy_rollout.policies.upvla import Observation, UPVLAPolicy
from tests.benchmarks.naive_acting import Naive
from tests.benchmarks.naive_step import slow_model

SENTENCES = (
    "open the drawer",
    "push the red block to the left",
    "lift the blue block from the table",
    "move the slider all the way to the right",
    "turn on the green light",
    "put the pink block inside the drawer",
)
PIXELS = 200
ORIGINAL, ORIGINAL_ACTIONS, ORIGINAL_IMAGE = "original", "original, actions alone", "original, one decoded image"
OURS, OURS_IMAGE, OURS_TWO_CALLS = "ours", "ours, with the predicted image", "ours, in two calls"
SAME_ACTIONS, SAME_ACTIONS_BF16 = 1e-4, 0.05
"""Largest differences, of actions of size 1, that sums of different order explain."""


def observations(count: int, seed: int = 0) -> list[Observation]:
    """Return observations with random images and alternating instructions."""
    rng = np.random.default_rng(seed)
    words = itertools.cycle(SENTENCES)
    return [Observation(rng.integers(0, 256, (PIXELS, PIXELS, 3), dtype=np.uint8), next(words)) for _ in range(count)]


@dataclass(frozen=True)
class Pair:
    """The package's policy and the original's with the same weights."""

    policy: UPVLAPolicy
    naive: Naive
    autocast: torch.autocast

    @classmethod
    def of(cls, size: Size, device: torch.device, precision: str, compiled: bool = False) -> Pair:
        built, vq = language_model(size, device), image_tokenizer(size, device)
        built.model.requires_grad_(False)
        naive = Naive(slow_model(built.model), vq, built.prompter)
        policy = UPVLAPolicy(built, vq, device=device, precision=precision, compiled=compiled)
        return cls(policy, naive, torch.autocast(device.type, torch.bfloat16, enabled=precision != "no"))

    def original_step(self, observation: Observation, images: int = 2) -> tuple[Any, Any, Any]:
        """Take the original's step; ``images``: how many it decodes, of the observed and the predicted frame."""
        with self.autocast:
            return self.naive.rollout_step(observation.rgb_static, observation.instruction, images)


def compare(pair: Pair, observed: Sequence[Observation], bf16: bool) -> dict[str, float]:
    """Return the largest differences. Exit if the two do not compute the same; in bf16 codes near a tie may differ."""
    actions = codes = levels = 0.0
    for observation in observed:
        chunk, later, frames = pair.original_step(observation)
        actions = max(actions, float(np.abs(pair.policy.act([observation])[0] - chunk).max()))
        codes = max(codes, float((pair.policy.predict_codes([observation]) != later.cpu().numpy()).mean()))
        predicted = pair.policy.act_and_predict([observation])[1][0, 0].astype(int)
        levels = max(levels, float(np.abs(predicted - frames[1]).max()))
    if actions > (SAME_ACTIONS_BF16 if bf16 else SAME_ACTIONS) or (not bf16 and (codes > 0 or levels > 1)):
        raise SystemExit(
            f"the two do not compute the same: actions differ by {actions:.2g}, {codes:.2%} of the codes, "
            f"images by {levels:g} grey levels; nothing is timed"
        )
    return {"actions": actions, "share_of_codes": codes, "grey_levels": levels}


def operations(size: Size) -> dict[str, Any]:
    """Count operations for one observation on the meta device: the package's by part, and the original's step."""
    built, vq = language_model(size, "meta"), image_tokenizer(size, "meta")
    model, prompter = built.model.requires_grad_(False), built.prompter
    pixels = torch.empty(1, 3, size.resolution, size.resolution, device="meta")
    codes = torch.empty(1, size.num_vq_tokens, dtype=torch.long, device="meta")
    ids = prompter.instruction(SENTENCES[1])
    rows = torch.empty(1, size.padded, model.backbone.hidden_size, device="meta")
    mask = torch.empty(1, 1, size.padded, size.padded, device="meta")
    reader = ActionPredictor(model)
    with torch.inference_mode():
        encode = counted(lambda: vq.encoder(pixels))
        network = counted(lambda: reader.predict([ids], codes))
        bits = torch.empty(1, 13, size.resolution // vq.stride, size.resolution // vq.stride, device="meta")
        decode = counted(lambda: vq.decoder(bits))
        padded = counted(lambda: model.backbone.lm.base_model(inputs_embeds=rows, attention_mask=mask, use_cache=False))
        logits = counted(lambda: model.backbone.head(rows))
    parts = {"encode": encode, "decode twice": 2 * decode, "padded network": padded, "logits": logits}
    return {
        "encode": encode,
        "network": network,
        "ours": encode + network,
        "original": sum(parts.values()),
        "original_parts": parts,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def latency(pair: Pair, args: argparse.Namespace, operations: float) -> dict[str, Any]:
    """Time one observation per call, both ways alternating with the product of matrices that the floor is based on."""
    inputs = itertools.cycle(observations(args.calls))
    product = Product(args.device, torch.bfloat16 if args.precision != "no" else torch.float32)
    policy = pair.policy
    frames = normalise(torch.from_numpy(fit(next(inputs).rgb_static, policy.spec.resolution)[None]).to(args.device))

    def two_calls(observation: Observation) -> None:
        policy.act([observation])
        policy.predict_future([observation])

    variants: dict[str, Callable[[], object]] = {
        ORIGINAL: lambda: pair.original_step(next(inputs)),
        ORIGINAL_ACTIONS: lambda: pair.original_step(next(inputs), images=0),
        ORIGINAL_IMAGE: lambda: pair.original_step(next(inputs), images=1),
        OURS: lambda: policy.act([next(inputs)]),
        OURS_IMAGE: lambda: policy.act_and_predict([next(inputs)]),
        OURS_TWO_CALLS: lambda: two_calls(next(inputs)),
        "ours, the image tokenizer alone": lambda: policy.vq.encode(frames),
        PRODUCT: product.prepare(),
    }
    with torch.inference_mode():
        timings = alternate(variants, args.calls, args.device, warmup=2, name="one call")
    found: dict[str, Any] = {}
    for name in list(variants)[:-1]:
        p50, p95 = np.percentile(timings.values(name), [50, 95]).tolist()
        found[name] = {"p50_ms": 1e3 * p50, "p95_ms": 1e3 * p95, "calls": args.calls}
    found["times_faster"] = timings.ratio(ORIGINAL, OURS)
    found["equal_work"] = {
        "actions": timings.ratio(ORIGINAL_ACTIONS, OURS),
        "actions and one image": timings.ratio(ORIGINAL_IMAGE, OURS_IMAGE),
        "actions and one image, in two calls": timings.ratio(ORIGINAL_IMAGE, OURS_TWO_CALLS),
    }
    found["matrix_gflops"] = timings.rate(PRODUCT, product.operations / 1e9)
    found["times_floor"] = timings.times_floor(OURS, operations, product)
    found["calls_per_second"] = timings.rate(OURS, 1, "wall")
    return found


def throughput(pair: Pair, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    """Return observations per second at a batch size."""
    inputs = observations(batch)
    timings = alternate({"ours": lambda: pair.policy.act(inputs)}, args.rounds, args.device)
    return {"observations_per_second": timings.rate("ours", batch), "wall": timings.rate("ours", batch, "wall")}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = Parser("policy", __doc__)
    add_size(parser)
    parser.add_argument("--batches", default="1,8,32", help="batch sizes, by commas (1,8,32)")
    parser.add_argument("--calls", type=whole(1), default=16, help="timed calls of each way at batch 1 (16)")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no", help="precision of the network (no: fp32)")
    parser.add_argument("--compile", action="store_true", help="compile the forward for its shapes")
    parser.add_argument("--count", action="store_true", help="only count operations")
    args = parser.parse(argv)
    size = SIZES[args.size] if args.count else check_size(args)
    amount = operations(size)
    content: dict[str, Any] = {"settings": settings_of(args, "size", "precision"), "operations": amount}
    print(
        f"{args.size}: {amount['ours'] / 1e9:.1f} GFLOP a call (image tokenizer {amount['encode'] / 1e9:.1f}), "
        f"the original's step {amount['original'] / 1e9:.1f}: {amount['original'] / amount['ours']:.2f} times as many"
    )
    if not args.count:
        pair = Pair.of(size, args.device, args.precision, args.compile)
        content["same"] = compare(pair, observations(3, seed=1), args.precision != "no")
        content["latency"] = latency(pair, args, amount["ours"])
        content["throughput"] = {str(b): throughput(pair, b, args) for b in map(int, args.batches.split(","))}
        report(content)
    write(args, content)
    return content


def report(content: dict[str, Any]) -> None:
    """Print the results."""
    one = content["latency"]
    for name in (ORIGINAL, ORIGINAL_ACTIONS, ORIGINAL_IMAGE, OURS, OURS_IMAGE, OURS_TWO_CALLS):
        print(f"  {name:<34} p50 {one[name]['p50_ms']:8.1f} ms   p95 {one[name]['p95_ms']:8.1f} ms")
    for work, ratio in one["equal_work"].items():
        print(f"  {work}: {ratio} times as fast as the original's method with equal work")
    print(f"  times faster than its step {one['times_faster']}, above the floor {one['times_floor']} times")
    for batch, found in content["throughput"].items():
        print(f"  batch {batch:>3}: {found['observations_per_second']} observations per second")


if __name__ == "__main__":
    run_command(main)

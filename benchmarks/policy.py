"""One policy call: an observation to a chunk of actions, against the original's rollout step on the same weights.

    python -m benchmarks.policy [--size cpu|phi|qwen3] [--batches 1,8,32] [--calls 16]

The reference is ``tests/benchmarks/naive_acting.py``.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.floor import Product, counted, rate, times_floor
from benchmarks.record import arguments, parser, write
from benchmarks.sizes import SIZES, Size, bearable, image_tokenizer, language_model
from benchmarks.timing import Lap, Spread, alternate, clock_of, ratio
from common.arguments import whole
from common.command import run_command
from models.action.inference import ActionPredictor
from models.processing.image import fit, normalise
from policy_rollout.policies.upvla import Observation, UPVLAPolicy
from tests.benchmarks.naive_acting import Naive
from tests.benchmarks.naive_step import slow_model

NAME = "policy"
DESCRIPTION = """\
Times UPVLAPolicy.act on frames of 200 x 200 pixels: median, p50 and p95 of one call at batch 1, observations per second
in batches, and how far that is above the counted operations at this machine's rate for matrix products. The original's
step runs beside it, in turn: instruction padded to its limit, logits of every slot, two images decoded. Actions,
codes and images of both are compared first."""
EPILOG = """\
examples:
  the figures of the documentation (a few minutes on one core):
    python -m benchmarks.policy --out benchmarks/results/policy.json
  at the real size, on a GPU:
    python -m benchmarks.policy --size phi --device cuda --precision bf16 --compile --batches 1,8,32
  the real size's operations, counted without computing:
    python -m benchmarks.policy --size phi --count"""

SENTENCES = (
    "open the drawer",
    "push the red block to the left",
    "lift the blue block from the table",
    "move the slider all the way to the right",
    "turn on the green light",
    "put the pink block inside the drawer",
)
PIXELS = 200
SAME_ACTIONS = 1e-4
"""Largest difference, of actions of size 1, that float32 sums of different order explain."""
BF16_ACTIONS = 0.05


def observations(count: int, seed: int = 0) -> list[Observation]:
    """Different images, and sentences in turn."""
    rng = np.random.default_rng(seed)
    words = itertools.cycle(SENTENCES)
    return [Observation(rng.integers(0, 256, (PIXELS, PIXELS, 3), dtype=np.uint8), next(words)) for _ in range(count)]


@dataclass(frozen=True)
class Pair:
    """The two ways to act with the same weights."""

    policy: UPVLAPolicy
    naive: Naive
    autocast: torch.autocast

    def step(self, seen: Observation) -> tuple[Any, Any, Any]:
        with self.autocast:
            return self.naive.rollout_step(seen.rgb_static, seen.instruction)


def pair_of(size: Size, args: argparse.Namespace) -> Pair:
    device = args.device
    built, vq = language_model(size, device), image_tokenizer(size, device)
    naive = Naive(slow_model(built.model), vq, built.prompter)
    policy = UPVLAPolicy(built, vq, device=device, precision=args.precision, compiled=args.compile)
    low = args.precision != "no"
    return Pair(policy, naive, torch.autocast(device.type, torch.bfloat16, enabled=low))


def compare(pair: Pair, seen: Sequence[Observation], low: bool) -> dict[str, float]:
    """Largest differences between the two; raises ``SystemExit`` where they are not the same computation. In bf16 codes
    near a tie may differ."""
    actions = codes = images = 0.0
    for observation in seen:
        chunk, later, frames = pair.step(observation)
        actions = max(actions, float(np.abs(pair.policy.act([observation])[0] - chunk).max()))
        found = pair.policy.predict_codes([observation])
        codes = max(codes, float((found != later.cpu().numpy()).mean()))
        expected = pair.policy.predict_future([observation])[0, 0].astype(int)
        images = max(images, float(np.abs(expected - frames[1]).max()))
    if actions > (BF16_ACTIONS if low else SAME_ACTIONS) or (not low and (codes > 0 or images > 1)):
        raise SystemExit(
            f"the two do not compute the same: actions differ by {actions:.2g}, {codes:.2%} of the codes, "
            f"images by {images:g} grey levels; nothing is timed"
        )
    return {"actions": actions, "share_of_codes": codes, "grey_levels": images}


def operations(size: Size) -> dict[str, Any]:
    """Counted on the meta device, for one observation: ours by part, and the original's step."""
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
        act = counted(lambda: reader.predict([ids], codes))
        bits = torch.empty(1, 13, size.resolution // vq.stride, size.resolution // vq.stride, device="meta")
        decode = counted(lambda: vq.decoder(bits))
        padded = counted(lambda: model.backbone.lm.base_model(inputs_embeds=rows, attention_mask=mask, use_cache=False))
        logits = counted(lambda: model.backbone.head(rows))
    return {
        "encode": encode,
        "network": act,
        "ours": encode + act,
        "original": encode + 2 * decode + padded + logits,
        "original_parts": {"encode": encode, "decode twice": 2 * decode, "padded network": padded, "logits": logits},
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def latency(pair: Pair, args: argparse.Namespace, amount: dict[str, Any]) -> dict[str, Any]:
    """One observation a call, the two in turn; the product of matrices that the floor is made of in the same rounds."""
    device, clock = args.device, clock_of(args.device)
    seen = itertools.cycle(observations(args.calls))
    product = Product(device, torch.bfloat16 if args.precision != "no" else torch.float32)
    policy, size = pair.policy, pair.policy.spec.resolution
    frames = normalise(torch.from_numpy(fit(next(seen).rgb_static, size)[None]).to(device))
    variants: dict[str, Callable[[], object]] = {
        "original": lambda: pair.step(next(seen)),
        "ours": lambda: policy.act([next(seen)]),
        "ours, the image tokenizer alone": lambda: policy.vq.encode(frames),
        "matrix product": product.ready(),
    }
    with torch.inference_mode(), tqdm(total=args.calls * len(variants), desc="one call", unit="run") as bar:
        laps = alternate(variants, args.calls, device, warmup=2, tick=bar.update)
    found: dict[str, Any] = {name: _times(laps[name], clock) for name in list(variants)[:3]}
    found["times_faster"] = ratio(laps["original"], laps["ours"], clock)
    found["matrix_gflops"] = Spread.of([v / 1e9 for v in _rates(laps["matrix product"], product.operations, clock)])
    found["times_floor"] = times_floor(laps["ours"], laps["matrix product"], amount["ours"], product.operations, clock)
    found["calls_per_second"] = rate(laps["ours"], 1, "wall")
    return found


def _rates(laps: Sequence[Lap], count: int, clock: Any) -> list[float]:
    return [count / one.of(clock) for one in laps]


def _times(laps: Sequence[Lap], clock: Any) -> dict[str, Any]:
    seconds = sorted(one.of(clock) for one in laps)
    p50, p95 = np.percentile(seconds, [50, 95]).tolist()
    return {"p50_ms": 1e3 * p50, "p95_ms": 1e3 * p95, "calls": len(seconds)}


def throughput(pair: Pair, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    """Observations per second when so many are asked at once."""
    seen = observations(batch)
    laps = alternate({"ours": lambda: pair.policy.act(seen)}, args.rounds, args.device)["ours"]
    clock = clock_of(args.device)
    return {"observations_per_second": rate(laps, batch, clock), "wall": rate(laps, batch, "wall")}


def _parser() -> argparse.ArgumentParser:
    made = parser(NAME, DESCRIPTION, EPILOG)
    made.add_argument("--size", choices=SIZES, default="cpu", help="see benchmarks/sizes.py (default cpu)")
    made.add_argument("--batches", default="1,8,32", help="observations at once (default 1,8,32)")
    made.add_argument("--calls", type=whole(1), default=16, help="timed calls of each at batch 1 (default 16)")
    made.add_argument("--precision", choices=("no", "bf16"), default="no", help="of the network (default no: float32)")
    made.add_argument("--compile", action="store_true", help="compile the forward for its shapes")
    made.add_argument("--count", action="store_true", help="count operations, and no more")
    made.add_argument("--anyway", action="store_true", help="run a real size on a CPU")
    return made


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = _parser().parse_args(argv)
    size = SIZES[args.size]
    if not args.count:
        bearable(size, args.device, args.anyway)
    amount = operations(size)
    content: dict[str, Any] = {"settings": {"size": args.size, "precision": args.precision}, "operations": amount}
    print(
        f"{args.size}: {amount['ours'] / 1e9:.1f} GFLOP a call (image tokenizer {amount['encode'] / 1e9:.1f}), "
        f"the original's step {amount['original'] / 1e9:.1f}: {amount['original'] / amount['ours']:.2f} times as many"
    )
    if not args.count:
        torch.set_num_threads(args.threads)
        pair = pair_of(size, args)
        content["same"] = compare(pair, observations(3, seed=1), args.precision != "no")
        content["latency"] = latency(pair, args, amount)
        content["throughput"] = {str(b): throughput(pair, b, args) for b in map(int, args.batches.split(","))}
        report(content)
    write(args.out, NAME, arguments(argv), args.device, args.threads, content)
    return content


def report(content: dict[str, Any]) -> None:
    one = content["latency"]
    for name in ("original", "ours", "ours, the image tokenizer alone"):
        print(f"  {name:<34} p50 {one[name]['p50_ms']:8.1f} ms   p95 {one[name]['p95_ms']:8.1f} ms")
    print(f"  times faster {one['times_faster']}, above the floor {one['times_floor']} times")
    for batch, found in content["throughput"].items():
        print(f"  batch {batch:>3}: {found['observations_per_second']} observations per second")


if __name__ == "__main__":
    run_command(main)

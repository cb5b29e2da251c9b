"""A training step against the original's arithmetic, on the same weights and the same batch.

    python -m benchmarks.original_step [--size cpu|phi|qwen3] [--objectives ar,mdm,bd] [--count]

The reference is ``tests/benchmarks/naive_step.py``, which computes what the original recorded (losses and gradients).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks.floor import Product, rate, times_floor
from benchmarks.memory import peak_of
from benchmarks.original_passes import Original, differences
from benchmarks.record import arguments, chosen_objectives, parser, write
from benchmarks.sizes import SIZES, Size, bearable
from benchmarks.step import BACKWARD, FORWARD, FRAMES, IMAGES, PARTS, Stepper
from benchmarks.step_problem import Problem, problem, shapes_only
from benchmarks.timing import Clock, Lap, Spread, alternate, clock_of, ratio
from common.arguments import whole
from common.command import run_command
from training.optim.compile import compile_backbone

NAME = "original_step"
DESCRIPTION = """\
Takes optimizer steps of each text objective, three ways in turn: as the original does (fixed lengths, logits of every
slot, an extra forward over words for each flow, frames encoded in the step), as this package does from pixels, and from
the token cache. Losses and gradients of the shared parts are compared first. Reports seconds, ratios, peak memory of a
fresh process for each, the counted operations, and how far a step is above the time these take at this machine's rate
for matrix products. On a GPU also tokens per second and the share of its stated peak (MFU)."""
EPILOG = """\
examples:
  the figures of the documentation (about ten minutes on one core):
    python -m benchmarks.original_step --out benchmarks/results/original_step.json
  at the real size, on a GPU:
    python -m benchmarks.original_step --size phi --device cuda --precision bf16 --rows 4
  the real size's operations, counted without computing (a minute or two on a CPU):
    python -m benchmarks.original_step --size phi --rows 1 --count"""

WAYS = ORIGINAL, PIXELS, CACHE = "original", "from pixels", "from the token cache"
PRODUCT = "product"
COUNTED_PARTS = (FRAMES, IMAGES, FORWARD, BACKWARD)
SAME_LOSS, SAME_GRADIENT = 1e-5, 1e-3
"""Largest relative differences that float32 sums of different order explain."""
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0}
"""Dense bf16 peaks that NVIDIA states, by a part of the device's name."""


def autocast_of(device: torch.device, precision: str) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """What the forward runs in."""
    if precision == "fp32":
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, torch.bfloat16)


def stepper(way: str, made: Problem, precision: str) -> Original | Stepper:
    """One of the three ways, ready to be stepped; each has an optimizer of its own but for the package's two, which
    share theirs."""
    autocast = autocast_of(made.parts.device, precision)
    if way == ORIGINAL:
        return Original(made, autocast)
    return Stepper(made.parts, itertools.repeat(made.batch if way == PIXELS else made.coded()), autocast)


def memory_step(settings: Mapping[str, Any], device: torch.device) -> Callable[[], None]:
    """What a child of ``peak_of`` measures: two steps, as the optimizer's state comes with the first."""
    made = problem(SIZES[settings["size"]], settings["objective"], device, settings["rows"], **settings["model"])
    one = stepper(settings["way"], made, settings["precision"])

    def run() -> None:
        for _ in range(2):
            one.step()

    return run


def operations(size: Size, objective: Any, rows: int) -> dict[str, Any]:
    """Operations of one step, by part: of the original, and of the package from pixels. Counted on tensors without
    content; nothing is computed."""
    found: dict[str, dict[str, int]] = {}

    def counting(way: str) -> Callable[[str], contextlib.AbstractContextManager[None]]:
        @contextlib.contextmanager
        def count(part: str) -> Iterator[None]:
            with FlopCounterMode(display=False) as mode:
                yield
            found.setdefault(way, {})[part] = int(mode.get_total_flops())

        return count

    with shapes_only():
        made = problem(size, objective, torch.device("meta"), rows)
        Original(made).step(counting(ORIGINAL))
        Stepper(made.parts, itertools.repeat(made.batch)).step(counting(PIXELS))
    counted = {way: {part: parts[part] for part in COUNTED_PARTS} for way, parts in found.items()}
    counted[CACHE] = {**counted[PIXELS], FRAMES: 0}
    return {way: {**parts, "all": sum(parts.values())} for way, parts in counted.items()}


def compare(objective: Any, args: argparse.Namespace, bar: tqdm[None]) -> dict[str, Any]:
    """One objective: equality, times, ratios, floors."""
    size, device = SIZES[args.size], args.device
    counted = operations(size, objective, args.rows)
    made = problem(size, objective, device, args.rows, **model_settings(args))
    same = differences(made) if args.precision == "fp32" else None
    if same is not None and (same["loss"] > SAME_LOSS or same["gradient"] > SAME_GRADIENT):
        raise SystemExit(f"{objective}: the two ways do not compute the same: {same}; nothing was timed")
    bar.update()
    ways = {way: stepper(way, made, args.precision) for way in WAYS}
    if args.compile:
        compile_backbone(made.parts.model.backbone)
    product = Product(device, torch.bfloat16 if args.precision == "bf16" else torch.float32)
    timed = {PRODUCT: product.ready(), **{name: way.step for name, way in ways.items()}}
    laps = alternate(timed, args.rounds, device, warmup=3 if device.type == "cuda" else 1, tick=bar.update)
    clock = clock_of(device)
    found: dict[str, Any] = {
        "same": same,
        "seconds": {name: Spread.of([one.of(clock) for one in laps[name]]) for name in WAYS},
        "times_faster": {name: ratio(laps[ORIGINAL], laps[name], clock) for name in (PIXELS, CACHE)},
        "operations": counted,
        "operations_ratio": {name: counted[ORIGINAL]["all"] / counted[name]["all"] for name in (PIXELS, CACHE)},
        "product_flops": rate(laps[PRODUCT], product.operations, clock),
        "times_floor": {
            name: times_floor(laps[name], laps[PRODUCT], counted[name]["all"], product.operations, clock)
            for name in WAYS
        },
        "parts": {name: parts_of(way.noted[-args.rounds :], clock) for name, way in ways.items()},
    }
    if device.type == "cuda":
        found["utilisation"] = utilisation(made, found, laps, clock)
    return found


def parts_of(noted: Sequence[Mapping[str, Lap]], clock: Clock) -> dict[str, Spread]:
    return {part: Spread.of([took[part].of(clock) for took in noted]) for part in PARTS}


def utilisation(
    made: Problem, found: Mapping[str, Any], laps: Mapping[str, Sequence[Lap]], clock: Clock
) -> dict[str, Any]:
    """Tokens a second and, where the device's peak is known, MFU: counted operations of the package's step over it."""
    name = torch.cuda.get_device_name(made.parts.device)
    peak = next((1e12 * tflops for part, tflops in PEAK_TFLOPS.items() if part in name), None)
    tokens = made.slots()
    told: dict[str, Any] = {"slots": tokens, "stated_peak_flops": peak}
    for way in (PIXELS, CACHE):
        per_second = rate(laps[way], tokens, clock)
        told[way] = {"slots_per_second": per_second}
        if peak is not None:
            told[way]["mfu"] = rate(laps[way], found["operations"][way]["all"] / peak, clock)
    return told


def model_settings(args: argparse.Namespace) -> dict[str, Any]:
    return {"attn_implementation": args.attention, "gradient_checkpointing": args.gradient_checkpointing}


def memory(objective: str, args: argparse.Namespace, bar: tqdm[None]) -> dict[str, Any]:
    """Peak of a fresh process for each way."""
    peaks = {}
    for way in WAYS:
        settings = {"size": args.size, "objective": objective, "rows": args.rows, "way": way}
        settings |= {"precision": args.precision, "device": str(args.device), "threads": args.threads}
        peaks[way] = peak_of("benchmarks.original_step:memory_step", {**settings, "model": model_settings(args)})
        bar.update()
    return {
        "memory_mb": {way: {"before": p.before, "above": p.above, "peak": p.peak} for way, p in peaks.items()},
        "memory_share": {
            way: {"above": peaks[way].above / peaks[ORIGINAL].above, "peak": peaks[way].peak / peaks[ORIGINAL].peak}
            for way in (PIXELS, CACHE)
        },
    }


def line(objective: str, found: Mapping[str, Any]) -> str:
    """One objective, for people."""
    seconds, share = found["seconds"], found["memory_share"]
    told = [f"{objective}: the original {seconds[ORIGINAL].median:.3g} s"]
    for way in (PIXELS, CACHE):
        told.append(
            f"{way} {seconds[way].median:.3g} s, {found['times_faster'][way]} times faster, "
            f"{found['times_floor'][way].median:.2f} times the floor, {share[way]['above']:.2f} of its memory above "
            f"the model ({share[way]['peak']:.2f} in all)"
        )
    return "; ".join(told)


def table(counted: Mapping[str, Mapping[str, Any]]) -> str:
    """Counted TFLOP by objective, way and part, for Markdown."""
    rows = [["objective", "way", *COUNTED_PARTS, "step"], ["---"] * (len(COUNTED_PARTS) + 3)]
    for objective, ways in counted.items():
        for way, parts in ways.items():
            rows.append([objective, way, *(f"{parts[part] / 1e12:.2f}" for part in (*COUNTED_PARTS, "all"))])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    made = parser(NAME, DESCRIPTION, EPILOG)
    made.add_argument("--size", choices=sorted(SIZES), default="cpu", help="which networks (default cpu)")
    made.add_argument("--objectives", default="ar,mdm,bd", help="which, by commas (ar,mdm,bd)")
    made.add_argument(
        "--rows", type=whole(1), default=2, help="robot samples, and conversations, of a step (default 2)"
    )
    made.add_argument("--count", action="store_true", help="count operations only; nothing is computed")
    made.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the forward (fp32)")
    made.add_argument("--attention", default="sdpa", help="kernel of the package's step: sdpa or flex_attention (sdpa)")
    made.add_argument("--compile", action="store_true", help="compile the package's backbone")
    made.add_argument("--gradient-checkpointing", action="store_true", help="recompute activations, in the package")
    made.add_argument("--anyway", action="store_true", help="run a real size on a CPU")
    args = made.parse_args(argv)
    names = chosen_objectives(made, args.objectives)
    torch.set_num_threads(args.threads)
    results: dict[str, Any]
    if args.count:
        results = {name: operations(SIZES[args.size], name, args.rows) for name in tqdm(names, desc=NAME)}
        print(table(results))
    else:
        bearable(SIZES[args.size], args.device, args.anyway)
        tf32 = args.precision == "bf16"  # for the frozen networks, which stay in float32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        with tqdm(total=len(names) * (4 * args.rounds + 1 + len(WAYS)), desc=NAME, unit="run") as bar:
            results = {name: compare(name, args, bar) for name in names}
            for name in names:
                results[name] |= memory(name, args, bar)
        for told, found in results.items():
            print(line(told, found))
    settings = {key: value for key, value in vars(args).items() if key not in ("out", "device", "threads")}
    content = {"settings": settings, "results": results}
    write(args.out, NAME, arguments(argv), args.device, args.threads, content)
    return content


if __name__ == "__main__":
    run_command(main)

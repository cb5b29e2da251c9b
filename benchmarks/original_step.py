"""Compare a training step with the original's arithmetic, on the same weights and the same batch, and time its parts.

Takes optimizer steps of each text objective in three ways, which alternate: as the original does (fixed lengths, logits
of every slot, an extra forward over words for each flow, frames encoded in the step), as this package does from pixels,
and from the token cache. Losses and gradients of the shared parts are compared first. Reports seconds of the step and
its parts, ratios, peak memory of a fresh process for each way, counted operations, and how far a step is above the time
that these take at the machine's rate for matrix products. On a GPU also tokens per second and the share of its stated
peak (MFU). The reference is tests/benchmarks/naive_step.py, which reproduces losses and gradients of the original.

Examples:
  the figures of the documentation (about ten minutes on one core):
    python -m benchmarks.original_step --out benchmarks/results/original_step.json
  at the real size, on a GPU:
    python -m benchmarks.original_step --size phi --device cuda --precision bf16 --rows 4
  operations at the real size, counted without computing (a minute or two on a CPU):
    python -m benchmarks.original_step --size phi --rows 1 --count
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness.memory import compare_peaks
from benchmarks.harness.problems import SIZES, Problem, Size, add_size, check_size, problem, shapes_only
from benchmarks.harness.record import Parser, write
from benchmarks.harness.steps import (
    BACKWARD,
    FORWARD,
    FRAMES,
    IMAGES,
    PARTS,
    Autocast,
    OriginalStep,
    PackageStep,
    TimedStep,
    differences,
)
from benchmarks.harness.timing import PRODUCT, Product, Spread, Timings, alternate
from common.arguments import whole
from common.command import progress_bar, run_command
from common.tables import markdown_table
from config.schema import Objective
from training.metrics.throughput import device_peak
from training.optim.compile import compile_backbone

WAYS = ORIGINAL, PIXELS, CACHE = "original", "from pixels", "from the token cache"
COUNTED_PARTS = (FRAMES, IMAGES, FORWARD, BACKWARD)
SAME_LOSS, SAME_GRADIENT = 1e-5, 1e-3
"""Largest relative differences that float32 sums of different order explain."""


def make_step(way: str, made: Problem, precision: str) -> TimedStep:
    """Return one of the three ways; the package's two share an optimizer."""
    device = made.parts.device
    autocast: Autocast = contextlib.nullcontext
    if precision == "bf16":
        autocast = lambda: torch.autocast(device.type, torch.bfloat16)  # noqa: E731
    if way == ORIGINAL:
        return OriginalStep(made, autocast)
    return PackageStep(made.parts, itertools.repeat(made.batch if way == PIXELS else made.coded()), autocast)


def memory_step(settings: Mapping[str, Any], device: torch.device) -> Callable[[], None]:
    """Return the work of ``peak_of``: two steps, because the first one creates the optimizer's state."""
    made = problem(SIZES[settings["size"]], settings["objective"], device, settings["rows"], **settings["model"])
    one = make_step(settings["variant"], made, settings["precision"])

    def run() -> None:
        for _ in range(2):
            one.step()

    return run


def operations(size: Size, objective: Objective, rows: int) -> dict[str, dict[str, int]]:
    """Count the operations of one step on the meta device, by way and part."""
    found: dict[str, dict[str, int]] = {ORIGINAL: {}, PIXELS: {}}

    def count_into(parts: dict[str, int]) -> Callable[[str], contextlib.AbstractContextManager[None]]:
        @contextlib.contextmanager
        def count(part: str) -> Iterator[None]:
            with FlopCounterMode(display=False) as mode:
                yield
            parts[part] = int(mode.get_total_flops())

        return count

    with shapes_only():
        made = problem(size, objective, torch.device("meta"), rows)
        OriginalStep(made).step(count_into(found[ORIGINAL]))
        PackageStep(made.parts, itertools.repeat(made.batch)).step(count_into(found[PIXELS]))
    counted = {way: {part: parts[part] for part in COUNTED_PARTS} for way, parts in found.items()}
    counted[CACHE] = {**counted[PIXELS], FRAMES: 0}
    return {way: {**parts, "all": sum(parts.values())} for way, parts in counted.items()}


def compare(objective: Objective, args: argparse.Namespace) -> dict[str, Any]:
    """Check that the ways are equal, then measure times, ratios, floors and memory of one objective."""
    size, device = SIZES[args.size], args.device
    counted = operations(size, objective, args.rows)
    model = {"attn_implementation": args.attention, "gradient_checkpointing": args.gradient_checkpointing}
    made = problem(size, objective, device, args.rows, **model)
    same = differences(made) if args.precision == "fp32" else None
    if same is not None and (same["loss"] > SAME_LOSS or same["gradient"] > SAME_GRADIENT):
        raise SystemExit(f"{objective}: the two ways do not compute the same: {same}; nothing was timed")
    steps = {way: make_step(way, made, args.precision) for way in WAYS}
    if args.compile:
        compile_backbone(made.parts.model.backbone)
    product = Product(device, torch.bfloat16 if args.precision == "bf16" else torch.float32)
    variants = {PRODUCT: product.prepare(), **{way: one.step for way, one in steps.items()}}
    timings = alternate(variants, args.rounds, device, 3 if device.type == "cuda" else 1, name=objective)
    found: dict[str, Any] = {
        "same": same,
        "seconds": {way: timings.seconds(way) for way in WAYS},
        "times_faster": {way: timings.ratio(ORIGINAL, way) for way in (PIXELS, CACHE)},
        "operations": counted,
        "operations_ratio": {way: counted[ORIGINAL]["all"] / counted[way]["all"] for way in (PIXELS, CACHE)},
        "product_flops": timings.rate(PRODUCT, product.operations),
        "times_floor": {way: timings.times_floor(way, counted[way]["all"], product) for way in WAYS},
        "parts": {
            way: {
                part: Spread.of([times[part].of(timings.clock) for times in one.times[-args.rounds :]])
                for part in PARTS
            }
            for way, one in steps.items()
        },
    }
    if device.type == "cuda":
        found["utilisation"] = utilisation(made, counted, timings)
    settings = {"size": args.size, "objective": objective, "rows": args.rows, "precision": args.precision}
    return found | compare_peaks("benchmarks.original_step:memory_step", WAYS, {**settings, "model": model}, args)


def utilisation(made: Problem, counted: Mapping[str, Mapping[str, int]], timings: Timings) -> dict[str, Any]:
    """Return tokens per second and the share of the device's peak (MFU) of the package's step."""
    peak, source = device_peak(made.parts.device, "bf16")
    found: dict[str, Any] = {"slots": made.slots(), "peak_flops": peak, "peak_source": source}
    for way in (PIXELS, CACHE):
        found[way] = {
            "slots_per_second": timings.rate(way, found["slots"]),
            "mfu": timings.rate(way, counted[way]["all"] / peak),
        }
    return found


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the results of all objectives as a Markdown table."""
    rows = []
    for objective, found in results.items():
        for way in WAYS:
            memory, share = found["memory_mb"][way], found["memory_share"].get(way)
            rows.append(
                [
                    objective,
                    way,
                    *(f"{1e3 * found['parts'][way][part].median:.0f}" for part in PARTS),
                    f"{found['seconds'][way].median:.3g}",
                    str(found["times_faster"].get(way, "")),
                    f"{found['times_floor'][way].median:.2f}",
                    f"{memory['above']:.0f}" + (f" ({share['above']:.2f})" if share else ""),
                    f"{memory['peak']:.0f}" + (f" ({share['peak']:.2f})" if share else ""),
                ]
            )
    parts = [f"{part}, ms" for part in PARTS]
    end = ["seconds", "times faster", "times the floor", "MB above the model", "MB in total"]
    return markdown_table(["objective", "way", *parts, *end], rows)


def operations_table(counted: Mapping[str, Mapping[str, Mapping[str, int]]]) -> str:
    """Return counted TFLOP by objective, way and part as a Markdown table."""
    rows: list[Sequence[str]] = [
        [objective, way, *(f"{parts[part] / 1e12:.2f}" for part in (*COUNTED_PARTS, "all"))]
        for objective, ways in counted.items()
        for way, parts in ways.items()
    ]
    return markdown_table(["objective", "way", *COUNTED_PARTS, "step"], rows)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = Parser("original_step", __doc__, objectives="ar,mdm,bd")
    add_size(parser)
    parser.add_argument("--rows", type=whole(1), default=2, help="robot samples, and conversations, of a step (2)")
    parser.add_argument("--count", action="store_true", help="only count operations; nothing is computed")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="precision of the forward (fp32)")
    parser.add_argument("--attention", default="sdpa", help="kernel of the package: sdpa or flex_attention (sdpa)")
    parser.add_argument("--compile", action="store_true", help="compile the package's backbone")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="recompute activations, in the package")
    args = parser.parse(argv)
    results: dict[str, Any]
    if args.count:
        results = {name: operations(SIZES[args.size], name, args.rows) for name in progress_bar(args.objectives)}
        print(operations_table(results))
    else:
        check_size(args)
        tf32 = args.precision == "bf16"  # for the frozen networks, which stay in float32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        results = {name: compare(name, args) for name in args.objectives}
        print(table(results))
    hidden = ("out", "device", "threads", "name", "argv")
    content = {"settings": {k: v for k, v in vars(args).items() if k not in hidden}, "results": results}
    write(args, content)
    return content


if __name__ == "__main__":
    run_command(main)

"""Answers about an image: the package's decoding against one without a cache, on the same weights and words.

    python -m benchmarks.text_generation [--size cpu|phi|qwen3] [--objectives ar,bd,mdm] [--words 32]

The reference is ``tests/benchmarks/naive_acting.py``: a forward over prompt, image and all that was said for every
word, logits of every slot, one question at a time. The original decodes ``ar`` alone; for ``bd`` and ``mdm`` the
reference fills the same blocks in the same way without a cache.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.floor import STREAM_BYTES, Product, Reading, counted
from benchmarks.record import arguments, chosen_objectives, parser, write
from benchmarks.sizes import PATCHES, SIZES, Size, bearable, image_tokenizer, language_model
from benchmarks.timing import Lap, Spread, alternate, clock_of, ratio
from common.arguments import whole
from common.command import run_command
from models.decoding import Decoding, Generation, Static, generate
from models.device import keep_freed_memory
from models.pretrained.model_io import Built
from tests.benchmarks.naive_acting import Naive
from tests.benchmarks.naive_step import slow_model

NAME = "text_generation"
DESCRIPTION = """\
Says the same words twice: by the package (cached prompt, logits of what is read) and by a forward over everything for
every step with logits of every slot, as the original does. Answers have to be the same before anything is timed.
Random weights: what is compared is the machinery, so bd and mdm keep a fixed number of words per forward
(benchmarks.text_decoding says how many trained models can)."""
EPILOG = """\
examples:
  the figures of the documentation (a few minutes on one core):
    python -m benchmarks.text_generation --out benchmarks/results/text_generation.json
  at the real size, on a GPU:
    python -m benchmarks.text_generation --size phi --device cuda --words 128"""

QUESTION = "Which colour is the block on the left, and what lies beside it on the table?"


@dataclass(frozen=True)
class Asking:
    """A question, asked ``batch`` times about other images, of one model in two ways."""

    built: Built
    naive: Naive
    patches: Tensor
    words: int
    block: int
    at_once: int

    def package(self, objective: str, rows: int = 1) -> Generation:
        how = Decoding(Static(self.at_once), self.block, whole_canvas=objective == "mdm")
        never = self.built.model.vocab.pad  # no word, so no answer ends early
        return generate(
            self.built.model,
            self.built.prompter,
            [QUESTION] * rows,
            self.patches[:rows],
            self.words,
            stop=never,
            objective=objective,
            decoding=how,
        )

    def reference(self, objective: str, row: int = 0) -> list[int]:
        patches = self.patches[row : row + 1]
        if objective == "ar":
            return self.naive.answer(QUESTION, patches, self.words)
        size = self.block if objective == "bd" else self.words
        return self.naive.answer_in_blocks(QUESTION, patches, self.words, size, self.at_once)


def asking(size: Size, args: argparse.Namespace) -> Asking:
    keep_freed_memory()
    built = language_model(size, args.device, text_canvas_multiple=args.words)
    built.model.requires_grad_(False)
    draw = torch.Generator().manual_seed(3)
    patches = torch.randn(max(_numbers(args.batches)), PATCHES, int(size.clip.hidden_size), generator=draw)
    naive = Naive(slow_model(built.model), image_tokenizer(size, "meta"), built.prompter)
    return Asking(built, naive, patches.to(args.device), args.words, args.block_size, args.at_once)


def compare(work: Asking, objective: str) -> dict[str, int]:
    """How many forwards the package took; ``SystemExit`` unless both say the same."""
    said, expected = work.package(objective), work.reference(objective)
    if said.ids[0] != expected:
        same = next((i for i, (a, b) in enumerate(zip(said.ids[0], expected, strict=False)) if a != b), len(expected))
        raise SystemExit(f"{objective}: the two do not say the same (they part at word {same + 1}); nothing is timed")
    return {"words": len(expected), "forwards": said.stats.forwards}


def measure(work: Asking, objective: str, batches: Sequence[int], args: argparse.Namespace) -> dict[str, Any]:
    """Both in turn, with what floors are made of: a product of matrices, and one that reads weights."""
    device, clock = args.device, clock_of(args.device)
    product = Product(device)
    variants: dict[str, Callable[[], object]] = {
        "original": lambda: work.reference(objective),
        **{f"batch {rows}": partial(work.package, objective, rows) for rows in batches},
        "matrix product": product.ready(),
        "reading": Reading(device).ready(),
    }
    with tqdm(total=len(variants) * args.rounds, desc=objective, unit="run") as bar:
        laps = alternate(variants, args.rounds, device, tick=bar.update)
    same = compare(work, objective)
    floor = _floor(work, objective, same["forwards"], laps, product, clock)
    one = [a.of(clock) for a in laps["batch 1"]] if 1 in batches else []
    return {
        **same,
        "original": _speed(laps["original"], work.words, clock),
        **{f"batch {rows}": _speed(laps[f"batch {rows}"], work.words * rows, clock) for rows in batches},
        "times_faster": {
            str(rows): Spread.of([rows * value for value in _ratios(laps["original"], laps[f"batch {rows}"], clock)])
            for rows in batches
        },
        "at_batch_1": ratio(laps["original"], laps["batch 1"], clock) if one else None,
        "times_floor": Spread.of([a / b for a, b in zip(one, floor, strict=True)]) if one else None,
    }


def _ratios(slow: Sequence[Lap], fast: Sequence[Lap], clock: Any) -> list[float]:
    return [a.of(clock) / b.of(clock) for a, b in zip(slow, fast, strict=True)]


def _speed(laps: Sequence[Lap], words: int, clock: Any) -> dict[str, Spread]:
    return {
        "seconds": Spread.of([one.of(clock) for one in laps]),
        "words_per_second": Spread.of([words / one.of(clock) for one in laps]),
    }


def _floor(
    work: Asking, objective: str, forwards: int, laps: dict[str, list[Lap]], product: Product, clock: Any
) -> list[float]:
    """Seconds of each round: all counted operations at the product's rate, or reading the weights once for every
    forward behind the first, whichever is longer for these; the prompt's own operations always count."""
    model = work.built.model
    layers = sum(p.numel() * p.element_size() for p in model.backbone.lm.base_model.layers.parameters())
    head = model.vocab.words * model.backbone.hidden_size * 4
    first = counted(lambda: _one_forward(work, objective))
    every = counted(lambda: work.package(objective))
    found = []
    for a, b in zip(laps["matrix product"], laps["reading"], strict=True):
        arithmetic, reading = a.of(clock) / product.operations, b.of(clock) / STREAM_BYTES
        behind = max((every - first) * arithmetic, (forwards - 1) * (layers + head) * reading)
        found.append(first * arithmetic + behind)
    return found


def _one_forward(work: Asking, objective: str) -> None:
    """The forward that reads the prompt."""
    words = 1 if objective == "ar" else work.at_once
    Asking(work.built, work.naive, work.patches, words, words, words).package("ar" if objective == "ar" else "bd")


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    made = parser(NAME, DESCRIPTION, EPILOG)
    made.set_defaults(rounds=5)
    made.add_argument("--size", choices=SIZES, default="cpu", help="see benchmarks/sizes.py (default cpu)")
    made.add_argument("--objectives", default="ar,bd,mdm", help="ways to decode (default ar,bd,mdm)")
    made.add_argument("--words", type=whole(1), default=32, help="of an answer (default 32)")
    made.add_argument("--batches", default="1,8", help="questions at once (default 1,8)")
    made.add_argument("--block-size", type=int, default=8, help="of bd (default 8)")
    made.add_argument("--at-once", type=whole(1), default=4, help="words that bd and mdm keep per forward (default 4)")
    made.add_argument("--anyway", action="store_true", help="run a real size on a CPU")
    return made


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    made = _parser()
    args = made.parse_args(argv)
    objectives = chosen_objectives(made, args.objectives)
    bearable(SIZES[args.size], args.device, args.anyway)
    torch.set_num_threads(args.threads)
    work = asking(SIZES[args.size], args)
    batches = _numbers(args.batches)
    results = {}
    for objective in objectives:
        compare(work, objective)
        results[objective] = found = measure(work, objective, batches, args)
        print(
            f"  {objective:<4} {found['original']['seconds']} s; at batch 1 {found['batch 1']['seconds']} s in "
            f"{found['forwards']} forwards: {found['at_batch_1']} times faster, {found['times_floor']} times its floor"
            if 1 in batches
            else f"  {objective:<4} times faster: {found['times_faster']}"
        )
    settings = {key: getattr(args, key) for key in ("size", "words", "batches", "block_size", "at_once")}
    content = {"settings": settings, "results": results}
    write(args.out, NAME, arguments(argv), args.device, args.threads, content)
    return content


if __name__ == "__main__":
    run_command(main)

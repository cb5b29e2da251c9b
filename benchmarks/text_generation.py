"""Time answers about an image, against decoding without a cache on the same weights.

Generates the same tokens twice: by the package (cached prompt, logits of the slots that are read) and by a forward over
everything for every step with logits of every slot, as the original does. Answers must be equal before anything is
timed. The original decodes ``ar`` only; for ``bd`` and ``mdm`` the reference fills the same blocks without a cache. The
weights are random, so bd and mdm accept a fixed number of tokens per forward (benchmarks.text_decoding measures how
many trained models can accept). The reference is tests/benchmarks/naive_acting.py.

Examples:
  the figures of the documentation (a few minutes on one core):
    python -m benchmarks.text_generation --out benchmarks/results/text_generation.json
  at the real size, on a GPU:
    python -m benchmarks.text_generation --size phi --device cuda --words 128
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.problems import PATCHES, Size, add_size, check_size, image_tokenizer, language_model
from benchmarks.harness.record import Parser, settings_of, write
from benchmarks.harness.timing import PRODUCT, Product, Spread, Timings, alternate, counted
from common.arguments import whole
from common.command import run_command
from models.decoding import Decoding, Generation, Static, generate
from models.device import keep_freed_memory
from models.pretrained.model_io import Built
from tests.benchmarks.naive_acting import Naive
from tests.benchmarks.naive_step import slow_model

QUESTION = "Which colour is the block on the left, and what lies beside it on the table?"
READING = "reading"
READ_BYTES = 256 << 20
"""Size of the matrix that is read once to measure memory bandwidth: larger than any cache."""


@dataclass(frozen=True)
class Work:
    """A question about several images, for one model in two ways."""

    built: Built
    naive: Naive
    patches: Tensor
    words: int
    block: int
    at_once: int

    def package(self, objective: str, rows: int = 1) -> Generation:
        return generate(
            self.built.model,
            self.built.prompter,
            [QUESTION] * rows,
            self.patches[:rows],
            self.words,
            stop=self.built.model.vocab.pad,  # never generated, so that no answer ends early
            objective=objective,
            decoding=Decoding(Static(self.at_once), self.block, whole_canvas=objective == "mdm"),
        )

    def reference(self, objective: str) -> list[int]:
        if objective == "ar":
            return self.naive.answer(QUESTION, self.patches[:1], self.words)
        size = self.block if objective == "bd" else self.words
        return self.naive.answer_in_blocks(QUESTION, self.patches[:1], self.words, size, self.at_once)


def prepare(size: Size, args: argparse.Namespace) -> Work:
    keep_freed_memory()
    built = language_model(size, args.device, text_canvas_multiple=args.words)
    built.model.requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    patches = torch.randn(max(args.batches), PATCHES, int(size.clip.hidden_size), generator=generator)
    naive = Naive(slow_model(built.model), image_tokenizer(size, "meta"), built.prompter)
    return Work(built, naive, patches.to(args.device), args.words, args.block_size, args.at_once)


def compare(work: Work, objective: str) -> dict[str, int]:
    """Return the number of tokens and of the package's forwards. Raises ``SystemExit`` if the answers differ."""
    answer, expected = work.package(objective), work.reference(objective)
    if answer.ids[0] != expected:
        pairs = enumerate(zip(answer.ids[0], expected, strict=False))
        first = next((i for i, (a, b) in pairs if a != b), len(expected))
        raise SystemExit(f"{objective}: the two answers differ (from token {first + 1} on); nothing is timed")
    return {"words": len(expected), "forwards": answer.stats.forwards}


def reading(device: torch.device) -> Callable[[], object]:
    """Return the product of a large matrix with a vector, which is bound by reading the matrix."""
    matrix = torch.ones(READ_BYTES // 4096 // 4, 4096, device=device)
    vector = torch.ones(4096, device=device)
    return lambda: matrix @ vector


def measure(work: Work, objective: str, args: argparse.Namespace) -> dict[str, Any]:
    """Time both ways, alternating with what floors are based on."""
    product = Product(args.device)
    variants: dict[str, Callable[[], object]] = {
        "original": lambda: work.reference(objective),
        **{f"batch {rows}": partial(work.package, objective, rows) for rows in args.batches},
        PRODUCT: product.prepare(),
        READING: reading(args.device),
    }
    timings = alternate(variants, args.rounds, args.device, name=objective)
    same = compare(work, objective)
    sizes = {"original": 1, **{f"batch {rows}": rows for rows in args.batches}}
    alone = 1 in args.batches
    return {
        **same,
        **{
            name: {"seconds": timings.seconds(name), "words_per_second": timings.rate(name, work.words * rows)}
            for name, rows in sizes.items()
        },
        "times_faster": {str(rows): timings.ratio("original", f"batch {rows}", rows) for rows in args.batches},
        "at_batch_1": timings.ratio("original", "batch 1") if alone else None,
        "times_floor": times_floor(work, objective, same["forwards"], timings, product) if alone else None,
    }


def times_floor(work: Work, objective: str, forwards: int, timings: Timings, product: Product) -> Spread:
    """Return how many times longer batch 1 takes than its floor.

    The floor is the prompt's operations at the product's rate, and for the other forwards the longer of their
    operations and of reading the weights once for each.
    """
    model = work.built.model
    layers = sum(p.numel() * p.element_size() for p in model.backbone.lm.base_model.layers.parameters())
    weights = layers + model.vocab.words * model.backbone.hidden_size * 4
    words = 1 if objective == "ar" else work.at_once
    one_forward = replace(work, words=words, block=words, at_once=words)
    prompt = counted(lambda: one_forward.package("ar" if objective == "ar" else "bd"))
    total = counted(lambda: work.package(objective))
    rounds = zip(timings.values("batch 1"), timings.values(PRODUCT), timings.values(READING), strict=True)
    found = []
    for seconds, product_seconds, reading_seconds in rounds:
        operation, byte = product_seconds / product.operations, reading_seconds / READ_BYTES
        floor = prompt * operation + max((total - prompt) * operation, (forwards - 1) * weights * byte)
        found.append(seconds / floor)
    return Spread.of(found)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = Parser("text_generation", __doc__, rounds=5, objectives="ar,bd,mdm")
    add_size(parser)
    parser.add_argument("--words", type=whole(1), default=32, help="tokens of an answer (32)")
    parser.add_argument("--batches", default="1,8", help="batch sizes, by commas (1,8)")
    parser.add_argument("--block-size", type=int, default=8, help="block size of bd (8)")
    parser.add_argument("--at-once", type=whole(1), default=4, help="tokens that bd and mdm accept per forward (4)")
    args = parser.parse(argv)
    size = check_size(args)
    settings = settings_of(args, "size", "words", "batches", "block_size", "at_once")
    args.batches = [int(rows) for rows in args.batches.split(",")]
    work = prepare(size, args)
    results = {}
    for objective in args.objectives:
        compare(work, objective)
        results[objective] = found = measure(work, objective, args)
        print(
            f"  {objective:<4} {found['original']['seconds']} s; at batch 1 {found['batch 1']['seconds']} s in "
            f"{found['forwards']} forwards: {found['at_batch_1']} times faster, {found['times_floor']} times its floor"
            if 1 in args.batches
            else f"  {objective:<4} times faster: {found['times_faster']}"
        )
    content = {"settings": settings, "results": results}
    write(args, content)
    return content


if __name__ == "__main__":
    run_command(main)

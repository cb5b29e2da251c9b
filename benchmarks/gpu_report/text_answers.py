"""Cases that time answers about an image, by objective, block size and batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_report.case import Case, Context
from benchmarks.harness.problems import language_model
from benchmarks.harness.timing import alternate
from benchmarks.text_generation import QUESTION
from models.decoding import Decoding, Generation, Static, generate

SECTION = "text"
WORDS = {"real": 128, "tiny": 8}
BLOCKS = {"real": (8, 32), "tiny": (4,)}
BATCHES = {"real": (1, 8), "tiny": (1, 2)}
AT_ONCE = 4
"""Tokens that bd and mdm accept per forward: weights are random, so that their confidence has no meaning."""


def cases(size: str, networks: Sequence[str]) -> list[Case]:
    decoders = [("ar", 1), *(("bd", block) for block in BLOCKS[size]), ("mdm", WORDS[size])]
    return [
        Case(SECTION, f"{network}, {objective}, block {block}, batch {batch}", partial(answer, network, *key, batch))
        for network in networks
        for key in decoders
        for objective, block in [key]
        for batch in BATCHES[size]
    ]


def answer(network: str, objective: str, block: int, batch: int, context: Context) -> Mapping[str, Any]:
    """Time answers of a fixed number of tokens in bf16."""
    size, words = context.network(network), WORDS[context.size]
    built = context.shared(("text", network), lambda: language_model(size, context.device, text_canvas_multiple=words))
    built.model.requires_grad_(False)
    draw = torch.Generator().manual_seed(3)
    patches = torch.randn(batch, _patches(size.clip), int(size.clip.hidden_size), generator=draw).to(context.device)
    decoding = Decoding(Static(AT_ONCE), block, whole_canvas=objective == "mdm")

    def run() -> Generation:
        with context.autocast():
            return generate(
                built.model,
                built.prompter,
                [QUESTION] * batch,
                patches,
                words,
                stop=built.model.vocab.pad,  # never generated, so that no answer ends early
                objective=objective,
                decoding=decoding,
            )

    forwards = run().stats.forwards
    seconds = alternate({objective: run}, context.rounds, context.device).seconds(objective).median
    return {
        "block": block,
        "batch": batch,
        "words": words,
        "forwards": forwards,
        "tokens_per_s": batch * words / seconds,
    }


def _patches(clip: Any) -> int:
    return int(clip.image_size // clip.patch_size) ** 2

"""``generate``: answers to questions about images, one interface for every text objective.

Legend: B batch, P patches, C CLIP width.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from models.decoding.acceptance import Acceptance, Threshold
from models.decoding.decoders import Blocks, draft_and_verify, fill_blocks, next_token
from models.decoding.kv_cache import CachedPrefix, prompt_sequence
from models.decoding.sampling import LogitsFilter, Sampling
from models.decoding.state import DecodingState, OnStep
from models.language_model.positions import beyond_positions
from models.processing.text import Prompter
from models.upvla import UPVLA

DECODERS = ("ar", "mdm", "bd")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DecodingStats:
    """``forwards`` of the backbone; ``tokens`` of all rows; wall-clock seconds in total and to the first token."""

    forwards: int
    tokens: int
    seconds: float
    first_token_seconds: float

    @property
    def tokens_per_forward(self) -> float:
        return self.tokens / max(self.forwards, 1)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class Generation:
    """``texts``: answers; ``ids``: their tokens, with end-of-text if generated; ``stats``: the cost; ``cut``: answers
    that ended at ``max_new_tokens``, not by end-of-text (empty: unknown)."""

    texts: list[str]
    ids: list[list[int]]
    stats: DecodingStats
    cut: list[bool] = field(default_factory=list)


@dataclass(frozen=True)
class Decoding:
    """Settings of ``bd`` and ``mdm``. None: as the model was trained.

    ``accept``: the rule for keeping proposed tokens. ``block_size``: of ``bd``; for ``mdm`` the window of the canvas
    that is filled before the next (semi-autoregressive). ``whole_canvas``: ``mdm`` fills any slot of the canvas at any
    time. ``speculative``: ``bd`` drafts, the clean stream verifies; the answer equals greedy ``ar``. ``fused``: commit
    a block in the first forward of the next one.
    """

    accept: Acceptance = field(default_factory=Threshold)
    block_size: int | None = None
    whole_canvas: bool = False
    speculative: bool = False
    fused: bool = True


@torch.no_grad()
def generate(
    model: UPVLA,
    prompter: Prompter,
    questions: Sequence[str],
    patches: Tensor | None = None,
    max_new_tokens: int = 64,
    sampling: Sampling | None = None,
    generator: torch.Generator | None = None,
    words_only: bool = True,
    stop: int | None = None,
    *,
    objective: str | None = None,
    decoding: Decoding | None = None,
    on_step: OnStep | None = None,
) -> Generation:
    """Generate answers to ``questions``, one per row of ``patches`` [B, P, C] (CLIP features; None: no image).

    A row ends at end-of-text (or the id ``stop``) and does not change afterwards. ``words_only`` (default) allows words
    only; False allows all ids except the mask, as the original. ``objective``: decode as ``ar``, ``mdm`` or ``bd``
    (None: as the model was trained). ``on_step`` is called after every forward with the tokens so far. Raises
    ``ValueError``
    for settings that contradict each other.
    """
    objective = objective or model.spec.decoding.text_objective
    how, sampling = decoding or Decoding(), sampling or Sampling()
    if objective not in DECODERS:
        raise ValueError(f"objective is {objective!r}; allowed: {', '.join(DECODERS)}")
    if how.speculative and (objective != "bd" or sampling.temperature):
        raise ValueError("speculative decoding drafts with bd and verifies greedy answers (temperature 0)")
    started = time.perf_counter()
    asked = [prompter.question(question) for question in questions]
    prompt = prompt_sequence(model.vocab, prompter.system_ids, asked, patches)
    longest = int(prompt.slots.pos.max()) + 1 + max_new_tokens
    remedy = "shorten the question, or lower max_new_tokens"
    line = beyond_positions(model.backbone.config, longest, "a prompt and its answer", remedy)
    if line is not None:
        _warn_once(line)
    prompt = prompt.to(model.device)
    state = DecodingState(
        prefix=CachedPrefix(model, prompt),
        logits_filter=LogitsFilter(model, words_only),
        sampling=sampling,
        generator=generator,
        max_new_tokens=max_new_tokens,
        stop=model.vocab.eos if stop is None else stop,
        on_step=on_step,
        started=started,
    )
    _decode(state, model, objective, how, max_new_tokens)
    ids = state.answers
    seconds = time.perf_counter() - started
    stats = DecodingStats(state.prefix.forwards, sum(map(len, ids)), seconds, state.first_token_seconds)
    cut = [not row or row[-1] != state.stop for row in ids]
    return Generation([prompter.decode(row) for row in ids], ids, stats, cut)


@cache
def _warn_once(line: str) -> None:
    logger.warning("%s", line)


def _decode(state: DecodingState, model: UPVLA, objective: str, how: Decoding, max_new_tokens: int) -> None:
    spec = model.spec
    size, shift = how.block_size or spec.decoding.text_block_size, spec.decoding.text_prediction == "shift"
    if objective == "ar":
        next_token(state)
    elif objective == "bd" and how.speculative:
        draft_and_verify(state, size, shift)
    elif objective == "bd":
        fill_blocks(state, Blocks(size, None, shift, how.accept, how.fused))
    else:
        canvas = max(-(-max_new_tokens // spec.decoding.text_canvas_multiple), 1) * spec.decoding.text_canvas_multiple
        fill_blocks(state, Blocks(canvas, None if how.whole_canvas else size, shift, how.accept))

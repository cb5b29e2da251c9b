"""``generate``: images and questions in, answers out; one interface for every text objective.

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
    """``forwards`` of the backbone; ``tokens`` said over all rows; wall-clock seconds in all and to the first token."""

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
    """``texts``: answers; ``ids``: their tokens, end-of-text included when it was said; ``stats``: the cost; ``cut``:
    which answers ended at ``max_new_tokens``, not by themselves (empty: not known)."""

    texts: list[str]
    ids: list[list[int]]
    stats: DecodingStats
    cut: list[bool] = field(default_factory=list)


@dataclass(frozen=True)
class Decoding:
    """How ``bd`` and ``mdm`` decode. None: as the model was trained.

    ``accept``: which proposed words a forward keeps. ``block_size``: of ``bd``; of ``mdm`` the window of the canvas
    that is filled first, then the next (semi-autoregressive). ``whole_canvas``: ``mdm`` fills any slot of the canvas at
    any time. ``speculative``: ``bd`` drafts, the clean stream verifies; the answer is greedy ar's. ``fused``: commit a
    block in the forward that first looks at the next one.
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
    """Answers to ``questions``, one per row of ``patches`` [B, P, C] (CLIP features; None: no image).

    A row stops at end-of-text (or the id ``stop``) and stays as it is while others go on. ``words_only`` (default)
    never says a special token, an image code or the mask; False leaves all ids but the mask open, as the original.
    ``objective``: decode as ``ar``, ``mdm`` or ``bd`` (None: as the model was trained). ``on_step`` is told after every
    forward what has become visible. Raises ``ValueError`` for settings that contradict each other.
    """
    objective = objective or model.spec.text_objective
    how, sampling = decoding or Decoding(), sampling or Sampling()
    if objective not in DECODERS:
        raise ValueError(f"objective is {objective!r}; allowed: {', '.join(DECODERS)}")
    if how.speculative and (objective != "bd" or sampling.temperature):
        raise ValueError("speculative decoding drafts with bd and verifies greedy answers (temperature 0)")
    started = time.perf_counter()
    asked = [prompter.question(question) for question in questions]
    prompt = prompt_sequence(model.vocab, prompter.system_ids, asked, patches)
    longest = int(prompt.slots.pos.max()) + 1 + max_new_tokens
    remedy = "ask less, or lower max_new_tokens"
    line = beyond_positions(model.backbone.config, longest, "a prompt and its answer", remedy)
    if line is not None:
        _warn_once(line)
    prompt = prompt.to(model.device)
    turn = DecodingState(
        stream=CachedPrefix(model, prompt),
        voice=LogitsFilter(model, words_only),
        sampling=sampling,
        generator=generator,
        room=max_new_tokens,
        stop=model.vocab.eos if stop is None else stop,
        on_step=on_step,
        started=started,
    )
    _decode(turn, model, objective, how, max_new_tokens)
    ids = turn.answers
    seconds = time.perf_counter() - started
    stats = DecodingStats(turn.stream.forwards, sum(map(len, ids)), seconds, turn.first_word_after)
    cut = [not row or row[-1] != turn.stop for row in ids]
    return Generation([prompter.decode(row) for row in ids], ids, stats, cut)


@cache
def _warn_once(line: str) -> None:
    logger.warning("%s", line)


def _decode(turn: DecodingState, model: UPVLA, objective: str, how: Decoding, max_new_tokens: int) -> None:
    spec = model.spec
    size, shift = how.block_size or spec.text_block_size, spec.text_prediction == "shift"
    if objective == "ar":
        next_token(turn)
    elif objective == "bd" and how.speculative:
        draft_and_verify(turn, size, shift)
    elif objective == "bd":
        fill_blocks(turn, Blocks(size, None, shift, how.accept, how.fused))
    else:
        canvas = max(-(-max_new_tokens // spec.text_canvas_multiple), 1) * spec.text_canvas_multiple
        fill_blocks(turn, Blocks(canvas, None if how.whole_canvas else size, shift, how.accept))

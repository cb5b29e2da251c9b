"""State of a batch of answers during decoding, shared by the decoders.

Legend: B batch, n slots, S scored slots, D hidden.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.decoding.kv_cache import CachedPrefix
from models.decoding.sampling import LogitsFilter, Sampling


@dataclass(frozen=True)
class Progress:
    """The answers after a forward. ``rows``: ids of each answer, masked tokens as ``mask``; ``fresh``: tokens that this
    forward filled in."""

    forwards: int
    rows: list[list[int]]
    fresh: list[list[bool]]
    mask: int


OnStep = Callable[[Progress], None]


@dataclass
class DecodingState:
    """Answers in progress.

    ``answers``: committed tokens, end-of-text included; ``done`` [B]: rows that have ended and do not change;
    ``max_new_tokens``: most tokens of an answer; ``stop``: the id that ends one.
    """

    prefix: CachedPrefix
    logits_filter: LogitsFilter
    sampling: Sampling
    generator: torch.Generator | None
    max_new_tokens: int
    stop: int
    on_step: OnStep | None = None
    started: float = field(default_factory=time.perf_counter)
    first_token_seconds: float = 0.0

    def __post_init__(self) -> None:
        batch, device = self.prefix.end.shape[0], self.prefix.end.device
        self.answers: list[list[int]] = [[] for _ in range(batch)]
        self.done = torch.full((batch,), self.max_new_tokens < 1, dtype=torch.bool, device=device)

    @property
    def mask(self) -> int:
        return self.logits_filter.model.vocab.mask

    def is_finished(self) -> bool:
        """Return whether every answer has ended."""
        return bool(self.done.all())

    @property
    def tokens_left(self) -> int:
        """Most tokens that an unfinished answer may still get."""
        lengths = [len(a) for a, done in zip(self.answers, self.done.tolist(), strict=True) if not done]
        return self.max_new_tokens - min(lengths, default=self.max_new_tokens)

    def sample(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Sample ids [S] from hidden states [S, D]; return them with their probabilities [S]."""
        logits = self.logits_filter.logits(hidden)
        ids = self.sampling.sample(logits, self.generator)
        return ids, logits.softmax(dim=-1).gather(-1, ids[:, None])[:, 0]

    def commit(self, ids: Tensor, counts: Tensor | None = None) -> None:
        """Append tokens [B, n] (of each row the first ``counts`` [B]) to the unfinished answers."""
        taken = [ids.shape[1]] * ids.shape[0] if counts is None else counts.tolist()
        for row, (tokens, count, done) in enumerate(zip(ids.tolist(), taken, self.done.tolist(), strict=True)):
            if done:
                continue
            tokens = tokens[:count]
            if self.stop in tokens:
                tokens = tokens[: tokens.index(self.stop) + 1]
            answer = [*self.answers[row], *tokens][: self.max_new_tokens]
            self.answers[row] = answer
            if len(answer) == self.max_new_tokens or answer[-1] == self.stop:
                self.done[row] = True

    def report_progress(self, block: Tensor, fresh: Tensor) -> None:
        """Report a forward: ``block`` [B, n] follows the committed tokens; ``fresh`` [B, n] marks new ones."""
        if not self.first_token_seconds:
            self.first_token_seconds = time.perf_counter() - self.started
        if self.on_step is None:
            return
        rows, new = [], []
        for answer, ids, here, done in zip(
            self.answers, block.tolist(), fresh.tolist(), self.done.tolist(), strict=True
        ):
            width = 0 if done else self.max_new_tokens - len(answer)
            rows.append([*answer, *ids[:width]])
            new.append([*[False] * len(answer), *here[:width]])
        self.on_step(Progress(self.prefix.forwards, rows, new, self.mask))

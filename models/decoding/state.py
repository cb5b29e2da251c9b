"""A batch of answers in the making: what the decoders share.

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
    """The answers after a forward. ``rows``: each answer's ids, hidden tokens as ``mask``; ``fresh``: which of them
    this forward filled in."""

    forwards: int
    rows: list[list[int]]
    fresh: list[list[bool]]
    mask: int


OnStep = Callable[[Progress], None]


@dataclass
class DecodingState:
    """``answers``: words settled so far, end-of-text included; ``done`` [B]: rows that have ended and stay as they are;
    ``room``: most words of an answer; ``stop``: the id that ends one."""

    stream: CachedPrefix
    voice: LogitsFilter
    sampling: Sampling
    generator: torch.Generator | None
    room: int
    stop: int
    on_step: OnStep | None = None
    started: float = field(default_factory=time.perf_counter)
    first_word_after: float = 0.0

    def __post_init__(self) -> None:
        batch, device = self.stream.end.shape[0], self.stream.end.device
        self.answers: list[list[int]] = [[] for _ in range(batch)]
        self.done = torch.full((batch,), self.room < 1, dtype=torch.bool, device=device)

    @property
    def mask(self) -> int:
        return self.voice.model.vocab.mask

    def over(self) -> bool:
        """Every answer has ended."""
        return bool(self.done.all())

    @property
    def left(self) -> int:
        """Words that still fit into the answers that go on."""
        lengths = [len(a) for a, done in zip(self.answers, self.done.tolist(), strict=True) if not done]
        return self.room - min(lengths, default=self.room)

    def propose(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """[S, D] -> ids [S] and their probabilities [S]."""
        logits = self.voice.logits(hidden)
        ids = self.sampling.choose(logits, self.generator)
        return ids, logits.softmax(dim=-1).gather(-1, ids[:, None])[:, 0]

    def settle(self, ids: Tensor, counts: Tensor | None = None) -> None:
        """Words [B, n] (of each row the first ``counts`` [B]) become part of the answers that go on."""
        taken = [ids.shape[1]] * ids.shape[0] if counts is None else counts.tolist()
        for row, (words, count, done) in enumerate(zip(ids.tolist(), taken, self.done.tolist(), strict=True)):
            if done:
                continue
            words = words[:count]
            if self.stop in words:
                words = words[: words.index(self.stop) + 1]
            answer = [*self.answers[row], *words][: self.room]
            self.answers[row] = answer
            if len(answer) == self.room or answer[-1] == self.stop:
                self.done[row] = True

    def tell(self, block: Tensor, fresh: Tensor) -> None:
        """After a forward: ``block`` [B, n] is being filled behind what is settled; ``fresh`` [B, n] is new."""
        if not self.first_word_after:
            self.first_word_after = time.perf_counter() - self.started
        if self.on_step is None:
            return
        rows, new = [], []
        for answer, ids, here, done in zip(
            self.answers, block.tolist(), fresh.tolist(), self.done.tolist(), strict=True
        ):
            width = 0 if done else self.room - len(answer)
            rows.append([*answer, *ids[:width]])
            new.append([*[False] * len(answer), *here[:width]])
        self.on_step(Progress(self.stream.forwards, rows, new, self.mask))

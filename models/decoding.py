"""Saying something: a picture and a question in, an answer out.

``generate`` is the one interface for every text objective; today it decodes ``ar``: next token, with the KV cache of
the clean stream, batched.

Legend: B batch, L prompt, K cached slots, P patches, C CLIP width.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from models.loss import ban
from models.masks import MULTIMODAL, Kind, Slots
from models.prompting import Prompter
from models.sequence import Span, TokenSequence, pad_left
from models.tokens import Vocabulary
from models.upvla import UPVLA


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. ``temperature`` 0: the most likely one; ``top_k``, ``top_p`` narrow the choice."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it must be 1 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must lie in (0, 1]")

    def choose(self, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        """[B, V] -> [B] ids."""
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        logits = logits.double() / self.temperature  # Gumbel-free sampling still wants room in the tails
        if self.top_k is not None:
            kth = logits.topk(min(self.top_k, logits.shape[-1]), dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < kth, float("-inf"))
        if self.top_p is not None:
            ordered, index = logits.sort(dim=-1, descending=True)
            before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
            ordered = ordered.masked_fill(before >= self.top_p, float("-inf"))
            logits = torch.full_like(logits, float("-inf")).scatter(-1, index, ordered)
        return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]


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
    """``texts``: answers; ``ids``: their tokens, end-of-text included when it was said; ``stats``: the cost."""

    texts: list[str]
    ids: list[list[int]]
    stats: DecodingStats


def prompt_sequence(
    vocab: Vocabulary, system_ids: Sequence[int], questions: Sequence[Sequence[int]], patches: Tensor | None
) -> TokenSequence:
    """``<|mmu|> system <|soi|> patches <|eoi|> [padding] question``: every row ends at the last column.

    ``questions``: ids of ``Prompter.question``; ``patches`` [B, P, C] or None.
    """
    head = [vocab.mmu, *system_ids]
    span = None
    if patches is not None:
        if patches.shape[0] != len(questions):
            raise ValueError(f"{len(questions)} questions for {patches.shape[0]} pictures")
        span = Span(len(head) + 1, len(head) + 1 + patches.shape[1])
        head = [*head, vocab.soi, *[vocab.pad] * len(span), vocab.eoi]
    asked = pad_left(questions, vocab.pad)
    ids = torch.cat([torch.tensor(head).expand(len(questions), -1), asked], dim=1)
    kind = torch.full_like(ids, Kind.TEXT)
    if span is not None:
        kind[:, span.columns] = Kind.PATCH
    kind[:, len(head) :][asked == vocab.pad] = Kind.PAD
    padding = (asked == vocab.pad).sum(dim=1, keepdim=True)
    columns = torch.arange(ids.shape[1])
    pos = torch.where(columns < len(head), columns, (columns - padding).clamp_min(0))
    return TokenSequence(ids, Slots.plain(kind, pos), MULTIMODAL, patches=patches, patch_span=span)


def _extend(slots: Slots) -> tuple[Slots, Slots]:
    """(one answer slot after the last, all slots with it)."""
    one = torch.ones_like(slots.kind[:, :1])
    new = Slots(kind=one * Kind.ANSWER, pos=slots.pos[:, -1:] + 1, view=one * 0, start=-one)
    names = ("kind", "pos", "view", "start")
    return new, Slots(**{name: torch.cat([getattr(slots, name), getattr(new, name)], dim=1) for name in names})


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
) -> Generation:
    """Answers to ``questions``, one per row of ``patches`` [B, P, C] (CLIP features; None: no picture).

    A row stops at end-of-text (or the id ``stop``) and stays as it is while others go on. ``words_only`` (default)
    never says a special token, an image code or the mask; False leaves all ids but the mask open, as the original.
    """
    started = time.perf_counter()
    sampling = sampling or Sampling()
    vocab, device = model.vocab, model.device
    stop = vocab.eos if stop is None else stop
    asked = [prompter.question(question) for question in questions]
    sequence = prompt_sequence(vocab, prompter.system_ids, asked, patches).to(device)

    cache = DynamicCache(config=model.backbone.config)
    mask = sequence.rule.dense(sequence.slots)
    hidden = model.backbone(model.embed(sequence), mask, sequence.slots.pos, cache)
    slots, forwards, first_token = sequence.slots, 1, 0.0
    said: list[Tensor] = []
    running = torch.ones(len(asked), dtype=torch.bool, device=device)
    for step in range(max_new_tokens):
        logits = ban(model.backbone.logits(hidden[:, -1]), vocab.mask)  # [B, V]
        if words_only:
            logits[:, vocab.words :] = float("-inf")
        token = torch.where(running, sampling.choose(logits, generator), vocab.pad)
        said.append(token)
        running = running & (token != stop)
        if step == 0:
            first_token = time.perf_counter() - started
        if step + 1 == max_new_tokens or not running.any():
            break
        new, slots = _extend(slots)
        mask = sequence.rule.between(new, slots)
        hidden = model.backbone(model.backbone.embed(token[:, None]), mask, new.pos, cache)
        forwards += 1
    rows = torch.stack(said, dim=1).tolist() if said else [[] for _ in asked]
    ids = [[token for token in row if token != vocab.pad] for row in rows]
    stats = DecodingStats(forwards, sum(map(len, ids)), time.perf_counter() - started, first_token)
    return Generation([prompter.decode(row) for row in ids], ids, stats)

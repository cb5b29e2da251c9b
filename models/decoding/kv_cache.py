"""The clean stream of a batch of conversations: the one thing that is cached, whatever decodes.

Legend: B batch, L prompt, n new clean slots, m noisy slots, D hidden, P patches, C CLIP width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from models.attention_mask import MULTIMODAL, Kind, Slots, with_views
from models.sequence import Span, TokenSequence, pad_left
from models.upvla import UPVLA
from models.vocabulary import Vocabulary


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
            raise ValueError(f"{len(questions)} questions for {patches.shape[0]} images")
        span = Span(len(head) + 1, len(head) + 1 + patches.shape[1])
        head = [*head, vocab.soi, *[vocab.pad] * len(span), vocab.eoi]
    asked = pad_left(questions, vocab.pad)
    ids = torch.cat([torch.tensor(head).expand(len(questions), -1), asked], dim=1)
    kind = torch.full_like(ids, Kind.TEXT)
    if span is not None:
        kind[:, span.columns] = Kind.PATCH
    padding = torch.tensor([[asked.shape[1] - len(question)] for question in questions])  # [B, 1]
    columns = torch.arange(ids.shape[1])
    kind[(columns >= len(head)) & (columns < len(head) + padding)] = Kind.PAD
    pos = torch.where(columns < len(head), columns, (columns - padding).clamp_min(0))
    return TokenSequence(ids, Slots.plain(kind, pos), MULTIMODAL, patches=patches, patch_span=span)


class CachedPrefix:
    """Prompt and committed words of every row. What is appended is read with the next forward; noisy slots read along
    and leave no trace.

    ``end`` [B]: true position of each row's next word. ``last`` [B, D]: hidden state of the last clean slot that was
    read. ``forwards``: of the backbone so far.
    """

    def __init__(self, model: UPVLA, prompt: TokenSequence) -> None:
        self._model = model
        self._rule = with_views(prompt.rule)
        self._cache = model.backbone.new_cache()
        self._slots = prompt.slots
        self._unread = model.embed(prompt)  # [B, n, D]
        self.end = prompt.slots.pos[:, -1] + 1
        self.last = self._unread[:, -1]
        self.forwards = 0

    def append(self, ids: Tensor) -> None:
        """Commit words: ``ids`` [B, n]."""
        kind = torch.full_like(ids, int(Kind.ANSWER))
        pos = self.end[:, None] + torch.arange(ids.shape[1], device=ids.device)
        self._slots = _beside(self._slots, Slots.plain(kind, pos))
        self._unread = torch.cat([self._unread, self._model.backbone.embed(ids)], dim=1)
        self.end = self.end + ids.shape[1]

    def read(self, noisy: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One forward over what was appended and a noisy block behind it.

        ``noisy`` [B, m]: ids of a block that starts at ``end`` (masks and words). Returns hidden states
        ([B, n, D], [B, m, D]).
        """
        n = self._unread.shape[1]
        embeds, every = self._unread, self._slots
        if noisy is not None:
            pos = self.end[:, None] + torch.arange(noisy.shape[1], device=noisy.device)
            view = torch.ones_like(pos)
            block = Slots(view * Kind.ANSWER, pos, view, self.end[:, None].expand_as(pos))
            embeds, every = torch.cat([embeds, self._model.backbone.embed(noisy)], dim=1), _beside(every, block)
        first = every.shape[1] == embeds.shape[1]  # nothing is cached yet; only the prompt holds padding
        new = every.map(lambda tag: tag[:, -embeds.shape[1] :])
        mask = self._rule.dense(every) if first else self._rule.between(new, every)
        hidden = self._model.backbone(embeds, mask, new.pos, self._cache)
        if noisy is not None:
            self._cache.crop(-noisy.shape[1])  # negative: how many to remove
        if n:
            self.last = hidden[:, n - 1]
        self._unread = embeds[:, :0]
        self.forwards += 1
        return hidden[:, :n], hidden[:, n:]

    def rollback(self, appended: int, kept: Tensor) -> None:
        """Of the last ``appended`` words, which were read, each row keeps its first ``kept`` [B]; the others are never
        seen again. Slots that no row keeps leave the cache."""
        assert self._unread.shape[1] == 0, "only what was read can be retracted"
        width = self._slots.shape[1]
        offset = torch.arange(width, device=kept.device) - (width - appended)
        gone = offset[None] >= kept[:, None]
        kind = torch.where(gone, int(Kind.PAD), self._slots.kind)
        self._slots = replace(self._slots, kind=kind)
        self.end = self.end - appended + kept
        spare = appended - int(kept.max())
        if spare:
            self._cache.crop(-spare)
            self._slots = self._slots.map(lambda tag: tag[:, : width - spare])


def _beside(left: Slots, right: Slots) -> Slots:
    return Slots(**{f.name: torch.cat([getattr(left, f.name), getattr(right, f.name)], dim=1) for f in fields(Slots)})

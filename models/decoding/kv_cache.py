"""The clean stream of a batch of conversations with its cache of keys and values, shared by all decoders.

Legend: B batch, L prompt, n new clean slots, m noisy slots, D hidden, P patches, C CLIP width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from models.attention_mask import MULTIMODAL, Kind, Slots, concat_slots, with_noisy_copies
from models.sequence import Span, TokenSequence, pad_left
from models.upvla import UPVLA
from models.vocabulary import Vocabulary


def prompt_sequence(
    vocab: Vocabulary, system_ids: Sequence[int], questions: Sequence[Sequence[int]], patches: Tensor | None
) -> TokenSequence:
    """Return ``<|mmu|> system <|soi|> patches <|eoi|> [padding] question``; every row ends at the last column.

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
    return TokenSequence(ids, Slots.clean(kind, pos), MULTIMODAL, patches=patches, patch_span=span)


class CachedPrefix:
    """Prompt and committed tokens of every row. Appended tokens are read by the next forward. Noisy slots take part in
    a forward and are not cached.

    ``end`` [B]: true position of each row's next token. ``last`` [B, D]: hidden state of the last clean slot that was
    read. ``forwards``: number of forwards of the backbone.
    """

    def __init__(self, model: UPVLA, prompt: TokenSequence) -> None:
        self._model = model
        self._rule = with_noisy_copies(prompt.rule)
        self._cache = model.backbone.new_cache()
        self._slots = prompt.slots
        self._unread = model.embed(prompt)  # [B, n, D]
        self.end = prompt.slots.pos[:, -1] + 1
        self.last = self._unread[:, -1]
        self.forwards = 0

    def append(self, ids: Tensor) -> None:
        """Commit tokens, ``ids`` [B, n]."""
        kind = torch.full_like(ids, int(Kind.ANSWER))
        pos = self.end[:, None] + torch.arange(ids.shape[1], device=ids.device)
        self._slots = concat_slots(self._slots, Slots.clean(kind, pos))
        self._unread = torch.cat([self._unread, self._model.backbone.embed(ids)], dim=1)
        self.end = self.end + ids.shape[1]

    def forward(self, noisy: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run one forward over appended tokens and a noisy block after them.

        ``noisy`` [B, m]: ids of a block that starts at ``end`` (masks and tokens). Returns hidden states
        ([B, n, D], [B, m, D]).
        """
        n = self._unread.shape[1]
        embeds, slots = self._unread, self._slots
        if noisy is not None:
            pos = self.end[:, None] + torch.arange(noisy.shape[1], device=noisy.device)
            copy_id = torch.ones_like(pos)
            block = Slots(copy_id * Kind.ANSWER, pos, copy_id, self.end[:, None].expand_as(pos))
            embeds, slots = torch.cat([embeds, self._model.backbone.embed(noisy)], dim=1), concat_slots(slots, block)
        first = slots.shape[1] == embeds.shape[1]  # nothing is cached yet; only the prompt holds padding
        new = slots.map(lambda tag: tag[:, -embeds.shape[1] :])
        mask = self._rule.dense(slots) if first else self._rule.between(new, slots)
        hidden = self._model.backbone(embeds, mask, new.pos, self._cache)
        if noisy is not None:
            self._cache.crop(-noisy.shape[1])  # negative: how many to remove
        if n:
            self.last = hidden[:, n - 1]
        self._unread = embeds[:, :0]
        self.forwards += 1
        return hidden[:, :n], hidden[:, n:]

    def rollback(self, appended: int, kept: Tensor) -> None:
        """Keep only the first ``kept`` [B] of the last ``appended`` tokens, which were read; the others are not
        attended again. Slots that no row keeps are removed from the cache.
        """
        assert self._unread.shape[1] == 0, "tokens must be read before they are rolled back"
        width = self._slots.shape[1]
        offset = torch.arange(width, device=kept.device) - (width - appended)
        removed = offset[None] >= kept[:, None]
        kind = torch.where(removed, int(Kind.PAD), self._slots.kind)
        self._slots = replace(self._slots, kind=kind)
        self.end = self.end - appended + kept
        unused = appended - int(kept.max())
        if unused:
            self._cache.crop(-unused)
            self._slots = self._slots.map(lambda tag: tag[:, : width - unused])

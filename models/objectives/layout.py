"""The layout of the diffusion objectives: ``[P | x0 | v1 | v2 ...]``, built over the tags of ``Slots``.

P x0 is the clean conversation. Every noisy copy repeats all answers, each padded with end-of-text to the boundary of
its last block. Every answer starts a new grid of blocks.

Positions: a copy repeats the positions of the tokens that it stands for. The padding of an answer continues to count,
over the positions of the next question. Nothing leaks: a noisy slot attends clean slots before the *start* of its block
(a position of its own answer, before any later question) and noisy slots whose block starts at the same position
(starts are unique).

Legend: B batch, L clean slots, C slots of one noisy copy, W noisy copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from models.attention_mask import Kind, Slots, concat_slots, with_noisy_copies
from models.sequence import Span, TokenSequence
from models.vocabulary import Vocabulary


@dataclass(frozen=True)
class Canvas:
    """The tokens that a noisy copy stands for: the answers of each row, concatenated and padded. All [B, C].

    ``ids``: clean tokens; ``pos``: true positions; ``column``: column of the clean token in its row (a row padded on
    the left begins at a later column than at position 0); ``block_start``: position of the block's first token;
    ``block``: number of the block in its row; ``size``: tokens of the block; ``valid``: 0 at the padding of shorter
    rows.
    """

    ids: Tensor
    pos: Tensor
    column: Tensor
    block_start: Tensor
    block: Tensor
    size: Tensor
    valid: Tensor

    @property
    def real(self) -> Tensor:
        """[B, C] boolean: not padding."""
        return self.valid > 0

    @property
    def first(self) -> Tensor:
        """[B, C] True at the first token of each block."""
        return self.real & (self.pos == self.block_start)

    @property
    def start_column(self) -> Tensor:
        """[B, C] column of the first token of the slot's block in the clean stream (padding: -1)."""
        return self.block_start + self.column - self.pos

    @property
    def blocks(self) -> int:
        """Number of blocks in the row that has most."""
        return int(self.block.max()) + 1 if self.block.numel() else 0

    def masked_count(self, masked: Tensor) -> Tensor:
        """Return the number of masked tokens in each slot's block [B, C] (padding: 0). ``masked`` [B, C]."""
        counts = torch.zeros(masked.shape[0], self.blocks, dtype=torch.long)
        return counts.scatter_add(1, self.block, masked.long()).gather(1, self.block) * self.valid


def build_canvas(clean: TokenSequence, vocab: Vocabulary, sizes: Sequence[int], whole_answer: bool = False) -> Canvas:
    """Build the canvas of a batch. ``sizes`` [B]: tokens per block of each row.

    An answer that ends in end-of-text is padded with it to a multiple of the block size. A truncated answer is not
    padded, because its continuation is unknown; its last block is shorter. ``whole_answer``: an answer is one block.
    """
    rows = []
    for row, size in enumerate(sizes):
        ids = clean.ids[row]
        pos = clean.slots.pos[row]
        answers = [
            layout_answer(ids[a:z], a, int(pos[a]), vocab.eos, size, whole_answer)
            for a, z in answers_of(clean.slots.kind[row])
        ]
        rows.append(concat_answers(answers))
    names = [field.name for field in fields(Canvas)]
    padding = {"ids": vocab.pad, "block_start": -1}
    return Canvas(
        **{n: pad_sequence([row[n] for row in rows], batch_first=True, padding_value=padding.get(n, 0)) for n in names}
    )


def answers_of(kind: Tensor) -> list[tuple[int, int]]:
    """Return [start, stop) of each answer of one row; ``kind`` [L]."""
    inside = torch.zeros(kind.shape[0] + 2, dtype=torch.long)
    inside[1:-1] = kind == Kind.ANSWER
    edges = inside.diff()
    return list(zip((edges == 1).nonzero()[:, 0].tolist(), (edges == -1).nonzero()[:, 0].tolist(), strict=True))


def layout_answer(
    answer: Tensor, column: int, start: int, eos: int, size: int, whole_answer: bool
) -> dict[str, Tensor]:
    """Return the tags of one answer with its padding."""
    length = answer.shape[0]
    continued = -(-length // size) * size if int(answer[-1]) == eos else length
    size = continued if whole_answer else size
    offset = torch.arange(continued)
    block = offset // size
    return {
        "ids": torch.cat([answer, answer.new_full((continued - length,), eos)]),
        "pos": start + offset,
        "column": column + offset,
        "block_start": start + block * size,
        "block": block,
        "size": torch.full_like(offset, size).clamp_max(continued - block * size),
        "valid": torch.ones_like(offset),
    }


def concat_answers(answers: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate the answers of one row; block numbers continue from answer to answer."""
    if not answers:
        return {field.name: torch.zeros(0, dtype=torch.long) for field in fields(Canvas)}
    before = 0
    for answer in answers:
        answer["block"] = answer["block"] + before
        before = int(answer["block"][-1]) + 1
    return {name: torch.cat([answer[name] for answer in answers]) for name in answers[0]}


def apply_mask(uniform: Tensor, ratio: Tensor, maskable: Tensor) -> Tensor:
    """Return which tokens are masked: maskable ones whose uniform draw is below their ratio. All of one shape."""
    return (uniform < ratio) & maskable


def drop_unread_clean_tokens(clean: TokenSequence, canvas: Canvas) -> TokenSequence:
    """Remove the clean slots that no noisy slot attends and no token is predicted from: from the start of a row's last
    block on. For one answer that is one block this is all of x0: ``[P | v1 | v2]``."""
    length = clean.ids.shape[1]
    starts = canvas.start_column if canvas.block_start.shape[1] else torch.full((clean.ids.shape[0], 1), -1)
    last = starts.max(dim=1).values  # [B]
    last = torch.where(last < 0, length, last)
    width = int(last.max())
    is_read = torch.arange(width) < last[:, None]
    slots = clean.slots.map(lambda tag: tag[:, :width])
    kind = torch.where(is_read, slots.kind, int(Kind.PAD))
    return replace(clean, ids=clean.ids[:, :width], slots=replace(slots, kind=kind))


def append_noisy_copies(
    clean: TokenSequence, canvas: Canvas, masked: Tensor, mask: int
) -> tuple[TokenSequence, list[Span]]:
    """Return ``[P | x0 | v1 | v2 ...]`` and the columns of each noisy copy.

    ``masked`` [W, B, C]: tokens that each copy replaces by the id ``mask``.
    """
    ids, parts = [clean.ids], [clean.slots]
    width, spans = clean.ids.shape[1], []
    for number, chosen in enumerate(masked, start=1):
        ids.append(torch.where(chosen, mask, canvas.ids))
        kind = torch.where(canvas.real, int(Kind.ANSWER), int(Kind.PAD))
        copy_id = torch.full_like(kind, number)
        parts.append(Slots(kind=kind, pos=canvas.pos, copy_id=copy_id, block_start=canvas.block_start))
        spans.append(Span(width, width + canvas.ids.shape[1]))
        width = spans[-1].stop
    sequence = replace(clean, ids=torch.cat(ids, dim=1), slots=concat_slots(*parts), rule=with_noisy_copies(clean.rule))
    return sequence, spans

"""The one layout of the diffusion objectives: ``[P | x0 | v1 | v2 ...]``, built over the tags of ``Slots``.

P x0 is the clean conversation. Every view is a noisy copy of all answers, each continued with end-of-text to the
boundary of its last block. Every answer opens a fresh grid of blocks.

Positions: a copy repeats the positions of the words it stands for. The continuation counts on, over the positions of
the next question; nothing leaks: a noisy slot sees clean slots before the *start* of its block (which is an answer's
own position, before any later question) and noisy slots whose block starts where its own does (starts are unique).

Legend: B batch, L clean slots, C slots of one view, W views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from models.attention_mask import Kind, Slots, with_views
from models.sequence import Span, TokenSequence
from models.vocabulary import Vocabulary


@dataclass(frozen=True)
class Canvas:
    """What one noisy view stands for: the answers of each row end to end, with their continuation. All [B, C].

    ``ids``: clean tokens; ``pos``: true positions; ``column``: where the clean token stands in its row (a row padded on
    the left begins at a later column than at position 0); ``start``: position of the block's first token; ``block``:
    number of the block in its row; ``size``: tokens of the block; ``valid``: 0 at the padding of shorter rows.
    """

    ids: Tensor
    pos: Tensor
    column: Tensor
    start: Tensor
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
        return self.real & (self.pos == self.start)

    @property
    def start_column(self) -> Tensor:
        """[B, C]: where the first token of the slot's block stands in the clean stream (padding: -1)."""
        return self.start + self.column - self.pos

    @property
    def blocks(self) -> int:
        """Blocks of the row that has most."""
        return int(self.block.max()) + 1 if self.block.numel() else 0

    def hidden_count(self, hidden: Tensor) -> Tensor:
        """``hidden`` [B, C] -> for every slot, how many tokens of its block are hidden (padding: 0)."""
        counts = torch.zeros(hidden.shape[0], self.blocks, dtype=torch.long)
        return counts.scatter_add(1, self.block, hidden.long()).gather(1, self.block) * self.valid


def build_canvas(clean: TokenSequence, vocab: Vocabulary, sizes: Sequence[int], whole: bool = False) -> Canvas:
    """The canvas of a batch. ``sizes`` [B]: tokens per block of each row.

    An answer that ends in end-of-text is continued with it to a multiple of the block size; one that was cut is not
    continued (nobody knows how it went on), and its last block is shorter. ``whole``: all of an answer is one block.
    """
    rows = []
    for row, size in enumerate(sizes):
        ids = clean.ids[row]
        pos = clean.slots.pos[row]
        answers = [_lay(ids[a:z], a, int(pos[a]), vocab.eos, size, whole) for a, z in answers_of(clean.slots.kind[row])]
        rows.append(concat_answers(answers))
    names = [field.name for field in fields(Canvas)]
    padding = {"ids": vocab.pad, "start": -1}
    return Canvas(
        **{n: pad_sequence([row[n] for row in rows], batch_first=True, padding_value=padding.get(n, 0)) for n in names}
    )


def answers_of(kind: Tensor) -> list[tuple[int, int]]:
    """[start, stop) of each answer of one row; ``kind`` [L]."""
    inside = torch.zeros(kind.shape[0] + 2, dtype=torch.long)
    inside[1:-1] = kind == Kind.ANSWER
    edges = inside.diff()
    return list(zip((edges == 1).nonzero()[:, 0].tolist(), (edges == -1).nonzero()[:, 0].tolist(), strict=True))


def _lay(answer: Tensor, column: int, start: int, eos: int, size: int, whole: bool) -> dict[str, Tensor]:
    """Tags of one answer and its continuation."""
    length = answer.shape[0]
    continued = -(-length // size) * size if int(answer[-1]) == eos else length
    size = continued if whole else size
    offset = torch.arange(continued)
    block = offset // size
    return {
        "ids": torch.cat([answer, answer.new_full((continued - length,), eos)]),
        "pos": start + offset,
        "column": column + offset,
        "start": start + block * size,
        "block": block,
        "size": torch.full_like(offset, size).clamp_max(continued - block * size),
        "valid": torch.ones_like(offset),
    }


def concat_answers(answers: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The answers of one row behind each other; blocks are numbered through."""
    if not answers:
        return {field.name: torch.zeros(0, dtype=torch.long) for field in fields(Canvas)}
    before = 0
    for answer in answers:
        answer["block"] = answer["block"] + before
        before = int(answer["block"][-1]) + 1
    return {name: torch.cat([answer[name] for answer in answers]) for name in answers[0]}


def hide(uniform: Tensor, ratio: Tensor, may_hide: Tensor) -> Tensor:
    """Which tokens are hidden: those that may be and whose draw lies below their ratio. All of one shape."""
    return (uniform < ratio) & may_hide


def drop_unread_clean_tokens(clean: TokenSequence, canvas: Canvas) -> TokenSequence:
    """Without the clean slots that no noisy slot sees and no token is read from: from the start of a row's last block
    on. For one block per answer and one answer that is all of x0: ``[P | v1 | v2]``."""
    length = clean.ids.shape[1]
    starts = canvas.start_column if canvas.start.shape[1] else torch.full((clean.ids.shape[0], 1), -1)
    last = starts.max(dim=1).values  # [B]
    last = torch.where(last < 0, length, last)
    width = int(last.max())
    kept = torch.arange(width) < last[:, None]
    slots = clean.slots.map(lambda tag: tag[:, :width])
    kind = torch.where(kept, slots.kind, int(Kind.PAD))
    return replace(clean, ids=clean.ids[:, :width], slots=replace(slots, kind=kind))


def append_noisy_copies(
    clean: TokenSequence, canvas: Canvas, hidden: Tensor, mask: int
) -> tuple[TokenSequence, list[Span]]:
    """``[P | x0 | v1 | v2 ...]`` and the columns of each view.

    ``hidden`` [W, B, C]: tokens that each view shows as ``mask``.
    """
    ids, parts = [clean.ids], [clean.slots]
    width, spans = clean.ids.shape[1], []
    for number, covered in enumerate(hidden, start=1):
        ids.append(torch.where(covered, mask, canvas.ids))
        kind = torch.where(canvas.real, int(Kind.ANSWER), int(Kind.PAD))
        view = torch.full_like(kind, number)
        parts.append(Slots(kind=kind, pos=canvas.pos, view=view, start=canvas.start))
        spans.append(Span(width, width + canvas.ids.shape[1]))
        width = spans[-1].stop
    sequence = replace(clean, ids=torch.cat(ids, dim=1), slots=join(parts), rule=with_views(clean.rule))
    return sequence, spans


def join(parts: Sequence[Slots]) -> Slots:
    """Tags of spans behind each other."""
    return Slots(**{f.name: torch.cat([getattr(part, f.name) for part in parts], dim=1) for f in fields(Slots)})

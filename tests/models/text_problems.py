"""Conversations for a tiny model, and a second, slow way to compute what the diffusion objectives compute."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.objectives import TextTask
from models.processing.text import Prompter
from models.sequence import TextTurn
from models.upvla import UPVLA

Built = tuple[UPVLA, Prompter]
Dialogue = Sequence[tuple[str, str]]
"""(question, answer), one after the other."""

TALK: list[Dialogue] = [
    [("which block?", "the pink block"), ("where?", "inside")],
    [("lit?", "no")],
]


def talk(built: Built, dialogues: Sequence[Dialogue] = TALK, seed: int = 0, width: int | None = None) -> TextTurn:
    """Dialogues as a batch; every image is noise drawn from (seed, its number)."""
    model, prompter = built
    turns = [[(who, say) for q, a in d for who, say in (("human", q), ("gpt", a))] for d in dialogues]
    rows = [prompter.conversation(turn) for turn in turns]
    images = [
        torch.randn(5, model.spec.clip_width or 1, generator=torch.Generator().manual_seed(100 * seed + number))
        for number in range(len(rows))
    ]
    return TextTurn.of_rows(
        [row.ids for row in rows],
        [row.answer for row in rows],
        model.vocab.pad,
        torch.stack(images),
        torch.arange(len(rows)),
        width=width,
    )


def one_row(turn: TextTurn, row: int) -> TextTurn:
    """That row alone, its padding kept, its name in the data set too."""
    assert turn.patches is not None
    assert turn.indices is not None
    assert turn.lengths is not None
    ids, answer, patches, indices, lengths = (
        part[row : row + 1] for part in (turn.ids, turn.answer, turn.patches, turn.indices, turn.lengths)
    )
    return TextTurn(ids, answer, patches, indices, lengths=lengths)


@dataclass(frozen=True)
class Block:
    """One block of one answer: clean tokens (continuation included) from true position ``start`` on."""

    row: int
    start: int
    ids: list[int]


def blocks_of(built: Built, turn: TextTurn, size: int, whole: bool = False) -> list[Block]:
    """The blocks of a batch, by plain loops."""
    model, prompter = built
    head = 1 + len(prompter.system_ids) + 2 + (0 if turn.patches is None else turn.patches.shape[1])
    found = []
    for row in range(turn.ids.shape[0]):
        ids, answer = turn.ids[row].tolist(), turn.answer[row].tolist()
        column = 0
        while column < len(ids):
            if not answer[column]:
                column += 1
                continue
            start, words = column, []
            while column < len(ids) and answer[column]:
                words.append(ids[column])
                column += 1
            if words[-1] == model.vocab.eos:
                while len(words) % size:
                    words.append(model.vocab.eos)
            step = len(words) if whole else size
            for offset in range(0, len(words), step):
                found.append(Block(row, head + start + offset, words[offset : offset + step]))
    return found


def clean_ids(built: Built, turn: TextTurn, row: int) -> list[int]:
    """The clean conversation of one row; patches stand as padding ids."""
    model, prompter = built
    patches = 0 if turn.patches is None else turn.patches.shape[1]
    vocab = model.vocab
    head = [vocab.mmu, *prompter.system_ids, vocab.soi, *[vocab.pad] * patches, vocab.eoi]
    return [*head, *turn.ids[row].tolist()]


def alone(built: Built, turn: TextTurn, block: Block, shown: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Log-probabilities from one forward over (everything before the block, the block as ``shown``) and nothing else.

    Returns ([V] at the clean slot before the block, [n, V] at the block's own slots).
    """
    model, prompter = built
    before = clean_ids(built, turn, block.row)[: block.start]
    length, total = len(before), len(before) + len(shown)
    ids = torch.tensor([[*before, *shown]])
    embeds = model.backbone.embed(ids)
    if turn.patches is not None:
        assert model.projector is not None
        at = 1 + len(prompter.system_ids) + 1
        patches = model.projector(turn.patches[block.row : block.row + 1])
        embeds = torch.cat([embeds[:, :at], patches, embeds[:, at + patches.shape[1] :]], dim=1)
    mask = torch.ones(total, total, dtype=torch.bool).tril()
    mask[length:] = True  # noisy slots see everything here
    if turn.patches is not None:
        mask[:, at : at + turn.patches.shape[1]] = True
    hidden = model.backbone(embeds, mask[None, None], torch.arange(total)[None])
    logits = model.backbone.logits(hidden[0, length - 1 :])[:, : model.vocab.mask]
    scores = F.log_softmax(logits, dim=-1)
    return scores[0], scores[1:]


def shown_in(task: TextTask, block: Block, view: int) -> list[int]:
    """What a view of the one forward shows of a block."""
    slots = task.sequence.slots
    here = (slots.copy_id[block.row] == view) & (slots.block_start[block.row] == block.start) & slots.valid[block.row]
    return task.sequence.ids[block.row][here].tolist()


def cross_entropies(
    built: Built, turn: TextTurn, block: Block, hidden: Sequence[bool], prediction: str
) -> dict[int, Tensor]:
    """offset -> cross-entropy of every hidden token of a block, by a forward of its own."""
    model, _ = built
    shown = [model.vocab.mask if h else word for h, word in zip(hidden, block.ids, strict=True)]
    first, own = alone(built, turn, block, shown)
    found = {}
    for offset, word in enumerate(block.ids):
        if not hidden[offset]:
            continue
        if prediction == "aligned":
            found[offset] = -own[offset, word]
        else:
            found[offset] = -first[word] if offset == 0 else -own[offset - 1, word]
    return found


def hidden_probability(n: int, k: int, low: float, high: float) -> float:
    """Of one particular set of k hidden tokens of n, by quadrature over the ratio."""
    nodes, weights = np.polynomial.legendre.leggauss(24)
    t = (high - low) / 2 * nodes + (high + low) / 2
    return float((weights / 2 * t**k * (1 - t) ** (n - k)).sum())


def enumerated_bound(built: Built, turn: TextTurn, size: int, prediction: str) -> Tensor:
    """sum over k of (1/k) E[sum of the cross-entropies of the k hidden], over every block and every set."""
    total = torch.zeros(())
    for block in blocks_of(built, turn, size):
        n = len(block.ids)
        for k in range(1, n + 1):
            sets = [s for s in itertools.product([False, True], repeat=n) if sum(s) == k]
            losses = [
                torch.stack(list(cross_entropies(built, turn, block, s, prediction).values())).sum() for s in sets
            ]
            total = total + torch.stack(losses).mean() / k
    return total

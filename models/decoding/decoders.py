"""The three ways to speak: next token, blocks of masks, drafts that are verified.

Legend: B batch, n slots of a block, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.decoding.acceptance import Acceptance, Threshold
from models.decoding.kv_cache import CachedPrefix
from models.decoding.state import DecodingState


def next_token(turn: DecodingState) -> None:
    """``ar``: one forward a word."""
    while not turn.over():
        turn.stream.read()
        ids, _ = turn.propose(turn.stream.last)
        ids = torch.where(turn.done, turn.stop, ids)[:, None]
        turn.tell(ids, ~turn.done[:, None])
        turn.settle(ids)
        turn.stream.append(ids)


@dataclass(frozen=True)
class Blocks:
    """How blocks of masks are filled.

    ``size``: slots of a block; ``window``: only the first window with a hidden slot is filled at a time (None: any slot
    of the block); ``shift``: the reading that was trained; ``fused``: a full block is committed in the forward that
    first looks at the next one.
    """

    size: int
    window: int | None = None
    shift: bool = True
    accept: Acceptance = field(default_factory=Threshold)
    fused: bool = True

    def __post_init__(self) -> None:
        for name, value in (("block_size", self.size), ("window", self.window)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be 1 or more")


def fill_blocks(turn: DecodingState, blocks: Blocks) -> None:
    """``bd``, and ``mdm`` with one block for the whole canvas: a block of masks sees all that is committed; words are
    accepted until it is full; then it joins the clean stream, by a causal forward."""
    while not turn.over():
        block = torch.full((turn.done.shape[0], blocks.size), turn.mask, device=turn.done.device)
        wanted = torch.arange(blocks.size, device=block.device) < turn.left
        ended = turn.done
        while not ended.all():
            hidden = readings(turn.stream, block, blocks.shift)  # [B, n, D]
            useful = (block == turn.mask) & wanted & ~_behind(block == turn.stop) & ~ended[:, None]
            open_ = _open(useful, blocks.window)
            proposed, confidence = block.clone(), torch.zeros(block.shape, device=block.device)
            proposed[open_], confidence[open_] = turn.propose(hidden[open_])
            # Nothing is filled behind the first proposed end: the continuation is what a model is surest of, and would
            # be filled first, to no use.
            open_ = open_ & ~_behind(open_ & (proposed == turn.stop))
            fresh = blocks.accept.keep(confidence, open_, turn.generator)
            block = torch.where(fresh, proposed, block)
            turn.tell(block, fresh)
            masks_before = ((block == turn.mask) & wanted).long().cumsum(dim=1)
            says_stop = ((block == turn.stop) & (masks_before == 0)).any(dim=1)
            ended = ended | says_stop | (masks_before[:, -1] == 0)
        # A row that has ended may leave masks behind its end: nobody will read them.
        block = torch.where(block == turn.mask, turn.stop, block)
        turn.settle(block)
        if turn.over():
            return
        turn.stream.append(block)
        if not blocks.fused:
            turn.stream.read()


def readings(stream: CachedPrefix, block: Tensor, shift: bool) -> Tensor:
    """[B, n, D]: the hidden state each token of the block is read from."""
    _, noisy = stream.read(block)
    return torch.cat([stream.last[:, None], noisy[:, :-1]], dim=1) if shift else noisy


def _behind(ends: Tensor) -> Tensor:
    """[B, n] True behind the first True of each row."""
    return (ends.long().cumsum(dim=1) - ends.long()) > 0


def _open(hidden: Tensor, window: int | None) -> Tensor:
    """Hidden slots in the first window that has one."""
    if window is None:
        return hidden
    number = torch.arange(hidden.shape[1], device=hidden.device) // window
    first = torch.where(hidden, number, hidden.shape[1]).min(dim=1, keepdim=True).values
    return hidden & (number == first)


def draft_and_verify(turn: DecodingState, size: int, shift: bool) -> None:
    """Speculative ``bd``: one forward drafts a block, the clean stream says in one forward what ``ar`` would have said,
    and the draft is kept as far as both agree, with ar's own next word. Whatever is drafted, the answer is greedy ar's.
    """
    batch = turn.done.shape[0]
    while not turn.over():
        masks = torch.full((batch, size), turn.mask, device=turn.done.device)
        draft = turn.propose(readings(turn.stream, masks, shift).flatten(0, 1))[0].view(batch, size)
        before = turn.stream.last
        turn.stream.append(draft)
        clean, _ = turn.stream.read()
        following = torch.cat([before[:, None], clean], dim=1)  # [B, n + 1, D]
        said = turn.propose(following.flatten(0, 1))[0].view(batch, size + 1)  # ar, at each slot and behind the last
        kept = (draft == said[:, :-1]).long().cumprod(dim=1).sum(dim=1)  # [B]
        kept = torch.where(turn.done, size, kept)
        agreed = torch.arange(size + 1, device=kept.device) <= kept[:, None]
        turn.tell(torch.where(agreed, said, turn.mask), agreed)
        turn.settle(said, kept + 1)
        turn.stream.rollback(size, kept)
        turn.stream.append(said.gather(1, kept[:, None]))

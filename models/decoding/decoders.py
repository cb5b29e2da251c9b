"""Decoders: next token, blocks of masks, and drafts that are verified.

Legend: B batch, n slots of a block, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.decoding.acceptance import Acceptance, Threshold
from models.decoding.kv_cache import CachedPrefix
from models.decoding.state import DecodingState


def next_token(state: DecodingState) -> None:
    """Decode ``ar``: one forward per token."""
    while not state.is_finished():
        state.prefix.forward()
        ids, _ = state.sample(state.prefix.last)
        ids = torch.where(state.done, state.stop, ids)[:, None]
        state.report_progress(ids, ~state.done[:, None])
        state.commit(ids)
        state.prefix.append(ids)


@dataclass(frozen=True)
class Blocks:
    """Settings of block decoding.

    ``size``: slots of a block; ``window``: fill only the first window with a masked slot at a time (None: any slot of
    the block); ``shift``: the trained prediction; ``fused``: commit a full block in the first forward of the next one.
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


def fill_blocks(state: DecodingState, blocks: Blocks) -> None:
    """Decode ``bd``, and ``mdm`` with one block for the whole canvas.

    A block of masks attends all committed tokens. Tokens are accepted until it is full; then a causal forward adds it
    to the clean stream.
    """
    while not state.is_finished():
        block = torch.full((state.done.shape[0], blocks.size), state.mask, device=state.done.device)
        wanted = torch.arange(blocks.size, device=block.device) < state.tokens_left
        ended = state.done
        while not ended.all():
            hidden = prediction_states(state.prefix, block, blocks.shift)  # [B, n, D]
            useful = (block == state.mask) & wanted & ~_after_first(block == state.stop) & ~ended[:, None]
            open_ = _open(useful, blocks.window)
            proposed, confidence = block.clone(), torch.zeros(block.shape, device=block.device)
            proposed[open_], confidence[open_] = state.sample(hidden[open_])
            # Slots after the first proposed end stay open: a model is most confident of the padding after it, and would
            # fill that first, without use.
            open_ = open_ & ~_after_first(open_ & (proposed == state.stop))
            fresh = blocks.accept.keep(confidence, open_, state.generator)
            block = torch.where(fresh, proposed, block)
            state.report_progress(block, fresh)
            masks_before = ((block == state.mask) & wanted).long().cumsum(dim=1)
            has_stop = ((block == state.stop) & (masks_before == 0)).any(dim=1)
            ended = ended | has_stop | (masks_before[:, -1] == 0)
        # A row that has ended may have masks after its end, which are not used.
        block = torch.where(block == state.mask, state.stop, block)
        state.commit(block)
        if state.is_finished():
            return
        state.prefix.append(block)
        if not blocks.fused:
            state.prefix.forward()


def prediction_states(prefix: CachedPrefix, block: Tensor, shift: bool) -> Tensor:
    """Return [B, n, D]: the hidden state that predicts each token of the block."""
    _, noisy = prefix.forward(block)
    return torch.cat([prefix.last[:, None], noisy[:, :-1]], dim=1) if shift else noisy


def _after_first(ends: Tensor) -> Tensor:
    """Return [B, n], True after the first True of each row."""
    return (ends.long().cumsum(dim=1) - ends.long()) > 0


def _open(masked: Tensor, window: int | None) -> Tensor:
    """Return the masked slots in the first window that has one."""
    if window is None:
        return masked
    number = torch.arange(masked.shape[1], device=masked.device) // window
    first = torch.where(masked, number, masked.shape[1]).min(dim=1, keepdim=True).values
    return masked & (number == first)


def draft_and_verify(state: DecodingState, size: int, shift: bool) -> None:
    """Decode speculative ``bd``: one forward drafts a block, another predicts the tokens of ``ar``.

    The draft is kept up to the first difference, followed by the token of ``ar``, so that the answer equals greedy
    ``ar``.
    """
    batch = state.done.shape[0]
    while not state.is_finished():
        masks = torch.full((batch, size), state.mask, device=state.done.device)
        draft = state.sample(prediction_states(state.prefix, masks, shift).flatten(0, 1))[0].view(batch, size)
        before = state.prefix.last
        state.prefix.append(draft)
        clean, _ = state.prefix.forward()
        following = torch.cat([before[:, None], clean], dim=1)  # [B, n + 1, D]
        ar_tokens = state.sample(following.flatten(0, 1))[0].view(batch, size + 1)  # at each slot and after the last
        kept = (draft == ar_tokens[:, :-1]).long().cumprod(dim=1).sum(dim=1)  # [B]
        kept = torch.where(state.done, size, kept)
        agreed = torch.arange(size + 1, device=kept.device) <= kept[:, None]
        state.report_progress(torch.where(agreed, ar_tokens, state.mask), agreed)
        state.commit(ar_tokens, kept + 1)
        state.prefix.rollback(size, kept)
        state.prefix.append(ar_tokens.gather(1, kept[:, None]))

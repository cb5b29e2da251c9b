"""Attention masks as rules over tags, without a matrix of positions.

Every slot of a sequence carries integer tags (``Slots``). A ``Rule`` is a predicate over the tags of a query slot and
of a key slot; rules combine with ``&``, ``|`` and ``~``. The same predicate is evaluated as a dense boolean mask
(SDPA), as an additive one (eager attention), and as FlexAttention's ``mask_mod`` (nothing is materialised). Tests and
``scripts/show_mask.py`` draw it.

Legend: B batch, L sequence, Q queries, K keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from enum import IntEnum

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from models.device import fields_to_device


class Kind(IntEnum):
    """What a slot holds."""

    PAD = 0
    TEXT = 1  # task token, instruction, system prompt, question
    IMAGE = 2  # robot flow: <|soi|>, image codes, <|eoi|>
    PATCH = 3  # mmu flow: one projected CLIP patch
    ACTION = 4  # <|lvg|>: the slots that the action head reads
    ANSWER = 5  # tokens that the text objective predicts, or action tokens, clean or noisy


TILE = 128
"""Slots of a FlexAttention tile."""

LETTERS = {Kind.PAD: ".", Kind.TEXT: "t", Kind.IMAGE: "i", Kind.PATCH: "p", Kind.ACTION: "a", Kind.ANSWER: "w"}


@dataclass(frozen=True)
class Slots:
    """Tags of every slot; all tensors are [B, L] (or broadcastable views of it inside a rule).

    ``kind``: a ``Kind``. ``pos``: true position, for rotary embeddings; a noisy copy repeats the position of the token
    that it stands for. ``copy_id``: 0 for the clean stream, 1, 2, ... for noisy copies. ``block_start``: true position
    of the first token of the slot's block, -1 outside answers.
    """

    kind: Tensor
    pos: Tensor
    copy_id: Tensor
    block_start: Tensor

    @property
    def valid(self) -> Tensor:
        return self.kind != Kind.PAD.value

    @classmethod
    def clean(cls, kind: Tensor, pos: Tensor) -> Slots:
        """Return the tags of a sequence without noisy copies and blocks."""
        return cls(kind=kind, pos=pos, copy_id=torch.zeros_like(kind), block_start=torch.full_like(kind, -1))

    def map(self, f: Callable[[Tensor], Tensor]) -> Slots:
        return Slots(**{field.name: f(getattr(self, field.name)) for field in fields(self)})

    def to(self, device: torch.device | str) -> Slots:
        return fields_to_device(self, device)

    @property
    def shape(self) -> torch.Size:
        return self.kind.shape


def concat_slots(*parts: Slots) -> Slots:
    """Concatenate the tags of spans along L."""
    return Slots(**{f.name: torch.cat([getattr(part, f.name) for part in parts], dim=1) for f in fields(Slots)})


Predicate = Callable[[Slots, Slots], Tensor]


@dataclass(frozen=True)
class Rule:
    """A predicate ``allowed(q, k)``: may this query slot attend that key slot? Invalid keys are never attended."""

    allowed: Predicate
    name: str = "rule"

    def __and__(self, other: Rule) -> Rule:
        return Rule(lambda q, k: self.allowed(q, k) & other.allowed(q, k), f"({self.name} & {other.name})")

    def __or__(self, other: Rule) -> Rule:
        return Rule(lambda q, k: self.allowed(q, k) | other.allowed(q, k), f"({self.name} | {other.name})")

    def __invert__(self) -> Rule:
        return Rule(lambda q, k: ~self.allowed(q, k), f"~{self.name}")

    def between(self, queries: Slots, keys: Slots) -> Tensor:
        """Return [B, 1, Q, K] boolean, True where attention is allowed. Rows of padding queries are all False; use
        ``dense`` for a mask that attention can take."""
        q = queries.map(lambda tag: tag[:, :, None])  # [B, Q, 1]
        k = keys.map(lambda tag: tag[:, None, :])  # [B, 1, K]
        return (self.allowed(q, k) & k.valid & q.valid)[:, None]

    def dense(self, slots: Slots) -> Tensor:
        """Return [B, 1, L, L] boolean for SDPA. Padding attends only itself: a row that attends nothing is undefined in
        some kernels (NaN in eager attention), and its output is not used."""
        mask = self.between(slots, slots)
        padding = torch.diag_embed(~slots.valid)[:, None]
        return mask | padding

    def additive(self, slots: Slots, dtype: torch.dtype) -> Tensor:
        """Return [B, 1, L, L] with 0 where attention is allowed and the dtype's lowest value elsewhere. Eager attention
        adds the mask to the scores, so a boolean one would be silently wrong."""
        return additive(self.dense(slots), dtype)

    def mask_mod(self, slots: Slots) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """Return FlexAttention's predicate (batch, head, query index, key index) -> bool; equals ``dense``."""

        def mod(b: Tensor, h: Tensor, q_index: Tensor, k_index: Tensor) -> Tensor:
            q = slots.map(lambda tag: tag[b, q_index])
            k = slots.map(lambda tag: tag[b, k_index])
            return (self.allowed(q, k) & k.valid & q.valid) | (~q.valid & (q_index == k_index))

        return mod

    def blocks(self, slots: Slots) -> BlockMask:
        """Return FlexAttention's mask: the tiles of ``TILE`` x ``TILE`` slots with any allowed pair, and the predicate
        for mixed tiles. Other tiles are not computed. ``slots`` must be [B, L] with its own batch dimension."""
        batch, length = slots.shape
        device = str(slots.kind.device)
        # One mask for all heads. The kernel reads the tags, so nothing of size L x L is stored.
        return create_block_mask(self.mask_mod(slots), batch, None, length, length, device=device, BLOCK_SIZE=TILE)

    def draw(self, slots: Slots, row: int = 0) -> str:
        """Return the mask of one row as text: one line per query, its kind first; '#' attends, '·' does not."""
        mask = self.dense(slots)[row, 0]
        kinds = [Kind(int(value)) for value in slots.kind[row]]
        header = "  " + "".join(LETTERS[kind] for kind in kinds)
        lines = [
            f"{LETTERS[kind]} " + "".join("#" if cell else "·" for cell in line)
            for kind, line in zip(kinds, mask.tolist(), strict=True)
        ]
        return "\n".join([header, *lines])


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a boolean mask to 0 / lowest value of ``dtype``."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


CAUSAL = Rule(lambda q, k: k.pos <= q.pos, "causal")
TO_PATCHES = Rule(lambda q, k: k.kind == Kind.PATCH.value, "to_patches")
# The image span attends later slots, but not the action tokens after the robot flow: they are predicted, not given.
FROM_IMAGE = Rule(lambda q, k: (q.kind == Kind.IMAGE.value) & (k.kind != Kind.ANSWER.value), "from_image")
CLEAN_TO_CLEAN = Rule(lambda q, k: (q.copy_id == 0) & (k.copy_id == 0), "clean_to_clean")
NOISY_TO_PAST = Rule(lambda q, k: (q.copy_id > 0) & (k.copy_id == 0) & (k.pos < q.block_start), "noisy_to_past")
NOISY_TO_OWN_BLOCK = Rule(
    lambda q, k: (q.copy_id > 0) & (k.copy_id == q.copy_id) & (k.block_start == q.block_start), "noisy_to_own_block"
)

ROBOT = CAUSAL | FROM_IMAGE
"""Robot flow: text and action slots attend earlier slots, the image span attends every valid slot except action tokens.
"""

MULTIMODAL = CAUSAL | TO_PATCHES
"""Mmu flow: causal, and every slot attends the image."""


def with_noisy_copies(flow: Rule) -> Rule:
    """Return the flow's rule among clean slots, extended by the noisy copies of an answer.

    A noisy slot attends the clean slots before its block, and its own block in its own copy. No clean slot attends a
    noisy one, no copy attends another (the mask of BD3-LM, arXiv 2503.09573, with a causal clean stream).
    """
    return replace((CLEAN_TO_CLEAN & flow) | NOISY_TO_PAST | NOISY_TO_OWN_BLOCK, name=f"with_noisy_copies({flow.name})")

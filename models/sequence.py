"""Builders of token sequences: the two flows as ids, tags and a rule.

Robot flow:  ``[<|t2i|> bos instruction eos] <|soi|> [codes of view 1 | view 2] <|eoi|> [<|lvg|> x T]``
Mmu flow:    ``<|mmu|> [system prompt] <|soi|> [P CLIP patches] <|eoi|> [USER/ASSISTANT turns]``

Legend: B batch, L sequence, N image tokens of all views, P patches, C CLIP width, T chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from models.attention_mask import MULTIMODAL, ROBOT, Kind, Rule, Slots, concat_slots
from models.device import fields_to_device, to_device_async
from models.vocabulary import Vocabulary


@dataclass(frozen=True)
class Span:
    """Columns [start, stop) with the same content in every row of a sequence."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def columns(self) -> slice:
        return slice(self.start, self.stop)


@dataclass(frozen=True)
class TokenSequence:
    """Input of the backbone.

    ``ids`` [B, L]; ``slots``: tags of the same shape; ``rule``: attention rule; ``image``: the robot flow's span
    soi..eoi; ``actions``: its <|lvg|> span; ``patches`` [B, P, C]: CLIP features at ``patch_span``; ``state`` [B, F]:
    features of the robot's state, which are encoded and added to the slots of ``actions``; ``state_given`` [B]: rows
    whose state is added (None: all).
    """

    ids: Tensor
    slots: Slots
    rule: Rule
    image: Span | None = None
    actions: Span | None = None
    patches: Tensor | None = None
    patch_span: Span | None = None
    state: Tensor | None = None
    state_given: Tensor | None = None

    def to(self, device: torch.device | str) -> TokenSequence:
        return fields_to_device(self, device)

    def padded(self, multiple: int, pad: int) -> TokenSequence:
        """Return the sequence padded on the right, without attention, to a multiple of ``multiple`` slots."""
        more = -self.ids.shape[1] % multiple
        if more == 0:
            return self
        slots = self.slots.map(lambda tag: F.pad(tag, (0, more)))
        padding = replace(slots, kind=F.pad(self.slots.kind, (0, more), value=Kind.PAD.value))
        return replace(self, ids=F.pad(self.ids, (0, more), value=pad), slots=padding)


@dataclass(frozen=True)
class Work:
    """Size of forward passes, from which their operations are computed; tensors [] on the sequences' device.

    ``tokens``: slots that are not padding; ``pairs``: the sum of the squared lengths of the rows, which attention is
    proportional to; ``scored``: slots of which logits over the vocabulary are computed.
    """

    tokens: Tensor
    pairs: Tensor
    scored: Tensor

    @classmethod
    def of(cls, sequences: Sequence[TokenSequence], scored: int, device: torch.device) -> Work:
        """Return the work of one forward pass per sequence, with ``scored`` slots in all."""
        lengths = [sequence.slots.valid.sum(dim=1) for sequence in sequences]
        rows = torch.cat([torch.zeros(1, device=device), *lengths]).double()
        return cls(rows.sum(), rows.square().sum(), rows.new_full((), scored))


@dataclass(frozen=True)
class TextTurn:
    """Tokenised conversations, each about one image or none.

    ``ids`` [B, L] right-padded; ``answer`` [B, L] True at the assistant's tokens and their end-of-text; ``patches``
    [B, P, C] CLIP features of the images (None: no images); ``indices`` [B]: samples of the data set (None: row
    numbers). ``lengths`` [B]: ids of each row before its padding (None: no row is padded). No id marks padding.

    ``pictured`` [B]: rows that have an image (None: all, if there are patches). The patches of other rows are
    placeholders that no slot attends, so that such a row gives the same result as without patches.
    """

    ids: Tensor
    answer: Tensor
    patches: Tensor | None = None
    indices: Tensor | None = None
    pictured: Tensor | None = None
    lengths: Tensor | None = None

    @classmethod
    def of_rows(
        cls,
        ids: Sequence[Sequence[int]],
        answers: Sequence[Sequence[bool]],
        pad: int,
        patches: Tensor | None = None,
        indices: Tensor | None = None,
        pictured: Tensor | None = None,
        width: int | None = None,
    ) -> TextTurn:
        """Pad rows of ids and of answer flags on the right, to ``width`` or the longest row."""
        answer = pad_right([[int(flag) for flag in row] for row in answers], 0, width).bool()
        lengths = torch.tensor([len(row) for row in ids])
        return cls(pad_right(ids, pad, width), answer, patches, indices, pictured, lengths)

    @property
    def padding(self) -> Tensor:
        """[B, L] True at the padding."""
        if self.lengths is None:
            return torch.zeros_like(self.ids, dtype=torch.bool)
        return torch.arange(self.ids.shape[1], device=self.ids.device) >= self.lengths[:, None]

    @property
    def samples(self) -> list[int]:
        """Key of each row's random numbers."""
        return list(range(self.ids.shape[0])) if self.indices is None else self.indices.tolist()

    def to(self, device: torch.device | str) -> TextTurn:
        return replace(fields_to_device(self, device), indices=self.indices)


def pad_left(rows: Sequence[Sequence[int]], pad: int, width: int | None = None) -> Tensor:
    """Return [B, width] with each row at the right edge; ``width`` defaults to the longest row."""
    longest = max(len(row) for row in rows)
    width = longest if width is None else width
    if longest > width:
        raise ValueError(f"a row has {longest} ids, but only {width} fit")
    return torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], dtype=torch.long)


def pad_right(rows: Sequence[Sequence[int]], pad: int, width: int | None = None) -> Tensor:
    """Return [B, width] with each row at the left edge; ``width`` defaults to the longest row."""
    longest = max(len(row) for row in rows)
    width = longest if width is None else width
    if longest > width:
        raise ValueError(f"a row has {longest} ids, but only {width} fit")
    return torch.tensor([list(row) + [pad] * (width - len(row)) for row in rows], dtype=torch.long)


def robot_sequence(
    vocab: Vocabulary,
    instructions: Sequence[Sequence[int]],
    codes: Tensor,
    act_step: int,
    pad_to: int | None = None,
    state: Tensor | None = None,
) -> TokenSequence:
    """Build the robot flow of a batch.

    ``instructions``: ids of ``Prompter.instruction``, one row each; ``codes`` [B, N]: image codes of the current frame,
    view by view; ``state`` [B, F]: features of the robot's state, None if the model reads none. The text span is as
    wide as the longest instruction (``pad_to`` widens it to the original's fixed length). Positions count from a row's
    first real token. Rotary positions are relative and padding is not attended, so the width does not change any
    output.
    """
    batch, n_codes = codes.shape
    if len(instructions) != batch:
        raise ValueError(f"{len(instructions)} instructions for {batch} rows of image codes")
    device = codes.device
    text = to_device_async(pad_left(instructions, vocab.pad, pad_to), device)  # [B, M]
    lengths = to_device_async(torch.tensor([len(row) for row in instructions]), device)

    def column(token: int, width: int = 1) -> Tensor:
        return torch.full((batch, width), token, dtype=torch.long, device=device)

    ids = torch.cat(
        [text, column(vocab.soi), vocab.code_ids(codes), column(vocab.eoi), column(vocab.lvg, act_step)], dim=1
    )
    width = text.shape[1]
    image = Span(width, width + n_codes + 2)
    actions = Span(image.stop, image.stop + act_step)

    columns = torch.arange(ids.shape[1], device=device)
    padding = (width - lengths)[:, None]  # [B, 1]
    kind = torch.full_like(ids, Kind.TEXT)
    kind[:, image.columns] = Kind.IMAGE
    kind[:, actions.columns] = Kind.ACTION
    kind = torch.where(columns < padding, int(Kind.PAD), kind)
    pos = (columns - padding).clamp_min(0)
    return TokenSequence(ids, Slots.clean(kind, pos), ROBOT, image=image, actions=actions, state=state)


def with_action_tokens(robot: TokenSequence, ids: Tensor, real: Tensor) -> TokenSequence:
    """Append the clean tokens of an action chunk: ``[... <|lvg|> x T] [action tokens]``.

    ``ids``, ``real`` [B, T * A]; tokens that are not real are padding. They are tagged as an answer, so that the layout
    of noisy copies (``models.objectives.layout``) applies.
    """
    kind = torch.where(real, int(Kind.ANSWER), int(Kind.PAD))
    pos = robot.slots.pos[:, -1:] + 1 + torch.arange(ids.shape[1], device=ids.device)
    tokens = Slots.clean(kind, pos)
    return replace(robot, ids=torch.cat([robot.ids, ids], dim=1), slots=concat_slots(robot.slots, tokens))


def future_targets(vocab: Vocabulary, future_codes: Tensor) -> Tensor:
    """Return the targets of the image span, [B, N + 2] ids: soi, the codes T steps ahead at the same slots, eoi.

    ``future_codes`` is [B, N].
    """
    batch = future_codes.shape[0]
    edge = torch.ones(batch, 1, dtype=torch.long, device=future_codes.device)
    return torch.cat([edge * vocab.soi, vocab.code_ids(future_codes), edge * vocab.eoi], dim=1)


def clean_text_sequence(vocab: Vocabulary, system_ids: Sequence[int], turn: TextTurn) -> TokenSequence:
    """Build the clean stream of the mmu flow, to which objectives append noisy copies.

    A patch slot has [PAD] as id; its embedding is the projected CLIP feature. In a row without an image the slots of
    the image and its two marks are padding, and the following tokens continue the positions of the system prompt.
    """
    batch = turn.ids.shape[0]
    device = turn.ids.device
    head = [vocab.mmu, *system_ids]
    patch_span = None
    if turn.patches is not None:
        start = len(head) + 1
        patch_span = Span(start, start + turn.patches.shape[1])
        head = [*head, vocab.soi, *[vocab.pad] * len(patch_span), vocab.eoi]
    prefix = torch.tensor(head, dtype=torch.long, device=device).expand(batch, -1)
    ids = torch.cat([prefix, turn.ids], dim=1)

    kind = torch.full_like(ids, Kind.TEXT)
    if patch_span is not None:
        kind[:, patch_span.columns] = Kind.PATCH
    words = kind[:, len(head) :]
    words[turn.answer] = Kind.ANSWER
    words[turn.padding] = Kind.PAD
    pos = torch.arange(ids.shape[1], device=device).expand(batch, -1)
    if patch_span is not None and turn.pictured is not None:
        gap = Span(patch_span.start - 1, patch_span.stop + 1)  # with <|soi|> and <|eoi|>
        bare = ~turn.pictured[:, None]
        kind[:, gap.columns] = torch.where(bare, int(Kind.PAD), kind[:, gap.columns])
        pos = torch.where(bare, pos - (pos - gap.start).clamp(0, len(gap)), pos)
    return TokenSequence(
        ids=ids,
        slots=Slots.clean(kind, pos),
        rule=MULTIMODAL,
        patches=turn.patches,
        patch_span=patch_span,
    )

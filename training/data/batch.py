"""What the data side hands to training: samples, batches of them, and the two flows side by side.

Images of the robot flow come as pixels, uint8 [V, 3, R, R], or, out of a token cache (``tokens.py``), as their image
codes, int16 [V, n]: a data set has one or the other throughout.

Shape letters: B batch, V views (cameras), R resolution, n codes of a view, T actions per chunk, A action size,
S CLIP image size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch

if TYPE_CHECKING:
    from torch import Tensor

Sample_co = TypeVar("Sample_co", covariant=True)


class Samples(Protocol[Sample_co]):
    """A data set: a length, and a sample for every index below it, the same in every process."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Sample_co: ...


@dataclass(frozen=True)
class RobotSample:
    """One moment of a demonstration: what is seen now, what will be seen, and the actions in between."""

    views: Tensor  # uint8 [V, 3, R, R] or codes int16 [V, n], static camera first
    future_views: Tensor  # the same, T frames later (or the last frame of the episode)
    instruction: str
    actions: Tensor  # float32 [T, A]
    action_is_pad: Tensor  # bool [T], True where the episode was already over
    index: int  # which sample of the data set this is


@dataclass(frozen=True)
class RobotBatch:
    """B robot samples, stacked."""

    views: Tensor  # uint8 [B, V, 3, R, R] or codes int16 [B, V, n]
    future_views: Tensor  # the same
    instructions: list[str]  # B texts
    actions: Tensor  # float32 [B, T, A]
    action_is_pad: Tensor  # bool [B, T]
    indices: Tensor  # int64 [B]

    @property
    def coded(self) -> bool:
        """Are the views codes already?"""
        return self.views.dtype == torch.int16

    def __len__(self) -> int:
        return len(self.instructions)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> RobotBatch:
        return RobotBatch(
            views=self.views.to(device, non_blocking=non_blocking),
            future_views=self.future_views.to(device, non_blocking=non_blocking),
            instructions=self.instructions,
            actions=self.actions.to(device, non_blocking=non_blocking),
            action_is_pad=self.action_is_pad.to(device, non_blocking=non_blocking),
            indices=self.indices.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> RobotBatch:
        """Page-locked copies, for asynchronous transfer (DataLoader calls this by name)."""
        return RobotBatch(
            views=self.views.pin_memory(),
            future_views=self.future_views.pin_memory(),
            instructions=self.instructions,
            actions=self.actions.pin_memory(),
            action_is_pad=self.action_is_pad.pin_memory(),
            indices=self.indices.pin_memory(),
        )


@dataclass(frozen=True)
class TextSample:
    """One conversation, about one image or none."""

    ids: list[int]  # token ids of the rendered conversation, without the system prompt
    answer: list[bool]  # True where the id belongs to an answer and is to be learned
    pixels: Tensor | None  # float32 [3, S, S], CLIP-normalised, or CLIP's patches [P, C]; None: there is no image
    index: int
    left_out: tuple[tuple[int, str], ...] = ()  # (index, why) of samples that this one stands in for
    cut: int = 0  # ids that were cut off at the end of the conversation


@dataclass(frozen=True)
class TextBatch:
    """B conversations. The texts stay ragged: who builds the sequences pads them."""

    ids: list[list[int]]
    answers: list[list[bool]]
    pixels: Tensor  # float32 [K, 3, S, S] or patches [K, P, C], of the K rows that have an image, in their order
    pictured: Tensor  # bool [B], which those are
    indices: Tensor  # int64 [B]
    left_out: tuple[tuple[int, str], ...] = ()  # (index, why) of samples that others stand in for
    cut: tuple[tuple[int, int], ...] = ()  # (index, ids cut off at the end) of conversations that are too long

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TextBatch:
        return TextBatch(
            ids=self.ids,
            answers=self.answers,
            pixels=self.pixels.to(device, non_blocking=non_blocking),
            pictured=self.pictured.to(device, non_blocking=non_blocking),
            indices=self.indices.to(device, non_blocking=non_blocking),
            left_out=self.left_out,
            cut=self.cut,
        )

    def pin_memory(self) -> TextBatch:
        """Page-locked copies, for asynchronous transfer (DataLoader calls this by name)."""
        return TextBatch(
            ids=self.ids,
            answers=self.answers,
            pixels=self.pixels.pin_memory(),
            pictured=self.pictured.pin_memory(),
            indices=self.indices.pin_memory(),
            left_out=self.left_out,
            cut=self.cut,
        )


@dataclass(frozen=True)
class CoBatch:
    """The micro-batch of one micro-step: robot flow, mmu flow, or both."""

    robot: RobotBatch | None
    text: TextBatch | None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> CoBatch:
        return CoBatch(
            robot=None if self.robot is None else self.robot.to(device, non_blocking),
            text=None if self.text is None else self.text.to(device, non_blocking),
        )


def collate_robot(samples: Sequence[RobotSample]) -> RobotBatch:
    """Stack samples of one data set (all have the same V, R and T)."""
    return RobotBatch(
        views=torch.stack([sample.views for sample in samples]),
        future_views=torch.stack([sample.future_views for sample in samples]),
        instructions=[sample.instruction for sample in samples],
        actions=torch.stack([sample.actions for sample in samples]),
        action_is_pad=torch.stack([sample.action_is_pad for sample in samples]),
        indices=torch.tensor([sample.index for sample in samples], dtype=torch.int64),
    )


def collate_text(samples: Sequence[TextSample]) -> TextBatch:
    images = [sample.pixels for sample in samples if sample.pixels is not None]
    return TextBatch(
        ids=[sample.ids for sample in samples],
        answers=[sample.answer for sample in samples],
        pixels=torch.stack(images) if images else torch.empty(0, 3, 0, 0),
        pictured=torch.tensor([sample.pixels is not None for sample in samples]),
        indices=torch.tensor([sample.index for sample in samples], dtype=torch.int64),
        left_out=tuple(one for sample in samples for one in sample.left_out),
        cut=tuple((sample.index, sample.cut) for sample in samples if sample.cut),
    )

"""Samples and batches of both flows, as the data side passes them to training.

Images of the robot flow are pixels, uint8 [V, 3, R, R], or, from a token cache, their image codes, int16 [V, n]; all
samples of a data set have the same form.

Shape letters: B batch, V views (cameras), R resolution, n codes of a view, T actions per chunk, A action size,
S CLIP image size, D numbers of the robot's state, K objects with a position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

if TYPE_CHECKING:
    from torch import Tensor

Sample_co = TypeVar("Sample_co", covariant=True)


class Samples(Protocol[Sample_co]):
    """A data set with a length and a sample for every index below it, the same in every process."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Sample_co: ...


@dataclass(frozen=True)
class RobotSample:
    """One moment of a demonstration: the views now, the views T frames later, and the actions between."""

    views: Tensor  # uint8 [V, 3, R, R] or codes int16 [V, n], static camera first
    future_views: Tensor  # the same, T frames later (or the last frame of the episode)
    instruction: str
    actions: Tensor  # float32 [T, A]
    action_is_pad: Tensor  # bool [T], True after the end of the episode
    index: int  # in the data set
    state: Tensor | None = None  # float32 [D], the robot's state now; None if the data have none
    positions: Tensor | None = None  # float32 [K, 3], of all objects in metres; None if they are not learned
    target: int = -1  # the object that the instruction names, -1 for none


@dataclass(frozen=True)
class RobotBatch:
    """B robot samples, stacked."""

    views: Tensor  # uint8 [B, V, 3, R, R] or codes int16 [B, V, n]
    future_views: Tensor  # the same
    instructions: list[str]  # B texts
    actions: Tensor  # float32 [B, T, A]
    action_is_pad: Tensor  # bool [B, T]
    indices: Tensor  # int64 [B]
    states: Tensor | None = None  # float32 [B, D], None if the data have none
    positions: Tensor | None = None  # float32 [B, K, 3], of all objects in metres; None if they are not learned
    targets: Tensor | None = None  # int64 [B], the object that each instruction names, -1 for none
    scenes: RobotBatch | None = None  # random scenes of the same step, in which only positions are learned

    @property
    def coded(self) -> bool:
        """True if the views are codes."""
        return self.views.dtype == torch.int16

    def __len__(self) -> int:
        return len(self.instructions)

    def pin_memory(self) -> RobotBatch:
        """Return a batch in page-locked memory, for asynchronous copies (DataLoader calls it by this name)."""
        return replace(self, **_pinned(self))


@dataclass(frozen=True)
class TextSample:
    """One conversation, about one image or none."""

    ids: list[int]  # token ids of the rendered conversation, without the system prompt
    answer: list[bool]  # True for ids of an answer, which are trained on
    pixels: Tensor | None  # float32 [3, S, S], CLIP-normalised, or CLIP's patches [P, C]; None: there is no image
    index: int
    left_out: tuple[tuple[int, str], ...] = ()  # (index, reason) of samples that this one replaces
    cut: int = 0  # ids that were cut off at the end of the conversation


@dataclass(frozen=True)
class TextBatch:
    """B conversations. The texts are ragged; they are padded when sequences are built."""

    ids: list[list[int]]
    answers: list[list[bool]]
    pixels: Tensor  # float32 [K, 3, S, S] or patches [K, P, C], of the K rows that have an image, in their order
    pictured: Tensor  # bool [B], True for those rows
    indices: Tensor  # int64 [B]
    left_out: tuple[tuple[int, str], ...] = ()  # (index, reason) of samples that others replace
    cut: tuple[tuple[int, int], ...] = ()  # (index, ids cut off at the end) of conversations that are too long

    def __len__(self) -> int:
        return len(self.ids)

    def pin_memory(self) -> TextBatch:
        """Return a batch in page-locked memory, for asynchronous copies (DataLoader calls it by this name)."""
        return replace(self, **_pinned(self))


def _pinned(batch: RobotBatch | TextBatch) -> dict[str, Any]:
    tensors = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value.pin_memory() for name, value in tensors.items() if isinstance(value, torch.Tensor)}


@dataclass(frozen=True)
class CoBatch:
    """The micro-batch of one micro-step: robot flow, mmu flow, or both."""

    robot: RobotBatch | None
    text: TextBatch | None


def collate_robot(samples: Sequence[RobotSample]) -> RobotBatch:
    """Stack samples of one data set (all have the same V, R and T, and a state or none)."""
    states = [sample.state for sample in samples if sample.state is not None]
    positions = [sample.positions for sample in samples if sample.positions is not None]
    assert len(states) in (0, len(samples)), "all samples of a data set have a state, or none"
    assert len(positions) in (0, len(samples)), "all samples of a data set have positions of objects, or none"
    return RobotBatch(
        views=torch.stack([sample.views for sample in samples]),
        future_views=torch.stack([sample.future_views for sample in samples]),
        instructions=[sample.instruction for sample in samples],
        actions=torch.stack([sample.actions for sample in samples]),
        action_is_pad=torch.stack([sample.action_is_pad for sample in samples]),
        indices=torch.tensor([sample.index for sample in samples], dtype=torch.int64),
        states=torch.stack(states) if states else None,
        positions=torch.stack(positions) if positions else None,
        targets=torch.tensor([sample.target for sample in samples]) if positions else None,
    )


def collate_text(samples: Sequence[TextSample]) -> TextBatch:
    """Collate conversations; their images are stacked, their texts stay ragged."""
    images = [sample.pixels for sample in samples if sample.pixels is not None]
    return TextBatch(
        ids=[sample.ids for sample in samples],
        answers=[sample.answer for sample in samples],
        pixels=torch.stack(images) if images else torch.empty(0, 3, 0, 0),
        pictured=torch.tensor([sample.pixels is not None for sample in samples]),
        indices=torch.tensor([sample.index for sample in samples], dtype=torch.int64),
        left_out=tuple(entry for sample in samples for entry in sample.left_out),
        cut=tuple((sample.index, sample.cut) for sample in samples if sample.cut),
    )

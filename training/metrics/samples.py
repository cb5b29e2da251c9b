"""Samples of a run for its log: answers about images, and predicted future frames, as text and as captioned images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.image_grid import (
    FAINT,
    GREEN,
    RED,
    RgbImage,
    add_caption,
    frame_errors,
    image_grid,
    resize_to_height,
    side_by_side,
)

ANSWER_HEIGHT, FRAME_HEIGHT = 256, 128
"""Smallest height in pixels of an image of a question, and of a frame."""


@dataclass(frozen=True)
class Answer:
    """An answer of the model. ``truth``: that of the data, None without one; ``is_cut``: it reached the limit."""

    question: str
    text: str
    truth: str | None = None
    is_cut: bool = False

    @property
    def verdict(self) -> str:
        """``right`` or ``wrong`` by exact match without case and the final period; empty without a true answer."""
        if self.truth is None:
            return ""
        return "right" if _normalized(self.text) == _normalized(self.truth) else "wrong"

    def markdown(self, limit: int) -> str:
        """Return the question and the answer as a paragraph. ``limit``: ``max_new_tokens``."""
        end = f" *(cut at max_new_tokens={limit})*" if self.is_cut else ""
        truth = f" *(in the data: {self.truth})* {self.verdict}" if self.truth else ""
        return f"**{self.question}** {self.text}{end}{truth}"


def _normalized(text: str) -> str:
    return " ".join(text.split()).rstrip(".").casefold()


def answer_sheet(image: RgbImage, answers: Sequence[Answer]) -> Tensor:
    """Return uint8 [3, H, W]: the image [h, w, 3] above its questions and answers, each with its verdict."""
    sheet = resize_to_height(image, max(ANSWER_HEIGHT, image.shape[0]))
    for answer in answers:
        truth = f" (in the data: {answer.truth})" if answer.verdict == "wrong" else ""
        note = answer.verdict or "no answer in the data"
        colour = {"": FAINT, "right": GREEN, "wrong": RED}[answer.verdict]
        sheet = add_caption(sheet, f"{answer.question} {answer.text}{truth}", note, colour)
    return _to_tensor(sheet)


def future_sheet(now: Tensor, predicted: Tensor, true: Tensor, captions: Sequence[str], act_step: int) -> Tensor:
    """Return uint8 [3, H, W]: a captioned row for each of N frames: now, predicted, true, with the prediction's error.

    Args:
        now: Frames, uint8 [N, 3, R, R]; ``predicted`` and ``true`` are the frames ``act_step`` steps later.
        captions: N texts.
    """
    cells = []
    for *frames, caption in zip(now, predicted, true, captions, strict=True):
        images = [np.asarray(frame.permute(1, 2, 0)) for frame in frames]
        row = side_by_side(images, height=max(FRAME_HEIGHT, now.shape[-1]))
        note = f"now | predicted | true, {act_step} steps ahead; {frame_errors(*images)}"
        cells.append(add_caption(row, caption, note))
    return _to_tensor(image_grid(cells, columns=1))


def _to_tensor(image: RgbImage) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)

"""The seam between data sets and what shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

ImageArray = npt.NDArray[np.uint8]  # [height, width, 3]
Floats = npt.NDArray[np.float32]

ACTION_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")


@dataclass(frozen=True)
class EpisodeView:
    """One episode (or one conversation: a single moment) as it is shown."""

    number: int
    title: str  # the instruction
    note: str  # where it is, which task
    length: int  # moments
    cameras: tuple[str, ...]
    image: Callable[[str, int], ImageArray]  # of a camera at a moment
    actions: Floats | None = None  # [length, A]
    turns: tuple[tuple[str, str], ...] = ()  # speaker and text, of a conversation


@dataclass(frozen=True)
class Label:
    """What is known of an episode without opening its frames."""

    instruction: str
    task: str | None
    length: int


class Source(Protocol):
    """A data set to be looked at."""

    path: Path
    kind: str  # in words
    rate: float  # moments a second; 0: they are not moments in time
    action_names: tuple[str, ...]

    def __len__(self) -> int:
        """Episodes."""

    def labels(self) -> Iterator[Label]:
        """Of all episodes, in order."""

    def actions(self) -> tuple[Iterator[Floats], str]:
        """Actions in pieces [n, A], and which they are of, in words."""

    def notes(self) -> list[str]:
        """What a reader should know besides."""

    def episode(self, number: int) -> EpisodeView: ...

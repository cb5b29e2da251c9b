"""Interfaces between the data sets of all formats and the viewer."""

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
    """One episode to be displayed. A conversation has a single moment.

    ``title``: the instruction; ``note``: location and task; ``length``: moments; ``image``: returns the image of a
    camera at a moment; ``actions``: [length, A]; ``states``: [length, S] the robot's state, None if it is not stored;
    ``turns``: speaker and text, of a conversation.
    """

    number: int
    title: str
    note: str
    length: int
    cameras: tuple[str, ...]
    image: Callable[[str, int], ImageArray]
    actions: Floats | None = None
    turns: tuple[tuple[str, str], ...] = ()
    states: Floats | None = None


@dataclass(frozen=True)
class Label:
    """Metadata of an episode that is available without opening its frames."""

    instruction: str
    task: str | None
    length: int


class Source(Protocol):
    """A data set that the viewer can display.

    ``kind``: name of the format; ``rate``: moments per second, 0 if they are not moments in time.
    """

    path: Path
    kind: str
    rate: float
    action_names: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of episodes."""

    def labels(self) -> Iterator[Label]:
        """Yield the labels of all episodes, in order."""

    def actions(self) -> tuple[Iterator[Floats], str]:
        """Return actions in pieces [n, A], and a description of the frames that they are from."""

    def notes(self) -> list[str]:
        """Return further remarks about the data set."""

    def episode(self, number: int) -> EpisodeView:
        """Return an episode. Raise ValueError or FileNotFoundError naming the file that cannot be read."""

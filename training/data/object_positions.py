"""Positions of objects in the frames of a processed split, and the object that each instruction names.

``object_positions.index`` next to ``dataset_info.json`` (``preprocess_data/locate_objects.py`` writes it):

    positions   float32 [N, K, 3]   metres, in the frame of the robot's actions; NaN where unknown
    object_of   int32 [E]           the object that the instruction of an episode names, -1 for none

with the names of the K objects and the workspace (lower and upper corner), by which positions are scaled to [-1, 1].
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.files import atomic_path
from training.data.episode_index import ProcessedIndex
from training.data.formats.column_file import Column, IndexFile, IndexWriter

FILE = "object_positions.index"
COMMAND = "python preprocess_data/locate_objects.py --data"

Corner = tuple[float, float, float]


@dataclass(frozen=True)
class Workspace:
    """Lower and upper corner in metres of the box whose positions are scaled to [-1, 1]."""

    low: Corner
    high: Corner

    def __post_init__(self) -> None:
        if not all(low < high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError(f"a workspace goes from {self.low} to {self.high}; each number must grow")

    def to_json(self) -> dict[str, list[float]]:
        """Return the two corners as JSON."""
        return {"low": list(self.low), "high": list(self.high)}


@dataclass(frozen=True)
class ObjectPositions:
    """The positions of a processed split of N frames and E episodes: K objects with ``names``."""

    path: Path
    names: tuple[str, ...]
    workspace: Workspace
    positions: Column[np.float32]  # [N, K, 3]
    object_of: npt.NDArray[np.int64]  # [E]

    def of_frames(self, frames: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return the positions [len(frames), K, 3] of all objects."""
        return np.asarray(self.positions[frames], np.float32)


def write_positions(
    index: ProcessedIndex,
    names: Sequence[str],
    workspace: Workspace,
    positions: npt.ArrayLike,
    object_of: npt.ArrayLike,
) -> Path:
    """Write the positions [N, K, 3] of a split and the objects [E] that its instructions name; return the file."""
    table, objects = np.asarray(positions, np.float32), np.asarray(object_of, np.int32)
    if table.shape != (len(index), len(names), 3) or objects.shape != (index.episodes,):
        raise ValueError(
            f"positions are {list(table.shape)} and objects {list(objects.shape)}; expected "
            f"{[len(index), len(names), 3]} and {[index.episodes]}"
        )
    writer = IndexWriter({"positions": f"({len(names)},3)<f4", "object_of": "<i4"}, (), None)
    writer.numbers("positions", table)
    writer.numbers("object_of", objects)
    path = index.path.with_name(FILE)
    about = {"names": list(names), "workspace": workspace.to_json(), "source": _source(index)}
    with atomic_path(path) as partial, partial.open("wb") as file:
        writer.write(file, about)
    return path


def read_positions(root: str | os.PathLike[str], index: ProcessedIndex) -> ObjectPositions | None:
    """Return the positions of the split in ``root``, None if it has none.

    Raises ValueError naming the file if it was made from another ``dataset_info.json`` or is damaged.
    """
    path = Path(root) / FILE
    if not path.is_file():
        return None
    file = IndexFile(path)
    about: dict[str, Any] = file.about
    if about["source"] != _source(index):
        raise ValueError(f"{path} was made from another {index.path.name}; run {COMMAND} {root}")
    corners = (tuple(about["workspace"][end]) for end in ("low", "high"))
    objects = np.asarray(file.column("object_of"), np.int64)
    return ObjectPositions(path, tuple(about["names"]), Workspace(*corners), file.column("positions"), objects)


def _source(index: ProcessedIndex) -> str:
    return str(index.file.about["source"]["blake2b"])

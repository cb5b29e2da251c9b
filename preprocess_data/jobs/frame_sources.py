"""Read the distinct frames of a data set by row, for caches that hold each frame once.

A processed split lists a frame once for each window that contains it; here it is one row. A raw split (a folder, or
inside its zip) has the frames of its annotated windows, or all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.processing.image import fit
from training.data.caches.token_cache import probes, processed_digest, raw_digest, reading_version
from training.data.calvin import CalvinSplit, is_split, splits_in
from training.data.episode_index import INDEX_NAME
from training.future_view_prediction_w_action_dataset import CAMERAS, DataProvider

Columns = Mapping[str, tuple[str, tuple[int, ...]]]
ACTIONS: Columns = {"rel_actions": ("<f8", (7,)), "actions": ("<f8", (7,))}


class Source(Protocol):
    """F distinct frames.

    ``about``: the identity of the data (kind, digest, probes); ``numbers``: columns of a frame other than its images.
    """

    path: Path
    views: int
    about: dict[str, Any]
    numbers: Columns

    def __len__(self) -> int:
        """Return F."""

    def frame(self, row: int) -> tuple[Tensor, dict[str, npt.NDArray[Any]]]:
        """Return the images uint8 [V, 3, R, R] and the arrays of ``numbers``, opening the file once."""
        ...

    def rows(self) -> dict[str, tuple[str, npt.NDArray[Any]]]:
        """Return the columns that map rows to frames, as ``write_frames`` takes them."""
        ...


def open_source(path: Path, resolution: int, views: int | None, all_frames: bool = False) -> Source:
    """Open a processed or a raw split. ``views``: None means both cameras if there are two.

    Raises ValueError or FileNotFoundError naming what is wrong.
    """
    for count in (2, 1) if views is None else (views,):
        try:
            return _open(path, resolution, count, all_frames)
        except ValueError as error:
            if count == 1 or views is not None or not ("gripper" in str(error) or "one image" in str(error)):
                raise
    raise AssertionError


def _open(path: Path, resolution: int, views: int, all_frames: bool) -> Source:
    if (path / INDEX_NAME).is_file():
        return ProcessedFrames(path, resolution, views)
    if is_split(path):
        return RawFrames(path, resolution, views, all_frames)
    below = splits_in(path)
    hint = f"; did you mean {' or '.join(str(path / name) for name in below)}?" if below else ""
    raise FileNotFoundError(f"{path} is neither a processed split ({INDEX_NAME}) nor a raw CALVIN split{hint}")


def frames_of(split: CalvinSplit, all_frames: bool) -> npt.NDArray[np.int64]:
    """Return the ascending ids of the frames of a raw split's annotated windows, or of all its frames."""
    if all_frames:
        return split.frame_ids
    windows = [np.arange(window.start, window.end + 1) for window in split.annotations]
    if not windows:
        raise ValueError(f"{split.annotation_path} names no window; --all-frames takes every frame")
    return np.unique(np.concatenate(windows))


class ProcessedFrames:
    """The distinct frames of a processed split, in order of first appearance."""

    def __init__(self, path: Path, resolution: int, views: int) -> None:
        self.path, self.views = path, views
        self.numbers: Columns = {}
        self.provider = DataProvider(path, act_step=1, resolution=resolution, num_view=views)
        data = self.provider.data
        rows: dict[tuple[str, str], int] = {}
        hands = data.gripper_frames if len(data.gripper_frames) else None
        self._row_of = np.empty(len(data), dtype=np.int64)
        first: list[int] = []
        for frame in range(len(data)):
            name = (data.frames[frame], "" if hands is None else hands[frame])
            row = rows.setdefault(name, len(rows))
            if row == len(first):
                first.append(frame)
            self._row_of[frame] = row
        self._first = np.asarray(first, dtype=np.int64)
        paths = [data.frame_path(int(frame)) for frame in self._first]
        self.about: dict[str, Any] = {"data": processed_digest(data), "probes": probes(paths, path)}
        if (reading := reading_version(data)) is not None:
            self.about["reading"] = reading

    def __len__(self) -> int:
        return len(self._first)

    def frame(self, row: int) -> tuple[Tensor, dict[str, npt.NDArray[Any]]]:
        return self.provider.views(int(self._first[row])), {}

    def rows(self) -> dict[str, tuple[str, npt.NDArray[Any]]]:
        return {"row_of": ("<i8", self._row_of)}


class RawFrames:
    """The frames of a raw split by ascending id, with their recorded actions."""

    def __init__(self, path: Path, resolution: int, views: int, all_frames: bool) -> None:
        self.path, self.views, self.resolution, self.numbers = path, views, resolution, ACTIONS
        self.split = CalvinSplit(path)
        self._ids = frames_of(self.split, all_frames)
        paths = [self.split.frame_path(int(frame)) for frame in self._ids]
        self.about = {"data": raw_digest(self.split), "probes": probes(paths, path)}
        self.frame(0)  # raises if a camera is missing

    def __len__(self) -> int:
        return len(self._ids)

    def frame(self, row: int) -> tuple[Tensor, dict[str, npt.NDArray[Any]]]:
        cameras = CAMERAS[: self.views]
        arrays = self.split.frame(int(self._ids[row]), (*cameras, *self.numbers))
        images = np.stack([fit(arrays[camera], self.resolution) for camera in cameras])
        return torch.from_numpy(images), {name: arrays[name] for name in self.numbers}

    def rows(self) -> dict[str, tuple[str, npt.NDArray[Any]]]:
        return {"ids": ("<i8", self._ids)}

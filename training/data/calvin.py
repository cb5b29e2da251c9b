"""Read raw CALVIN splits, recorded by the real simulator or by the embedded desk.

A split is a directory (``training/`` or ``validation/``) of ``episode_0000123.npz`` files, one per time step at 30 Hz,
with ``lang_annotations/auto_lang_ann.npy`` naming windows of them and ``ep_start_end_ids.npy`` the stretches of
uninterrupted play. It may be inside the zip of its download (``calvin/task_D_D.zip/task_D_D/training``). Files are
listed and opened only when they are needed: full splits have half a million files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.constants import CAMERAS
from training.data.formats import zip_reader
from training.data.readers import read_npy, read_npz, read_pickled_npy

Array = npt.NDArray[Any]

MAX_RELATIVE_POSITION = 0.02  # metres per step that a relative action of 1.0 means
MAX_RELATIVE_ROTATION = 0.05  # radians per step

_EPISODE = re.compile(r"episode_(\d+)\.npz")
_SHAPES = {"actions": (7,), "rel_actions": (7,), "robot_obs": (15,), "scene_obs": (24,), "expert_actions": (7,)}
SPLITS = ("training", "validation")


@dataclass(frozen=True)
class Annotation:
    """A window of frames and the sentence that describes what happens in it."""

    start: int  # global frame ids, both ends included
    end: int
    instruction: str
    task: str | None  # CALVIN's task name; some splits have none

    @property
    def frames(self) -> range:
        return range(self.start, self.end + 1)


class CalvinSplit:
    """Frames, annotations and ranges of one raw split.

    Raises FileNotFoundError if ``path`` is neither a directory nor one inside a zip. Everything else is checked when it
    is first used, and raises ValueError or FileNotFoundError naming the file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not zip_reader.is_folder(self.path):
            raise FileNotFoundError(f"{self.path} is not a directory; give a CALVIN split such as task_D_D/training")

    @cached_property
    def frame_ids(self) -> npt.NDArray[np.int64]:
        """Sorted ids of all frames in the directory (lists it once)."""
        found = [int(match[1]) for name in zip_reader.names(self.path) if (match := _EPISODE.fullmatch(name))]
        if not found:
            raise self._no_split()
        return np.sort(np.asarray(found, dtype=np.int64))

    @cached_property
    def _digits(self) -> int:
        """Number of digits in file names: 7 in the released data, 5 in some recordings."""
        match = next(filter(None, map(_EPISODE.fullmatch, zip_reader.names(self.path))), None)
        if match is None:
            raise self._no_split()
        return len(match[1])

    def _no_split(self) -> ValueError:
        below = [str(self.path / name) for name in splits_in(self.path)]
        hint = f"; did you mean {' or '.join(below)}?" if below else "; a raw CALVIN split has one per frame"
        return ValueError(f"{self.path} holds no episode_*.npz{hint}")

    def frame_path(self, index: int) -> Path:
        return self.path / f"episode_{index:0{self._digits}d}.npz"

    def frame(self, index: int, keys: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Array]:
        """Return the arrays ``keys`` of frame ``index``, and those of ``optional`` that it has.

        Its file is opened once; other arrays are not decompressed.

        Cameras are uint8 [height, width, 3]; ``actions``, ``rel_actions`` and ``expert_actions`` [7], ``robot_obs``
        [15] and ``scene_obs`` [24] keep their recorded float type. A missing ``rel_actions`` is computed from
        ``actions`` and ``robot_obs`` as in the simulator (``relative_action``).
        """
        path = self.frame_path(index)
        instead = {"rel_actions": ("actions", "robot_obs"), **dict.fromkeys(optional, ())}
        arrays = read_npz(path, (*keys, *optional), instead)
        _check(path, arrays)
        if "rel_actions" in keys and "rel_actions" not in arrays:
            arrays["rel_actions"] = relative_action(arrays["actions"], arrays["robot_obs"])
        return {key: arrays[key] for key in (*keys, *optional) if key in arrays}

    @cached_property
    def ranges(self) -> npt.NDArray[np.int64]:
        """First and last frame id (both included) of each stretch of uninterrupted play, int64 [n, 2]."""
        path = self.path / "ep_start_end_ids.npy"
        table = read_npy(path)
        if table.dtype.kind not in "iu" or table.ndim != 2 or table.shape[1] != 2 or (table[:, 0] > table[:, 1]).any():
            raise ValueError(f"{path} must be integers [n, 2] with first <= last, found {table.dtype} {table.shape}")
        return table.astype(np.int64)

    def crossing(self, windows: Sequence[Annotation]) -> list[Annotation]:
        """Return the windows that are not inside one stretch of play, so that they mix two recordings.

        Returns none if the file of the stretches is missing.
        """
        if not zip_reader.is_file(self.path / "ep_start_end_ids.npy"):
            return []
        return [window for window in windows if not is_within(self.ranges, window.start, window.end)]

    @property
    def annotation_path(self) -> Path:
        return self.path / "lang_annotations" / "auto_lang_ann.npy"

    @cached_property
    def annotations(self) -> tuple[Annotation, ...]:
        """All annotated windows, in the order of the file; they may overlap."""
        path = self.annotation_path
        content = read_pickled_npy(path)
        try:
            sentences = content["language"]["ann"]
            tasks = content["language"].get("task")
            windows = content["info"]["indx"]
        except (KeyError, TypeError, AttributeError, IndexError):
            raise ValueError(f"{path} lacks language.ann or info.indx; it is not a CALVIN annotation file") from None
        if len(sentences) != len(windows):
            raise ValueError(f"{path} has {len(sentences)} sentences for {len(windows)} windows")
        if tasks is not None and len(tasks) not in (0, len(windows)):
            raise ValueError(f"{path} has {len(tasks)} task names for {len(windows)} windows")
        return tuple(
            _annotation(path, number, sentences[number], tasks[number] if tasks is not None and len(tasks) else None, w)
            for number, w in enumerate(windows)
        )


def is_within(ranges: npt.NDArray[np.int64], first: int, last: int) -> bool:
    """Return True if one of the ranges [n, 2] contains frames ``first`` to ``last``."""
    return bool(((ranges[:, 0] <= first) & (last <= ranges[:, 1])).any())


def splits_in(path: Path) -> list[str]:
    """Return the splits in a folder or zip as relative paths: training and validation, at the top or a level below."""
    try:
        top = sorted(zip_reader.names(path))
    except OSError:
        return []
    found = [str(name) for name in SPLITS if name in top]
    if found:
        return found
    below = [name for name in top if zip_reader.is_folder(path / name)][:50]
    return [f"{name}/{split}" for name in below for split in SPLITS if zip_reader.is_folder(path / name / split)]


def is_split(path: Path) -> bool:
    """Return True if there are frames directly in this folder (of a zip)."""
    return zip_reader.is_folder(path) and any(map(_EPISODE.fullmatch, zip_reader.names(path)))


def relative_action(action: Array, robot_obs: Array) -> Array:
    """Return the relative action [7] that moves the gripper from its pose to the absolute target ``action`` [7].

    Position: metres over 0.02, clipped to [-1, 1]. Rotation: Euler angles, the difference wrapped to [-pi, pi), radians
    over 0.05, clipped to [-1, 1]. Gripper command as it is. This is what CALVIN records as ``rel_actions``.
    """
    moved = np.clip((action[:3] - robot_obs[:3]) / MAX_RELATIVE_POSITION, -1.0, 1.0)
    turned = (action[3:6] - robot_obs[3:6] + np.pi) % (2 * np.pi) - np.pi
    turned = np.clip(turned / MAX_RELATIVE_ROTATION, -1.0, 1.0)
    return np.concatenate([moved, turned, action[6:7]])


def _annotation(path: Path, number: int, sentence: Any, task: Any, window: Any) -> Annotation:
    while isinstance(sentence, (list, tuple, np.ndarray)) and np.size(sentence) == 1:  # seen as [["open the drawer"]]
        sentence = sentence.item() if isinstance(sentence, np.ndarray) else sentence[0]
    if not isinstance(sentence, str) or not sentence.strip():
        raise ValueError(f"{path}: annotation {number} has no sentence, found {sentence!r}")
    try:
        start, end = (int(edge) for edge in window)
    except (TypeError, ValueError):
        raise ValueError(f"{path}: annotation {number} has no window (first, last), found {window!r}") from None
    if not 0 <= start <= end:
        raise ValueError(f"{path}: annotation {number} has the window ({start}, {end}); first must be <= last")
    return Annotation(start, end, str(sentence), None if task is None else str(task))


def _check(path: Path, arrays: dict[str, Array]) -> None:
    for key, array in arrays.items():
        if key in CAMERAS:
            if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
                raise ValueError(f"{path}: {key} must be uint8 [height, width, 3], found {array.dtype} {array.shape}")
        elif key in _SHAPES:
            if array.dtype.kind != "f" or array.shape != _SHAPES[key]:
                raise ValueError(f"{path}: {key} must be floats {_SHAPES[key]}, found {array.dtype} {array.shape}")
            if not np.isfinite(array).all():
                raise ValueError(f"{path}: {key} holds a number that is not finite")

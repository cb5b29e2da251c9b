"""The processed split: ``dataset_info.json`` in the original's format, read into a compact index and written.

    [{"instruction": "open the drawer", "task": "open_drawer",          # task: ours, optional
      "frames": [{"dir": "frames/episode_0000000.npz", "rel_action": [7 numbers], "abs_action": [7 numbers]}, ...]},
     ...]

``dir`` is a file with the pictures of that moment: an ``.npz`` with ``rgb_static`` (and ``rgb_gripper``), or an image
file, with a second one under ``gripper_dir`` where there are two cameras. Relative paths count from the folder of
``dataset_info.json``, or else from its parent or the working directory (where the original's files expect them).
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.data.actions import ACTION_SIZE
from training.data.files import iterate_json_list
from training.data.strings import Strings

INDEX_NAME = "dataset_info.json"


@dataclass(frozen=True)
class ProcessedIndex:
    """E episodes of N frames together, one after the other; everything is found by position, nothing by search."""

    path: Path  # of dataset_info.json
    base: Path  # what relative frame paths are relative to
    starts: npt.NDArray[np.int64]  # [E + 1] first frame of each episode, then N
    episode_of: npt.NDArray[np.int32]  # [N]
    actions: npt.NDArray[np.float32]  # [N, A] relative actions
    frames: Strings  # N paths as written
    gripper_frames: Strings  # N paths, or none: where the second camera's pictures are files of their own
    texts: Strings  # unique instructions and task names
    instruction_of: npt.NDArray[np.int32]  # [E] into texts
    task_of: npt.NDArray[np.int32]  # [E] into texts, -1 where not given

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def episodes(self) -> int:
        return len(self.starts) - 1

    def instruction(self, episode: int) -> str:
        return self.texts[int(self.instruction_of[episode])]

    def task(self, episode: int) -> str | None:
        number = int(self.task_of[episode])
        return None if number < 0 else self.texts[number]

    def frame_path(self, frame: int) -> Path:
        return self.base / self.frames[frame]  # an absolute path stays what it is

    def gripper_path(self, frame: int) -> Path | None:
        return self.base / self.gripper_frames[frame] if len(self.gripper_frames) else None


def read_index(root: str | os.PathLike[str]) -> ProcessedIndex:
    """Read and check ``<root>/dataset_info.json``, one episode in memory at a time.

    Raises FileNotFoundError when it or its first or last frame is missing, and ValueError naming episode, frame and
    key where the content is wrong.
    """
    path = Path(root) / INDEX_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; preprocess_data/process_calvin.py makes it from raw CALVIN")
    starts, instruction_of, task_of = array("q", [0]), array("i"), array("i")
    actions = array("f")
    frames, gripper_frames, texts = Strings(), Strings(), Strings()
    known: dict[str, int] = {}

    def number(text: str) -> int:
        if text not in known:
            known[text] = len(texts)
            texts.append(text)
        return known[text]

    for episode, record in enumerate(iterate_json_list(path)):
        where = f"{path}: episode {episode}"
        instruction = _text(record, "instruction", where, may_be_empty=True)
        task, listed = record.get("task"), record.get("frames")
        if not isinstance(listed, list) or not listed:
            raise ValueError(f"{where} needs a list of at least one frame under 'frames'")
        actions.frombytes(_actions(listed, where).tobytes())
        for position, frame in enumerate(listed):
            frames.append(_text(frame, "dir", f"{where}, frame {position}"))
            if "gripper_dir" in frame:
                gripper_frames.append(_text(frame, "gripper_dir", f"{where}, frame {position}"))
        if len(gripper_frames) not in (0, len(frames)):
            raise ValueError(f"{where} must have gripper_dir in every frame, as the others have, or none anywhere")
        starts.append(len(frames))
        instruction_of.append(number(instruction))
        task_of.append(-1 if task is None else number(str(task)))
    if not len(frames):
        raise ValueError(f"{path} lists no episode")
    bounds = np.asarray(starts, dtype=np.int64)
    index = ProcessedIndex(
        path=path,
        base=_base(path, frames[0]),
        starts=bounds,
        episode_of=np.repeat(np.arange(len(bounds) - 1, dtype=np.int32), np.diff(bounds)),
        actions=np.asarray(actions, dtype=np.float32).reshape(-1, ACTION_SIZE),
        frames=frames,
        gripper_frames=gripper_frames,
        texts=texts,
        instruction_of=np.asarray(instruction_of, dtype=np.int32),
        task_of=np.asarray(task_of, dtype=np.int32),
    )
    last = index.frame_path(len(index) - 1)
    if not last.is_file():
        raise FileNotFoundError(f"{last}, the last frame that {path} names, does not exist")
    return index


def _actions(frames: list[Any], where: str) -> npt.NDArray[np.float32]:
    """[n, A] relative actions of an episode's frames."""
    for position, frame in enumerate(frames):
        if not isinstance(frame, dict) or "rel_action" not in frame:
            raise ValueError(f"{where}, frame {position} needs a 'rel_action' of {ACTION_SIZE} numbers")
    try:
        table = np.asarray([frame["rel_action"] for frame in frames], dtype=np.float32)
    except (TypeError, ValueError):
        table = np.empty(0, dtype=np.float32)
    if table.shape != (len(frames), ACTION_SIZE):
        for position, frame in enumerate(frames):
            action = frame["rel_action"]
            if not (
                isinstance(action, list)
                and len(action) == ACTION_SIZE
                and all(isinstance(number, (int, float)) for number in action)
            ):
                raise ValueError(f"{where}, frame {position}: rel_action must be {ACTION_SIZE} numbers, is {action!r}")
    if not np.isfinite(table).all():
        position = int(np.argmin(np.isfinite(table).all(axis=1)))
        raise ValueError(f"{where}, frame {position}: rel_action holds a number that is not finite")
    return table


def _text(record: dict[str, Any], key: str, where: str, may_be_empty: bool = False) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not (value or may_be_empty):
        raise ValueError(f"{where} needs a text under {key!r}, found {value!r}")
    return value


def _base(path: Path, first: str) -> Path:
    """The folder from which the first frame's path is found; all relative paths count from it."""
    candidates = [path.parent, path.parent.parent, Path.cwd()]
    for base in candidates:
        if (base / first).is_file():
            return base
    tried = str(Path(first)) if Path(first).is_absolute() else " or ".join(str(base / first) for base in candidates)
    raise FileNotFoundError(f"the first frame that {path} names, {first!r}, does not exist: looked for {tried}")


@dataclass(frozen=True)
class Frame:
    """One frame to be written."""

    dir: str
    rel_action: Sequence[float]
    abs_action: Sequence[float]


@dataclass(frozen=True)
class Episode:
    """One episode to be written."""

    instruction: str
    task: str | None
    frames: Sequence[Frame]


def write_index(root: Path, episodes: Iterable[Episode]) -> int:
    """Write ``<root>/dataset_info.json`` episode by episode; complete or not at all. Returns the number of frames.

    Numbers are written with the digits that float32 needs.
    """
    path = root / INDEX_NAME
    partial = path.with_suffix(".json.tmp")
    frames = 0
    with partial.open("w", encoding="utf-8") as file:
        file.write("[")
        for number, episode in enumerate(episodes):
            record: dict[str, Any] = {"instruction": episode.instruction}
            if episode.task is not None:
                record["task"] = episode.task
            record["frames"] = [
                {"dir": frame.dir, "rel_action": _short(frame.rel_action), "abs_action": _short(frame.abs_action)}
                for frame in episode.frames
            ]
            file.write(("," if number else "") + "\n" + json.dumps(record, ensure_ascii=False))
            frames += len(episode.frames)
        file.write("\n]\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    return frames


def _short(numbers: Sequence[float]) -> list[float]:
    return [float(str(np.float32(number))) for number in numbers]

"""The processed split: ``dataset_info.json`` in the original's format, read into a compact index, and written.

    [{"instruction": "open the drawer", "task": "open_drawer",          # task: ours, optional
      "frames": [{"dir": "frames/episode_0000000.npz", "rel_action": [A numbers], "abs_action": [A numbers]}, ...]},
     ...]

A is 7 for CALVIN; all frames of a split have the same A. A frame may have ``"state": [S numbers]``, the robot's state
as it was measured (CALVIN: the 15 numbers of ``robot_obs``); ``"expert_action": [A numbers]``, the relative action that
the expert wanted in this state, in the unit of ``rel_action``; and ``"expert_chunk": [C * A numbers]``, the next C
actions of an expert. Then all frames of the split have one.

``dir`` is a file with the images of that moment: an ``.npz`` with ``rgb_static`` (and ``rgb_gripper``), or an image
file, with a second one under ``gripper_dir`` for a second camera. Relative paths start at the folder of
``dataset_info.json``, or else at its parent or the working directory (where the original's files expect them).
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from common.command import progress_bar
from common.constants import CALVIN_ACTION_DIM
from common.files import atomic_path, flush
from config.schema import ActionKey
from training.data.checks.records import OPTIONAL, action_dim, optional_columns, require_text, table, text_of
from training.data.formats import zip_reader
from training.data.formats.column_file import Column, IndexFile, IndexWriter, OtherVersion, Texts
from training.data.readers import iterate_json_list

INDEX_NAME = "dataset_info.json"
BINARY_NAME = "dataset_info.index"
MIN_INDEXED = 1 << 20
"""Bytes: a smaller dataset_info.json is read at every start, without a binary index."""

NUMBERS = {
    "starts": "<i8",
    "episode_of": "<i4",
    "actions": f"{CALVIN_ACTION_DIM}<f4",
    "instruction_of": "<i4",
    "task_of": "<i4",
}
TEXTS = ("frames", "gripper_frames", "texts")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProcessedIndex:
    """E consecutive episodes with N frames in total; entries are found by position, without a search.

    The columns are on disk (or in memory, for a small file or read-only folder) and are read where they are accessed:
    ``index.actions[start:end]``, ``index.starts[episode]``, ``np.asarray(index.starts)``.
    """

    path: Path  # of dataset_info.json
    base: Path  # start of relative frame paths
    file: IndexFile
    starts: Column[np.int64]  # [E + 1] first frame of each episode, then N
    episode_of: Column[np.int32]  # [N]
    actions: Column[np.float32]  # [N, A] relative actions
    frames: Texts  # N paths as written
    gripper_frames: Texts  # N paths, or none; images of a second camera in files of their own
    texts: Texts  # unique instructions and task names
    instruction_of: Column[np.int32]  # [E] into texts
    task_of: Column[np.int32]  # [E] into texts, -1 where not given
    states: Column[np.float32] | None = None  # [N, S] the robot's state, None if frames have none
    expert_actions: Column[np.float32] | None = None  # [N, A] what the expert wanted, None if frames have none
    expert_chunks: Column[np.float32] | None = None  # [N, C * A] actions of an expert, None if frames have none
    action_key: ActionKey = "rel_actions"  # the recorded actions that ``actions`` holds

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def episodes(self) -> int:
        return len(self.starts) - 1

    @property
    def action_dim(self) -> int:
        """A, numbers of an action."""
        return int(self.actions.array.shape[1])

    def instruction(self, episode: int) -> str:
        """Return the instruction of an episode."""
        return self.texts[int(self.instruction_of[episode])]

    def task(self, episode: int) -> str | None:
        """Return the task name of an episode, None if it has none."""
        number = int(self.task_of[episode])
        return None if number < 0 else self.texts[number]

    def frame_path(self, frame: int) -> Path:
        return self.base / self.frames[frame]  # an absolute path stays absolute

    def gripper_path(self, frame: int) -> Path | None:
        return self.base / self.gripper_frames[frame] if len(self.gripper_frames) else None


def read_index(
    root: str | os.PathLike[str], images: bool = True, action_key: ActionKey = "rel_actions"
) -> ProcessedIndex:
    """Return the index of ``<root>/dataset_info.json``, from an up-to-date binary index or from the json.

    A large json gets a binary index once; in a read-only folder its index is built in memory at every start.

    Args:
        images: frames will be opened, so that the first and the last one must exist.
        action_key: the column that ``actions`` holds: the recorded motion, or what the expert wanted.

    Raises FileNotFoundError for a missing json or frame, and ValueError with episode, frame and key for wrong content,
    or if the split has no such actions.
    """
    path = Path(root) / INDEX_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; preprocess_data/process_calvin.py makes it from raw CALVIN")
    file = _up_to_date_index(path)
    if file is None:
        large = path.stat().st_size >= MIN_INDEXED
        file = build_index(root) if large and os.access(path.parent, os.W_OK) else _in_memory(path)
    return _with_actions(_open(path, file, images), action_key)


def _with_actions(index: ProcessedIndex, action_key: ActionKey) -> ProcessedIndex:
    """Return the index with the chosen actions. Raises ValueError if frames have none or their size differs."""
    if action_key == "rel_actions":
        return index
    chosen = index.expert_actions
    if chosen is None:
        raise ValueError(
            f"dataset.action_key=expert_actions: the frames of {index.path} have no 'expert_action'; convert a split "
            "that has expert_actions again (recordings of make_desk_demos.py and relabel_rollouts.py have), or set "
            "dataset.action_key=rel_actions"
        )
    if chosen.array.shape[1] != index.action_dim:
        raise ValueError(
            f"{index.path}: 'expert_action' has {chosen.array.shape[1]} numbers, 'rel_action' {index.action_dim}"
        )
    return replace(index, actions=chosen, action_key=action_key)


def build_index(root: str | os.PathLike[str], progress: bool | None = None) -> IndexFile:
    """Check ``<root>/dataset_info.json`` and write its binary index, completely or not at all.

    Needs memory for one episode. Raises as ``read_index``. ``progress``: show a bar; None shows it on a terminal.
    """
    path = Path(root) / INDEX_NAME
    target = path.with_name(BINARY_NAME)
    logger.info("making %s, once", target)
    with atomic_path(target, sync=True) as partial, partial.open("wb") as file:
        _write(path, path.parent, file, progress)
    return IndexFile(target)


def _in_memory(path: Path) -> IndexFile:
    if path.stat().st_size >= MIN_INDEXED:
        logger.warning("%s cannot be written; its index is made in memory, at every start", path.parent)
    content = io.BytesIO()
    _write(path, None, content, None)
    return IndexFile(path, content.getvalue())


def _up_to_date_index(path: Path) -> IndexFile | None:
    """Return the binary index of a json, None if it was made from another content."""
    binary = path.with_name(BINARY_NAME)
    if not binary.is_file():
        return None
    try:
        file = IndexFile(binary)
    except OtherVersion:
        return None
    state, source = path.stat(), file.about["source"]
    if state.st_size != source["bytes"] or not _has_all_columns(path, file):
        return None
    # Copies have other modification times; then the content is compared.
    untouched = state.st_mtime_ns == source["modified_ns"] and state.st_ctime_ns <= binary.stat().st_mtime_ns
    same = untouched or _digest(path) == source["blake2b"]
    return file if same else None


def _has_all_columns(path: Path, file: IndexFile) -> bool:
    """Return whether an index has the columns that this version makes of its json."""
    columns = list(file.about["columns"])
    if [name for name in columns if name not in OPTIONAL] != [*NUMBERS, *TEXTS]:
        return False
    if set(OPTIONAL) <= set(file.about.get("optional", ())):
        return True
    first = next(iterate_json_list(path), {})  # an older version did not look for all of them
    return {name for name in OPTIONAL if name in columns} == set(optional_columns(first))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        total = hashlib.blake2b(digest_size=16)
        while piece := file.read(1 << 20):
            total.update(piece)
    return total.hexdigest()


def _write(path: Path, scratch: Path | None, file: BinaryIO, progress: bool | None) -> None:
    """Write the index of a json to ``file``."""
    state = path.stat()
    quiet = state.st_size < 32 * MIN_INDEXED if progress is None else not progress
    with progress_bar(desc=f"indexing {path}", unit=" frames", unit_scale=True, disable=quiet) as bar:
        writer = gather(path, iterate_json_list(path), scratch, bar.update)
    source = {"bytes": state.st_size, "modified_ns": state.st_mtime_ns, "blake2b": _digest(path)}
    with suppress(FileNotFoundError):
        after = path.stat()
        if (after.st_size, after.st_mtime_ns) == (state.st_size, state.st_mtime_ns):
            columns = [*NUMBERS, *(name for name in OPTIONAL if name in writer.columns), *TEXTS]
            writer.write(file, {"source": source, "columns": columns, "optional": list(OPTIONAL)})
            return
    raise ValueError(f"{path} was changed while it was read; start again")


def gather(
    path: Path, records: Iterable[dict[str, Any]], scratch: Path | None, tick: Callable[[int], object]
) -> IndexWriter:
    """Check all ``records`` and return their columns.

    ``path``: for messages; ``tick``: called with the number of frames of each episode.
    """
    records = iter(records)
    first = next(records, None)
    if first is None:
        raise ValueError(f"{path} lists no episode")
    dim, optional = action_dim(first), optional_columns(first)
    tables = {"actions": dim, **optional}
    writer = IndexWriter({**NUMBERS, **{name: f"({size},)<f4" for name, size in tables.items()}}, TEXTS, scratch)
    known: dict[str, int] = {}

    def number(text: str) -> int:
        if text not in known:
            known[text] = len(known)
            writer.text("texts", [text])
        return known[text]

    writer.numbers("starts", [0])
    frames = 0
    for episode, record in enumerate(chain([first], records)):
        where = f"{path}: episode {episode}"
        instruction = text_of(record, "instruction", where, may_be_empty=True)
        task, listed = record.get("task"), record.get("frames")
        require_text(str(task), f"{where}, 'task'")
        if not isinstance(listed, list) or not listed:
            raise ValueError(f"{where} needs a list of at least one frame under 'frames'")
        writer.numbers("actions", table(listed, "rel_action", where, dim))
        for name, key in OPTIONAL.items():
            if name in optional:
                writer.numbers(name, table(listed, key, where, optional[name]))
            elif any(key in frame for frame in listed):
                raise ValueError(f"{where} must have {key!r} in no frame, as the first frame of the split, or in all")
        writer.text("frames", [text_of(frame, "dir", f"{where}, frame {at}") for at, frame in enumerate(listed)])
        gripper_frames = [(at, frame) for at, frame in enumerate(listed) if "gripper_dir" in frame]
        writer.text(
            "gripper_frames", [text_of(frame, "gripper_dir", f"{where}, frame {at}") for at, frame in gripper_frames]
        )
        frames += len(listed)
        if writer.count("gripper_frames") not in (0, frames):
            raise ValueError(f"{where} must have gripper_dir in every frame, as the others have, or none anywhere")
        writer.numbers("starts", [frames])
        writer.numbers("episode_of", np.full(len(listed), episode))
        writer.numbers("instruction_of", [number(instruction)])
        writer.numbers("task_of", [-1 if task is None else number(str(task))])
        tick(len(listed))
    return writer


def _open(path: Path, file: IndexFile, images: bool) -> ProcessedIndex:
    frames = file.texts("frames")
    index = ProcessedIndex(
        path=path,
        base=_base(path, frames[0]) if images else path.parent,
        file=file,
        starts=file.column("starts"),
        episode_of=file.column("episode_of"),
        actions=file.column("actions"),
        frames=frames,
        gripper_frames=file.texts("gripper_frames"),
        texts=file.texts("texts"),
        instruction_of=file.column("instruction_of"),
        task_of=file.column("task_of"),
        states=_optional(file, "states"),
        expert_actions=_optional(file, "expert_actions"),
        expert_chunks=_optional(file, "expert_chunks"),
    )
    last = index.frame_path(len(index) - 1)
    if images and not zip_reader.is_file(last):
        raise FileNotFoundError(f"{last}, the last frame that {path} names, does not exist")
    return index


def _optional(file: IndexFile, name: str) -> Column[np.float32] | None:
    return file.column(name) if name in file.about["columns"] else None


def _base(path: Path, first: str) -> Path:
    """Return the folder at which relative paths start: the first one where the first frame exists."""
    candidates = [path.parent, path.parent.parent, Path.cwd()]
    for base in candidates:
        if zip_reader.is_file(base / first):
            return base
    tried = str(Path(first)) if Path(first).is_absolute() else " or ".join(str(base / first) for base in candidates)
    raise FileNotFoundError(f"the first frame that {path} names, {first!r}, does not exist: tried {tried}")


@dataclass(frozen=True)
class Frame:
    """A frame for ``write_index``."""

    dir: str
    rel_action: Sequence[float]
    abs_action: Sequence[float]
    gripper_dir: str | None = None  # image of the second camera, if it is a file of its own
    state: Sequence[float] | None = None  # the robot's state, if it is known
    expert_action: Sequence[float] | None = None  # what the expert wanted, if it is known
    expert_chunk: Sequence[float] | None = None  # C actions of an expert, one after the other


@dataclass(frozen=True)
class Episode:
    """An episode for ``write_index``."""

    instruction: str
    task: str | None
    frames: Sequence[Frame]


def write_index(root: Path, episodes: Iterable[Episode], before: Callable[[], object] | None = None) -> int:
    """Write ``<root>/dataset_info.json`` episode by episode, completely or not at all. Returns the number of frames.

    Numbers are written with the digits that float32 needs. ``before``: called before the complete file gets its name,
    to write files that it depends on.
    """
    root.mkdir(parents=True, exist_ok=True)
    path = root / INDEX_NAME
    frames = 0
    with atomic_path(path) as partial:
        with partial.open("w", encoding="utf-8") as file:
            file.write("[")
            for number, episode in enumerate(episodes):
                require_text(episode.instruction, f"{path}: episode {number}, 'instruction'")
                record: dict[str, Any] = {"instruction": episode.instruction}
                if episode.task is not None:
                    record["task"] = episode.task
                record["frames"] = [_frame_record(frame) for frame in episode.frames]
                file.write(("," if number else "") + "\n" + json.dumps(record, ensure_ascii=False))
                frames += len(episode.frames)
            file.write("\n]\n")
        flush(partial)
        if before is not None:
            before()
    return frames


def _frame_record(frame: Frame) -> dict[str, Any]:
    record: dict[str, Any] = {"dir": frame.dir}
    if frame.gripper_dir is not None:
        record["gripper_dir"] = frame.gripper_dir
    for name in ("rel_action", "abs_action", *OPTIONAL.values()):
        numbers = getattr(frame, name)
        if numbers is not None:
            record[name] = _short(numbers)
    return record


def _short(numbers: Sequence[float]) -> list[float]:
    return [float(str(np.float32(number))) for number in numbers]

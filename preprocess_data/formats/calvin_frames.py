"""Reading the actions of many raw frames (and copying the frames, if asked): in parallel, and not twice when killed.

Frames are read in parts. A finished part lies as a file in ``<output>/.process_calvin`` until all are there; a run
that is started again with the same source, frames and placement takes what it finds.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from common.files import atomic_path, write_bytes
from preprocess_data.jobs.resume import is_current, plan_folder, remove_parts
from preprocess_data.jobs.workers import in_processes
from training.data.calvin import CalvinSplit
from training.data.checks.dataset import row_faults
from training.data.formats import zip_reader
from training.data.readers import read_npz

PARTS = ".process_calvin"
PART = 1024  # frames
WORTH_PROCESSES = 4096  # frames: fewer are read here before a process has started


@dataclass(frozen=True)
class Actions:
    """Of n frames, in order."""

    relative: npt.NDArray[np.float32]  # [n, 7]
    absolute: npt.NDArray[np.float32]  # [n, 7]
    bad: dict[int, str] = field(default_factory=dict)  # frame id -> what is wrong with its file


@dataclass(frozen=True)
class _Part:
    split: Path
    frames: tuple[int, ...]
    file: Path  # where the result goes
    copies: Path | None  # the folder frames are copied to
    action: Mapping[str, Any] | None  # what the split declares of its actions


def read_actions(
    split: CalvinSplit,
    ids: npt.NDArray[np.int64],
    output_dir: Path,
    copies: Path | None,
    workers: int,
    progress: bool,
    keep_bad: bool = False,
    action: Mapping[str, Any] | None = None,
) -> Actions:
    """The actions of frames ``ids``, each file opened once; ``copies``: copy the frames there.

    Raises ValueError or FileNotFoundError naming the first file that is missing or damaged, or whose action is not what
    the declaration ``action`` says; with ``keep_bad`` such files are listed in the result instead.
    """
    folder = _plan(split, ids, output_dir, copies, action)
    edges = range(0, len(ids), PART)
    files = [folder / f"part_{start:09d}.npz" for start in edges]
    held = [_held(file, split, ids[start : start + PART]) for start, file in zip(edges, files, strict=True)]
    todo = [
        _Part(split.path.absolute(), tuple(ids[start : start + PART].tolist()), file, copies, action)
        for start, file, have in zip(edges, files, held, strict=True)
        if have is None
    ]
    done = len(ids) - sum(len(part.frames) for part in todo)
    read = in_processes(_read_part, todo, workers if len(ids) >= WORTH_PROCESSES else 1)
    rows: list[npt.NDArray[np.float32]] = []
    bad: dict[int, str] = {}
    with tqdm(desc="frames", total=len(ids), initial=done, unit="frame", disable=not progress) as bar:
        for have in held:
            if have is None:
                have, wrong = next(read)
                if wrong and not keep_bad:
                    raise ValueError(next(iter(wrong.values())))
                bad |= wrong
                bar.update(len(have))
            rows.append(have)
    table = np.concatenate(rows)
    return Actions(table[:, :7], table[:, 7:], bad)


def finish(output_dir: Path) -> None:
    """Everything is written: the parts are not needed any more."""
    remove_parts(output_dir, PARTS)


def _plan(
    split: CalvinSplit,
    ids: npt.NDArray[np.int64],
    output_dir: Path,
    copies: Path | None,
    action: Mapping[str, Any] | None,
) -> Path:
    """The folder of parts."""
    plan = {
        "source": str(split.path.absolute()),
        "frames": hashlib.blake2b(ids.tobytes(), digest_size=16).hexdigest(),
        "copies": str(copies),
        "part": PART,
        "action": None if action is None else dict(action),
    }
    return plan_folder(output_dir / PARTS, plan)


def _held(file: Path, split: CalvinSplit, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32] | None:
    """A part's actions [n, 14] from an earlier run; None where there are none, or frames were changed since."""
    if not file.is_file() or not is_current(
        file, {zip_reader.container(split.frame_path(frame)) for frame in ids.tolist()}
    ):
        return None
    try:
        table: npt.NDArray[Any] = read_npz(file, ("actions",))["actions"]
    except (ValueError, FileNotFoundError):
        return None
    return table if table.shape == (len(ids), 14) and table.dtype == np.float32 else None


def _read_part(part: _Part) -> tuple[npt.NDArray[np.float32], dict[int, str]]:
    split = CalvinSplit(part.split)
    table = np.zeros((len(part.frames), 14), dtype=np.float32)
    bad: dict[int, str] = {}
    read: list[int] = []
    for row, frame in enumerate(part.frames):
        try:
            arrays = split.frame(frame, ("rel_actions", "actions"))
            if part.copies is not None:
                copy_frame(split.frame_path(frame), part.copies)
        except (ValueError, FileNotFoundError) as error:
            bad[frame] = str(error)
            continue
        table[row, :7], table[row, 7:] = arrays["rel_actions"], arrays["actions"]
        read.append(row)
    for row, what in () if part.action is None else row_faults(table[read, :7], part.action):
        frame = part.frames[read[row]]
        bad[frame] = f"{split.frame_path(frame)}: rel_actions {what}"
    if not bad:  # else it is read again, when somebody has seen to it
        content = io.BytesIO()
        np.savez(content, actions=table)
        write_bytes(part.file, content.getvalue())
    return table, bad


def copy_frame(source: Path, folder: Path) -> None:
    """A frame's file (of a zip or a packed split: its content) in ``folder``, unless it is there already."""
    folder.mkdir(exist_ok=True, parents=True)
    target = folder / source.name
    modified = zip_reader.modified_ns(source)
    if target.is_file():
        have = target.stat()
        if (have.st_size, have.st_mtime_ns) == (zip_reader.size(source), modified):
            return
    with atomic_path(target) as partial:
        if zip_reader.container(source) == source:
            shutil.copyfile(source, partial)
        else:
            with zip_reader.open_binary(source) as packed:
                partial.write_bytes(packed.read())
        os.utime(partial, ns=(modified, modified))  # compared above when the command runs again


def windows_without(bad: dict[int, str], windows: Iterator[tuple[int, int]]) -> list[bool]:
    """For each window (first, last), whether none of its frames is bad."""
    wrong = np.sort(np.fromiter(bad, dtype=np.int64, count=len(bad)))
    return [bool(np.searchsorted(wrong, first) == np.searchsorted(wrong, last, "right")) for first, last in windows]

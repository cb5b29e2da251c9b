"""Read the actions and states of many raw CALVIN frames in parallel and resumably, and copy the frames if requested.

Frames are read in parts. A finished part is a file in ``<output>/.process_calvin`` until all parts are finished; a run
with the same source, frames and placement uses the finished parts of an earlier one.
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

from common.command import progress_bar
from common.constants import CALVIN_STATE_DIM, STATE_KEY
from common.files import atomic_path, write_bytes
from preprocess_data.jobs.resume import is_current, plan_folder, remove_parts, run_missing
from training.data.calvin import CalvinSplit
from training.data.checks.dataset import row_faults
from training.data.formats import zip_reader
from training.data.readers import read_npz

PARTS = ".process_calvin"
SIZES = {"rel_actions": 7, "actions": 7, STATE_KEY: CALVIN_STATE_DIM, "expert_actions": 7}
"""Numbers that are read of each frame, and are columns of a table [n, WIDTH] in this order."""
OPTIONAL = (STATE_KEY, "expert_actions")
"""Arrays that all frames of a split have, or none. A frame without one has NaN in its columns."""
WIDTH = sum(SIZES.values())
PART = 1024
"""Frames of a part."""
MIN_FRAMES_FOR_WORKERS = 4096
"""Fewer frames are read in this process before another one has started."""

Table = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Actions:
    """Actions and states of n frames, in order. ``bad``: frame id -> error of its file."""

    relative: npt.NDArray[np.float32]  # [n, 7]
    absolute: npt.NDArray[np.float32]  # [n, 7]
    states: npt.NDArray[np.float32]  # [n, 15], or [n, 0] if the frames have none
    expert: npt.NDArray[np.float32]  # [n, 7] what the expert wanted, or [n, 0] if the frames have none
    bad: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Part:
    """Frames to read. ``file``: the result; ``copies``: folder to copy to; ``action``: declaration of the split."""

    split: Path
    frames: tuple[int, ...]
    file: Path
    copies: Path | None
    action: Mapping[str, Any] | None


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
    """Return the actions and states of frames ``ids``, opening each file once; copy the frames to ``copies`` if given.

    Raises ValueError or FileNotFoundError naming the first file that is missing, damaged, or contradicts the
    declaration ``action``; with ``keep_bad`` such files are listed in the result instead.
    """
    folder = _plan(split, ids, output_dir, copies, action)
    parts = [
        _Part(
            split.path.absolute(),
            tuple(ids[start : start + PART].tolist()),
            folder / f"part_{start:09d}.npz",
            copies,
            action,
        )
        for start in range(0, len(ids), PART)
    ]
    workers = workers if len(ids) >= MIN_FRAMES_FOR_WORKERS else 1
    tables: list[npt.NDArray[np.float32]] = []
    bad: dict[int, str] = {}
    with progress_bar(desc="frames", total=len(ids), unit="frame", disable=not progress) as bar:
        for table, errors in run_missing(_read_part, parts, [_finished(part, split) for part in parts], workers):
            if errors and not keep_bad:
                raise ValueError(next(iter(errors.values())))
            bad |= errors
            tables.append(table)
            bar.update(len(table))
    table = np.concatenate(tables)
    found = _columns(table)
    faults: dict[int, str] = {}
    for key in OPTIONAL:
        found[key] = _if_given(split, ids, key, found[key], bad, faults)
    if faults and not keep_bad:
        raise ValueError(next(iter(faults.values())))
    return Actions(found["rel_actions"], found["actions"], found[STATE_KEY], found["expert_actions"], bad | faults)


def _columns(table: Table) -> dict[str, Table]:
    """Return the columns of each array in a table [n, WIDTH]."""
    return dict(zip(SIZES, np.split(table, np.cumsum(list(SIZES.values()))[:-1], axis=1), strict=True))


def _if_given(
    split: CalvinSplit,
    ids: npt.NDArray[np.int64],
    key: str,
    rows: Table,
    bad: Mapping[int, str],
    faults: dict[int, str],
) -> Table:
    """Return the rows of an optional array, [n, 0] if no good frame has it.

    Otherwise the frames without one are added to ``faults``.
    """
    good = ~np.isin(ids, list(bad))
    absent = np.asarray(np.isnan(rows).all(axis=1))
    if np.isnan(rows[good]).all():
        return rows[:, :0]
    for frame in ids[good & absent].tolist():
        faults.setdefault(frame, f"{split.frame_path(frame)} has no {key}, and other frames have one")
    for frame in ids[good & ~absent & ~np.isfinite(rows).all(axis=1)].tolist():
        faults.setdefault(frame, f"{split.frame_path(frame)}: {key} holds a number that is not finite")
    return rows


def finish(output_dir: Path) -> None:
    """Delete the parts after everything is written."""
    remove_parts(output_dir, PARTS)


def _plan(
    split: CalvinSplit,
    ids: npt.NDArray[np.int64],
    output_dir: Path,
    copies: Path | None,
    action: Mapping[str, Any] | None,
) -> Path:
    """Return the folder of the parts of this plan."""
    plan = {
        "source": str(split.path.absolute()),
        "frames": hashlib.blake2b(ids.tobytes(), digest_size=16).hexdigest(),
        "copies": str(copies),
        "part": PART,
        "action": None if action is None else dict(action),
    }
    return plan_folder(output_dir / PARTS, plan)


def _finished(part: _Part, split: CalvinSplit) -> tuple[npt.NDArray[np.float32], dict[int, str]] | None:
    """Return a part's numbers [n, WIDTH] of an earlier run, or None if there are none or frames have changed since."""
    sources = (zip_reader.container(split.frame_path(frame)) for frame in part.frames)
    if not part.file.is_file() or not is_current(part.file, set(sources)):
        return None
    try:
        table: npt.NDArray[Any] = read_npz(part.file, ("numbers",))["numbers"]
    except (ValueError, FileNotFoundError):
        return None
    return (table, {}) if table.shape == (len(part.frames), WIDTH) and table.dtype == np.float32 else None


def _read_part(part: _Part) -> tuple[npt.NDArray[np.float32], dict[int, str]]:
    split = CalvinSplit(part.split)
    table = np.zeros((len(part.frames), WIDTH), dtype=np.float32)
    bad: dict[int, str] = {}
    read: list[int] = []
    for row, frame in enumerate(part.frames):
        try:
            arrays = split.frame(frame, ("rel_actions", "actions"), optional=OPTIONAL)
            if part.copies is not None:
                copy_frame(split.frame_path(frame), part.copies)
        except (ValueError, FileNotFoundError) as error:
            bad[frame] = str(error)
            continue
        for key, columns in _columns(table[row : row + 1]).items():
            columns[:] = arrays.get(key, np.nan)
        read.append(row)
    bad |= {} if part.action is None else _faults(split, np.asarray(part.frames)[read], table[read], part.action)
    if not bad:  # a part with a bad file is read again after the file is repaired
        content = io.BytesIO()
        np.savez(content, numbers=table)
        write_bytes(part.file, content.getvalue())
    return table, bad


def _faults(
    split: CalvinSplit, frames: npt.NDArray[np.int64], table: Table, action: Mapping[str, Any]
) -> dict[int, str]:
    """Return the frames whose relative actions violate the declaration ``action``, each with its first fault."""
    found: dict[int, str] = {}
    columns = _columns(table)
    for key in ("rel_actions", "expert_actions"):
        given = np.flatnonzero(~np.isnan(columns[key]).all(axis=1)) if key in OPTIONAL else np.arange(len(table))
        for row, what in row_faults(columns[key][given], action):
            frame = int(frames[given[row]])
            found.setdefault(frame, f"{split.frame_path(frame)}: {key} {what}")
    return found


def copy_frame(source: Path, folder: Path) -> None:
    """Copy a frame's file (from a zip or a packed split: its content) to ``folder`` unless the copy is up to date."""
    folder.mkdir(exist_ok=True, parents=True)
    target = folder / source.name
    modified = zip_reader.modified_ns(source)
    if target.is_file():
        copy = target.stat()
        if (copy.st_size, copy.st_mtime_ns) == (zip_reader.size(source), modified):
            return
    with atomic_path(target) as partial:
        if zip_reader.container(source) == source:
            shutil.copyfile(source, partial)
        else:
            with zip_reader.open_binary(source) as packed:
                partial.write_bytes(packed.read())
        os.utime(partial, ns=(modified, modified))  # compared above by the next run


def windows_without(bad: dict[int, str], windows: Iterator[tuple[int, int]]) -> list[bool]:
    """Return for each window (first, last) whether none of its frames is bad."""
    wrong = np.sort(np.fromiter(bad, dtype=np.int64, count=len(bad)))
    return [bool(np.searchsorted(wrong, first) == np.searchsorted(wrong, last, "right")) for first, last in windows]

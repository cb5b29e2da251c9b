"""Frames in shards in place of files: a raw split that ``preprocess_data/repack.py`` wrote.

Its folder looks like any raw split: ``<folder>/episode_0000123.npz`` is a path that ``archive.py`` and ``files.py``
read, though no such file lies there; the arrays are rows of mapped shards (``shards.py``). Nobody else needs to know.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.data.formats.column_file import IndexFile
from training.data.formats.shards import FRAMES, WHOLE, Rows, is_whole, read_plan

KIND = "frames"
_EPISODE = re.compile(r"episode_(\d{7})\.npz")


class Pack:
    """The frames of one such folder.

    Raises ValueError naming the file when a part of it is missing or damaged.
    """

    def __init__(self, folder: Path, rows: Rows) -> None:
        self.folder, self.rows = folder, rows
        self.keys = tuple(rows.plan.columns)
        self.ids: npt.NDArray[np.int64] = np.asarray(IndexFile(folder / FRAMES).column("ids"))

    def names(self) -> Iterator[str]:
        yield from (f"episode_{number:07d}.npz" for number in self.ids.tolist())

    def row(self, name: str) -> int | None:
        """The row of a frame, by its file's name."""
        match = _EPISODE.fullmatch(name)
        if match is None:
            return None
        number = int(match[1])
        row = int(np.searchsorted(self.ids, number))
        return row if row < len(self.ids) and self.ids[row] == number else None

    def arrays(self, row: int, keys: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        """Return arrays of a frame as read-only views of the mapped shard."""
        return {key: self.rows.row(key, row) for key in keys}

    def npz(self, row: int) -> bytes:
        """The frame as the file that it stands for."""
        content = io.BytesIO()
        np.savez(content, **self.arrays(row, self.keys))  # type: ignore[arg-type]  # NumPy's stub takes no mapping
        return content.getvalue()


_open: dict[str, tuple[tuple[int, int], Pack]] = {}


def pack_at(folder: str | os.PathLike[str]) -> Pack | None:
    """The pack that lies in a folder, opened once in a process, and again when it was made anew; None for others."""
    name = os.fspath(folder)
    try:
        state = os.stat(os.path.join(name, WHOLE))
    except OSError:
        return None
    key = (state.st_ino, state.st_mtime_ns)
    held = _open.get(name)
    if held is None or held[0] != key:
        plan = read_plan(Path(name))
        if plan is None or plan.about.get("kind") != KIND or not is_whole(Path(name), plan):
            return None
        held = _open[name] = (key, Pack(Path(name), Rows(Path(name), plan)))
    return held[1]


def packed_frame(path: Path) -> tuple[Pack, int] | None:
    """(pack, row) of a path that leads to a packed frame."""
    if path.suffix != ".npz":
        return None
    pack = pack_at(os.path.dirname(path))
    row = None if pack is None else pack.row(path.name)
    return None if pack is None or row is None else (pack, row)

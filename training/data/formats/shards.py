"""Rows of fixed size in memory-mapped files, such as the token cache of every frame.

    <folder>/plan.json            content and source; the folder's name holds its digest
    <folder>/frames.index         which row belongs to which frame
    <folder>/rows_00000.shard     a column file (``column_file.py``): the rows of one shard, checksums, the plan
    <folder>/whole.json           written last: all shards are there

A shard appears complete or not at all and names its plan. Processes on several machines therefore write to one folder
independently, a killed process loses its current shard only, and incomplete shards are never read.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from common.files import reason_of, remove
from training.data.formats.column_file import IndexFile, IndexWriter

PLAN, WHOLE = "plan.json", "whole.json"
FRAMES = "frames.index"  # which row belongs to which frame
IN_MEMORY = 1 << 27  # bytes of a shard that is being written
MOST_SHARDS = 384  # every open one holds a file descriptor, of which a process may have 1024
LEAST_ROWS = 64

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Plan:
    """Content of a folder of shards.

    ``rows``: number of rows; ``columns``: name -> (dtype, shape of a row); ``about``: source and settings, any JSON.
    """

    rows: int
    shard_rows: int
    columns: Mapping[str, tuple[str, tuple[int, ...]]]
    about: Mapping[str, Any]

    @classmethod
    def of(cls, rows: int, columns: Mapping[str, tuple[str, tuple[int, ...]]], about: Mapping[str, Any]) -> Plan:
        """Return a plan with shards as small as their number allows, because a kill costs one shard."""
        return cls(rows, max(LEAST_ROWS, -(-rows // MOST_SHARDS)), columns, about)

    def to_json(self) -> dict[str, Any]:
        columns = {name: [kind, list(shape)] for name, (kind, shape) in self.columns.items()}
        return {"rows": self.rows, "shard_rows": self.shard_rows, "columns": columns, "about": dict(self.about)}

    @classmethod
    def from_json(cls, held: Mapping[str, Any]) -> Plan:
        columns = {name: (str(kind), tuple(shape)) for name, (kind, shape) in held["columns"].items()}
        return cls(int(held["rows"]), int(held["shard_rows"]), columns, held["about"])

    @property
    def digest(self) -> str:
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def shards(self) -> int:
        return -(-self.rows // self.shard_rows)

    def rows_of(self, shard: int) -> range:
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.rows))

    @property
    def row_bytes(self) -> int:
        return sum(np.dtype(kind).itemsize * int(np.prod(shape)) for kind, shape in self.columns.values())


# ------------------------------------------------------------------------------------------------------------- writing
def begin(folder: Path, plan: Plan) -> None:
    """Make the folder of a plan, unless it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    if read_plan(folder) != plan:
        write_json(folder / PLAN, plan.to_json())


class ShardWriter:
    """Write one shard in pieces; it appears when it is closed, complete or not at all."""

    def __init__(self, folder: Path, plan: Plan, shard: int) -> None:
        self.folder, self.plan, self.shard = folder, plan, shard
        kinds = {
            name: f"({','.join(map(str, shape))},){kind}" if shape else kind
            for name, (kind, shape) in plan.columns.items()
        }
        # A shard that is too large for memory uses scratch files in its folder.
        large = plan.row_bytes * plan.shard_rows > IN_MEMORY
        self._writer = IndexWriter(kinds, (), folder if large else None)

    def add(self, columns: Mapping[str, npt.ArrayLike]) -> None:
        """Add rows to every column."""
        for name in self.plan.columns:
            self._writer.numbers(name, columns[name])

    def close(self, made: Mapping[str, Any]) -> None:
        """Write the shard. ``made``: settings that may differ between shards (device, batch size).

        Raises ValueError naming a file that cannot be written.
        """
        path = shard_path(self.folder, self.shard)
        try:
            with _complete(path) as file:
                self._writer.write(file, {"plan": self.plan.digest, "shard": self.shard, "made": dict(made)})
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # a full disk names no file
            raise ValueError(
                f"{path} cannot be written ({reason_of(error)}); mend that and run the same command again"
            ) from None


def has_shard(folder: Path, plan: Plan, shard: int) -> bool:
    """Return True if there is a complete shard of this plan. Checksums are compared when rows are read."""
    with suppress(ValueError, OSError):
        about = IndexFile(shard_path(folder, shard)).about
        return bool(about["plan"] == plan.digest and about["shard"] == shard)
    return False


def finish(folder: Path, plan: Plan) -> int:
    """Mark the folder as complete if it is. Return the number of missing shards."""
    missing = [shard for shard in range(plan.shards) if not has_shard(folder, plan, shard)]
    if not missing and not is_whole(folder, plan):  # a complete folder may be read-only
        made = [IndexFile(shard_path(folder, shard)).about["made"] for shard in range(plan.shards)]
        different = list({json.dumps(one, sort_keys=True): one for one in made}.values())
        write_json(folder / WHOLE, {"plan": plan.digest, "made": different})
        for left in folder.glob("*.tmp"):
            remove(left)
    return len(missing)


def write_frames(
    folder: Path,
    columns: Mapping[str, tuple[str, npt.NDArray[Any]]],
    texts: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write ``FRAMES``: columns of numbers, name -> (dtype, rows), and of texts. Several processes may do so."""
    texts = texts or {}
    writer = IndexWriter({name: kind for name, (kind, _) in columns.items()}, tuple(texts), None)
    for name, (_, rows) in columns.items():
        writer.numbers(name, rows)
    for name, content in texts.items():
        writer.text(name, content)
    with _complete(folder / FRAMES) as file:
        writer.write(file, {})


def write_json(path: Path, content: Any) -> None:
    """Write JSON to a file that appears complete or not at all."""
    with _complete(path) as file:
        file.write(json.dumps(content, indent=1).encode())


@contextmanager
def _complete(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that becomes ``path`` after the block.

    Unlike those of ``common.files`` it may be removed by another process that has written ``path``: ``finish``
    removes what others still write of the same folder.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        try:
            os.replace(temporary, path)
        except FileNotFoundError:
            if not path.is_file():
                raise
    finally:
        temporary.unlink(missing_ok=True)


def shard_path(folder: Path, shard: int) -> Path:
    return folder / f"rows_{shard:05d}.shard"


# ------------------------------------------------------------------------------------------------------------- reading
def read_plan(folder: Path) -> Plan | None:
    """The plan of a folder; None where there is none that can be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return Plan.from_json(json.loads((folder / PLAN).read_text(encoding="utf-8")))
    return None


def is_whole(folder: Path, plan: Plan) -> bool:
    with suppress(OSError, ValueError, KeyError, TypeError):
        return bool(json.loads((folder / WHOLE).read_text(encoding="utf-8"))["plan"] == plan.digest)
    return False


class Rows:
    """The rows of a whole folder. Shards are mapped when a row of theirs is first asked for.

    Raises ValueError naming the file when a shard is missing, damaged or another plan's.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self._files: dict[int, IndexFile] = {}
        self._arrays: dict[tuple[str, int], tuple[Array, int]] = {}  # and where in the file they begin

    def __len__(self) -> int:
        return self.plan.rows

    def __reduce__(self) -> tuple[Any, ...]:  # a spawned worker maps the files again
        return Rows, (self.folder, self.plan)

    def row(self, name: str, row: int) -> Array:
        """One row of a column, a view of the mapped file."""
        shard, at = divmod(row, self.plan.shard_rows)
        array, offset = self._array(name, shard)
        found: Array = array[at]
        size = array.nbytes // len(array)
        start = offset + at * size
        self._files[shard].check(start, start + size)
        return found

    def gather(self, name: str, rows: npt.NDArray[np.integer[Any]]) -> Array:
        """[len(rows), ...]: rows of a column, in a new array."""
        kind, shape = self.plan.columns[name]
        out = np.empty((len(rows), *shape), dtype=kind)
        for place, row in enumerate(rows.tolist()):
            out[place] = self.row(name, row)
        return out

    def _array(self, name: str, shard: int) -> tuple[Array, int]:
        held = self._arrays.get((name, shard))
        if held is None:
            column = self._file(shard).column(name)
            held = self._arrays[name, shard] = (column.array, column.offset)
        return held

    def _file(self, shard: int) -> IndexFile:
        if shard not in self._files:
            path = shard_path(self.folder, shard)
            try:
                file = _opened(path)
            except OSError as error:
                raise ValueError(
                    f"{path} cannot be read ({reason_of(error)}); run the command that made it again"
                ) from None
            if file.about.get("plan") != self.plan.digest:
                raise ValueError(f"{path} belongs to other data; delete it and run the command that made it again")
            if file.about["shard"] != shard:
                raise ValueError(f"{path} holds shard {file.about['shard']}; delete it and run the command again")
            self._files[shard] = file
        return self._files[shard]


def _opened(path: Path) -> IndexFile:
    """A mapped file holds a descriptor, and caches of several data sets hold more than the 1024 that a process is
    usually given; it may take as many as the system allows."""
    try:
        return IndexFile(path)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        import resource  # there is none on Windows

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == hard:
            raise
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return IndexFile(path)

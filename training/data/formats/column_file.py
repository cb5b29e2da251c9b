"""Columns of numbers and texts in one file that is mapped, not read: opening it costs the same for ten frames and ten
million, forked data workers share its pages, and only what is asked for is touched.

    magic, padded to 64 bytes | columns, each aligned to 64 bytes | a CRC-32 per block of 16 KiB | header (JSON) | tail

The header names columns (type, shape, offset) and what the file was made from. The tail has the lengths and checksums
of what comes before it, so a file that is cut off is noticed at once. A block is compared with its checksum when it is
first touched by a process: a flipped bit is an error that names the file, never a wrong action.
"""

from __future__ import annotations

import io
import json
import mmap
import os
import struct
import tempfile
import weakref
import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt

MAGIC = b"BDVLA index\n"
VERSION = 1
SHIFT = 14  # a block is 2**14 bytes
BLOCK = 1 << SHIFT
_ALIGN = 64
_TAIL = struct.Struct("<IQQII")  # version, length of columns, length of header, CRC of header, CRC of the CRCs
_END = struct.Struct("<I8s")  # CRC of the tail, the last bytes
_LAST = b"BDVLAend"

Number = TypeVar("Number", bound=np.generic)


class OtherVersion(ValueError):
    """A whole index, but not of this program's making: to be made again."""


class IndexFile:
    """One such file, opened (or its bytes, in memory).

    Raises ValueError naming the file when it is cut off, damaged, or written by another version.
    """

    def __init__(self, path: Path, content: bytes | None = None) -> None:
        self.path = path
        self._held = content
        if content is None:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < _ALIGN + _TAIL.size + _END.size:
                    raise self.damaged("it is cut off")
                self._bytes = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        else:
            self._bytes = memoryview(content)
        self._read_header()

    def __reduce__(self) -> tuple[Any, ...]:  # a spawned worker maps the file again
        return IndexFile, (self.path, self._held)

    def _read_header(self) -> None:
        end = len(self._bytes) - _END.size
        tail = bytes(self._bytes[end - _TAIL.size : end])
        tail_crc, last = _END.unpack(self._bytes[end:])
        if bytes(self._bytes[: len(MAGIC)]) != MAGIC or last != _LAST or tail_crc != zlib.crc32(tail):
            raise self.damaged("it is cut off, damaged or no index")
        version, self._length, header_length, header_crc, sums_crc = _TAIL.unpack(tail)
        if version != VERSION:
            raise OtherVersion(f"{self.path} is of version {version}, this program reads version {VERSION}")
        sums_length = 4 * -(-self._length >> SHIFT)
        if self._length + sums_length + header_length + _TAIL.size + _END.size != len(self._bytes):
            raise self.damaged("it is not as long as it says")
        sums = self._bytes[self._length : self._length + sums_length]
        header = self._bytes[self._length + sums_length : end - _TAIL.size]
        if zlib.crc32(sums) != sums_crc or zlib.crc32(header) != header_crc:
            raise self.damaged("its header is damaged")
        self._sums = np.frombuffer(sums, dtype="<u4")
        self._seen = bytearray(len(self._sums))
        held = json.loads(bytes(header))
        self.about: dict[str, Any] = held["about"]
        self._columns: dict[str, tuple[str, list[int], int]] = held["columns"]

    def check(self, first: int, last: int) -> None:
        """Compare the blocks of bytes [first, last) with their checksums, each once in a process."""
        for block in range(first >> SHIFT, ((last - 1) >> SHIFT) + 1):
            if not self._seen[block]:
                content = self._bytes[block << SHIFT : min((block + 1) << SHIFT, self._length)]
                if zlib.crc32(content) != int(self._sums[block]):
                    raise self.damaged(f"block {block} does not match its checksum")
                self._seen[block] = 1

    def check_blocks(self, blocks: npt.NDArray[np.int64]) -> None:
        """The same for blocks by number."""
        seen = np.frombuffer(self._seen, dtype=np.uint8)
        for block in blocks[seen[blocks] == 0].tolist():
            self.check(block << SHIFT, (block << SHIFT) + 1)

    def column(self, name: str) -> Column[Any]:
        kind, shape, offset = self._columns[name]
        dtype, count = np.dtype(kind), int(np.prod(shape))
        return Column(self, np.frombuffer(self._bytes, dtype, count, offset).reshape(shape), offset)

    def texts(self, name: str) -> Texts:
        return Texts(self.column(f"{name}.bytes"), self.column(f"{name}.ends"))

    def damaged(self, why: str) -> ValueError:
        return ValueError(
            f"{self.path} cannot be used ({why}); delete it, it is made again from what it is an index of"
        )


class Column(Generic[Number]):
    """Rows of numbers on disk; ``column[i]``, ``column[a:b]``, ``column[array]`` and ``np.asarray(column)`` read."""

    def __init__(self, file: IndexFile, array: npt.NDArray[Number], offset: int) -> None:
        self._file, self._array, self._offset = file, array, offset
        self._row = array.nbytes // max(len(array), 1)  # bytes

    def __len__(self) -> int:
        return len(self._array)

    @property
    def nbytes(self) -> int:
        return self._array.nbytes

    @overload
    def __getitem__(self, rows: int | np.integer[Any]) -> Any: ...
    @overload
    def __getitem__(self, rows: slice | npt.NDArray[np.integer[Any]]) -> npt.NDArray[Number]: ...
    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if start < stop and step > 0:
                self._check(start, stop)
            return self._array[rows] if step > 0 else np.asarray(self)[rows]
        if isinstance(rows, np.ndarray):
            self._check_rows(np.flatnonzero(rows) if rows.dtype == np.bool_ else rows.ravel())
        else:
            row = rows + len(self) if rows < 0 else rows
            if not 0 <= row < len(self):
                raise IndexError(rows)
            self._check(row, row + 1)
        return self._array[rows]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)

    @property
    def array(self) -> npt.NDArray[Number]:
        """The rows, not compared with their checksums."""
        return self._array

    @property
    def offset(self) -> int:
        """Where in the file they begin, in bytes."""
        return self._offset

    def _check(self, start: int, stop: int) -> None:
        self._file.check(self._offset + int(start) * self._row, self._offset + int(stop) * self._row)

    def _check_rows(self, rows: npt.NDArray[np.integer[Any]]) -> None:
        """All blocks that these rows lie in, without a loop over rows."""
        if not len(rows):
            return
        numbers = np.where(rows < 0, rows + len(self), rows).astype(np.int64)
        if numbers.min() < 0 or numbers.max() >= len(self):
            raise IndexError(int(numbers.max() if numbers.max() >= len(self) else rows.min()))
        first = (self._offset + numbers * self._row) >> SHIFT
        last = (self._offset + (numbers + 1) * self._row - 1) >> SHIFT
        blocks = np.unique(np.concatenate([first, last]))
        if int((last - first).max(initial=0)) > 1:  # a row is larger than a block
            blocks = np.unique(np.concatenate([np.arange(a, b + 1) for a, b in zip(first, last, strict=True)]))
        self._file.check_blocks(blocks)


class Texts:
    """Many texts on disk, by number."""

    def __init__(self, content: Column[np.uint8], ends: Column[np.int64]) -> None:
        self._content, self._ends = content, ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, end = self._ends[index : index + 2].tolist()
        return self._content[start:end].tobytes().decode()


class IndexWriter:
    """Collects columns row by row in scratch files (of ``folder``, or memory), then writes them as one file."""

    def __init__(self, numbers: Mapping[str, str], texts: Sequence[str], folder: Path | None) -> None:
        """``numbers``: column -> dtype such as '<i4' or, for rows of seven, '7<f4'; ``texts``: columns of texts."""
        self._kinds = {name: np.dtype(kind) for name, kind in numbers.items()}
        for name in texts:
            self._kinds |= {f"{name}.bytes": np.dtype("u1"), f"{name}.ends": np.dtype("<i8")}
        self._scratch: dict[str, BinaryIO] = {
            name: io.BytesIO() if folder is None else tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
            for name in self._kinds
        }
        opened = ExitStack()
        for file in self._scratch.values():
            opened.callback(file.close)
        weakref.finalize(self, opened.close)  # also where rows turn out to be wrong and nothing is written
        self._ends = dict.fromkeys(texts, 0)
        self._counts = dict.fromkeys(texts, 0)
        for name in texts:
            self.numbers(f"{name}.ends", [0])

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of numbers."""
        return tuple(self._kinds)

    def numbers(self, name: str, rows: npt.ArrayLike) -> None:
        kind = self._kinds[name]
        self._scratch[name].write(np.ascontiguousarray(rows, dtype=kind.base).tobytes())

    def text(self, name: str, texts: Sequence[str]) -> None:
        encoded = [text.encode() for text in texts]
        ends = self._ends[name] + np.cumsum([len(text) for text in encoded], dtype=np.int64)
        if len(ends):
            self._ends[name] = int(ends[-1])
            self._counts[name] += len(ends)
        self._scratch[f"{name}.bytes"].write(b"".join(encoded))
        self.numbers(f"{name}.ends", ends)

    def count(self, name: str) -> int:
        """Texts written so far under ``name``."""
        return self._counts[name]

    def write(self, file: BinaryIO, about: Mapping[str, Any]) -> None:
        """The whole index. ``about``: what it was made from, any JSON."""
        out = _Summed(file)
        out.write(MAGIC.ljust(_ALIGN, b"\0"))
        columns: dict[str, tuple[str, list[int], int]] = {}
        for name, scratch in self._scratch.items():
            kind = self._kinds[name]
            shape = [scratch.tell() // kind.itemsize, *kind.shape]
            columns[name] = (kind.base.str, shape, out.length)
            scratch.seek(0)
            while piece := scratch.read(1 << 20):
                out.write(piece)
            out.write(b"\0" * (-out.length % _ALIGN))
            scratch.close()
        sums = np.asarray(out.finished(), dtype="<u4").tobytes()
        header = json.dumps({"about": dict(about), "columns": columns}, sort_keys=True).encode()
        tail = _TAIL.pack(VERSION, out.length, len(header), zlib.crc32(header), zlib.crc32(sums))
        file.write(sums + header + tail + _END.pack(zlib.crc32(tail), _LAST))


class _Summed:
    """A file that keeps a CRC-32 of every block written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self.length = 0
        self._file, self._running = file, 0
        self._sums: list[int] = []

    def write(self, piece: bytes) -> None:
        self._file.write(piece)
        view = memoryview(piece)
        while view:
            room = BLOCK - self.length % BLOCK
            self._running = zlib.crc32(view[:room], self._running)
            self.length += min(room, len(view))
            view = view[room:]
            if self.length % BLOCK == 0:
                self._sums.append(self._running)
                self._running = 0

    def finished(self) -> list[int]:
        return self._sums + ([self._running] if self.length % BLOCK else [])

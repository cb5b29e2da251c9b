"""Files inside a zip, read where they lie: ``calvin/task_D_D.zip/task_D_D/training/episode_0000001.npz`` is a path.

The full CALVIN downloads are archives of 166 to 656 GB with up to two million files. Python's own ``zipfile`` keeps an
object of half a kilobyte for each and one position in the file for all, which forked data workers would share; here
the directory of an archive is a few arrays (shared by workers that fork), and reading moves no position.
"""

from __future__ import annotations

import io
import os
import struct
import threading
import weakref
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from training.data.formats.npz import MOST_DEFLATE_SAVES
from training.data.formats.packed_frames import pack_at, packed_frame
from training.data.formats.shards import WHOLE

SUFFIX = ".zip"
STORED, DEFLATED = 0, 8
_METHODS = {1: "shrink", 6: "implode", 9: "deflate64", 12: "bzip2", 14: "lzma", 93: "zstandard", 95: "xz", 99: "AES"}

_END = struct.Struct("<4s4H2IH")
_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")


# ------------------------------------------------------------------------------------- paths that may lead into a zip
def inside(path: str | os.PathLike[str]) -> tuple[Path, str] | None:
    """(the archive, the name inside it) of a path that leads into a zip or is one ('' inside); None for any other."""
    text = os.fspath(path)
    if SUFFIX not in text.lower():
        return None
    at = -1
    while (at := f"{text}{os.sep}".lower().find(SUFFIX + os.sep, at + 1)) >= 0:
        archive = text[: at + len(SUFFIX)]
        if os.path.isfile(archive):
            return Path(archive), text[at + len(SUFFIX) :].strip(os.sep)
    return None


def open_binary(path: Path) -> BinaryIO:
    """A file, or a member of a zip or a packed frame (held in memory whole, its checksum verified).

    Raises FileNotFoundError or another OSError, or ValueError for a damaged archive, which it names.
    """
    found = inside(path)
    if found is None or not found[1]:
        packed = packed_frame(path)
        return path.open("rb") if packed is None else io.BytesIO(packed[0].npz(packed[1]))
    return io.BytesIO(archive(found[0]).read(found[1]))


def is_file(path: Path) -> bool:
    found = inside(path)
    if found is None or not found[1]:
        return path.is_file() or packed_frame(path) is not None
    return archive(found[0]).find(found[1]) is not None


def is_folder(path: Path) -> bool:
    """A directory, a zip itself, or a folder inside one."""
    found = inside(path)
    return path.is_dir() if found is None else not found[1] or archive(found[0]).has_folder(found[1])


def names(path: Path) -> Iterator[str]:
    """What lies directly in a directory or in a folder of a zip; files and folders, in no particular order."""
    found = inside(path)
    if found is not None:
        yield from archive(found[0]).names(found[1])
        return
    with os.scandir(path) as entries:
        for entry in entries:
            yield entry.name
    if (pack := pack_at(path)) is not None:
        yield from pack.names()


def size(path: Path) -> int:
    """Bytes of a file, unpacked."""
    found = inside(path)
    if found is None and (packed := packed_frame(path)) is not None:
        return len(packed[0].npz(packed[1]))
    return path.stat().st_size if found is None else archive(found[0]).size(found[1])


def modified_ns(path: Path) -> int:
    """When a file (of a member: its archive) was last written."""
    return container(path).stat().st_mtime_ns


def container(path: Path) -> Path:
    """The file on disk in which a path's content lies: itself, an archive, or what closes a folder of packed frames."""
    found = inside(path)
    if found is not None:
        return found[0]
    return path if packed_frame(path) is None else path.parent / WHOLE


_open: dict[str, tuple[tuple[int, int, int], Archive]] = {}
_lock = threading.Lock()


def archive(path: Path) -> Archive:
    """The archive at ``path``; its directory is read once in a process, and again when the file was changed."""
    state = path.stat()
    key = (state.st_ino, state.st_size, state.st_mtime_ns)
    with _lock:
        held = _open.get(str(path))
        if held is None or held[0] != key:
            held = _open[str(path)] = (key, Archive(path))
    return held[1]


# ----------------------------------------------------------------------------------------------------- a zip's content
class Archive:
    """The directory of one zip (with or without ZIP64), as arrays sorted by name; about 70 bytes a file.

    Raises ValueError naming the archive when it is cut off, damaged or encrypted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb", buffering=0)
        weakref.finalize(self, self._file.close)
        self._size = os.fstat(self._file.fileno()).st_size
        try:
            directory, self._shift = self._directory()
            self._read_entries(directory)
        except (struct.error, IndexError, OverflowError, MemoryError):
            raise self._damaged("its directory is cut off") from None

    def __len__(self) -> int:
        return len(self._names)

    def find(self, name: str) -> int | None:
        """The row of a file."""
        key = np.bytes_(name.encode())
        row = int(np.searchsorted(self._names, key))
        return row if row < len(self._names) and self._names[row] == key else None

    def size(self, name: str) -> int:
        """Bytes of a file, unpacked."""
        return int(self._sizes[self._row(name)])

    def has_folder(self, name: str) -> bool:
        first, last = self._below(name)
        return first < last

    def names(self, folder: str) -> Iterator[str]:
        """The names directly in ``folder`` ('' is the top)."""
        row, last = self._below(folder)
        depth = len(folder.encode()) + 1 if folder else 0
        while row < last:
            name = bytes(self._names[row])[depth:]
            head, slash, _ = name.partition(b"/")
            yield head.decode(errors="replace")
            # A folder's files lie together; go past them.
            row = self._row_of(bytes(self._names[row])[:depth] + head + b"0") if slash else row + 1

    def read(self, name: str) -> bytes:
        """A file's content. Raises FileNotFoundError, or ValueError naming archive and file."""
        row = self._row(name)
        packed, size, method = int(self._packed[row]), int(self._sizes[row]), int(self._methods[row])
        if self._flags[row] & 1:
            raise self._damaged(f"{name} is encrypted")
        if method not in (STORED, DEFLATED):
            how = _METHODS.get(method, f"method {method}")
            raise ValueError(f"{self.path}/{name} is packed with {how}; unpack the archive, or pack it with deflate")
        if size > packed * MOST_DEFLATE_SAVES or (method == STORED and size != packed):
            raise self._damaged(f"{name} claims an impossible size")
        start = int(self._offsets[row]) + self._shift
        header, own = self._at(start, _LOCAL.size), self._at(start + _LOCAL.size, len(name.encode()))
        # The directory has no checksum: a flipped bit in a name there would give one frame for another.
        if header[:4] != b"PK\3\4" or own != name.encode():
            raise self._damaged(f"{name} is not where the directory says")
        *_, name_length, extra_length = _LOCAL.unpack(header)
        data = self._at(start + _LOCAL.size + name_length + extra_length, packed)
        if method == DEFLATED:
            data = self._inflated(data, size, name)
        if len(data) != size or zlib.crc32(data) != int(self._checksums[row]):
            raise self._damaged(f"{name} does not match its checksum")
        return data

    def _inflated(self, data: bytes, size: int, name: str) -> bytes:
        try:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
        except zlib.error as error:
            raise self._damaged(f"{name}: {error}") from None

    def _at(self, offset: int, length: int) -> bytes:
        """Bytes of the file, without a position that others could move."""
        if offset + length > self._size:
            raise self._damaged("a file in it ends beyond its end; it is cut off")
        pieces = []
        while length:  # one call gives at most 2 GB
            piece = os.pread(self._file.fileno(), min(length, 1 << 30), offset)
            if not piece:
                break
            pieces.append(piece)
            offset, length = offset + len(piece), length - len(piece)
        return b"".join(pieces)

    def _directory(self) -> tuple[bytes, int]:
        """The central directory, and by how much the offsets in it are too small (an archive behind other bytes)."""
        tail_at = max(self._size - _END.size - 0xFFFF, 0)
        tail = self._at(tail_at, self._size - tail_at)
        place = tail.rfind(b"PK\5\6")
        if place < 0:
            raise self._damaged("it has no directory; it is cut off or no zip")
        _, _, _, _, count, size, offset, _ = _END.unpack_from(tail, place)
        end = tail_at + place
        if 0xFFFF in (count,) or 0xFFFFFFFF in (size, offset):
            locator = self._at(end - _LOCATOR.size, _LOCATOR.size) if end >= _LOCATOR.size else b""
            if locator[:4] == b"PK\6\7":
                at = _LOCATOR.unpack(locator)[2]
                record = self._at(at, _END64.size)
                if record[:4] != b"PK\6\6":
                    raise self._damaged("its ZIP64 directory is not where it should be")
                *_, count, size, offset = _END64.unpack(record)
                end = at
        shift = end - size - offset
        if shift < 0 or size > self._size or count * _ENTRY.size > size:
            raise self._damaged("its directory does not fit into it")
        self._count = count
        return self._at(offset + shift, size), shift

    def _read_entries(self, directory: bytes) -> None:
        found: list[bytes] = []
        numbers = array("Q")
        at = 0
        for _ in range(self._count):
            entry = _ENTRY.unpack_from(directory, at)
            if entry[0] != b"PK\1\2":
                raise self._damaged("its directory is damaged")
            flags, method, checksum, packed, size = entry[3], entry[4], *entry[7:10]
            name_length, extra_length, comment_length, offset = *entry[10:13], entry[16]
            at += _ENTRY.size
            name = directory[at : at + name_length]
            at += name_length
            if 0xFFFFFFFF in (packed, size, offset):
                size, packed, offset = _long_numbers(directory[at : at + extra_length], size, packed, offset)
            at += extra_length + comment_length
            if name[-1:] != b"/" and name:
                # Names in the old encoding are ASCII in practice; others stay as their bytes, found by nobody.
                found.append(name)
                numbers.extend((flags, method, checksum, packed, size, offset))
        if at != len(directory):
            raise self._damaged("its directory is longer or shorter than it says")
        if found and max(map(len, found)) > 4096:
            raise self._damaged("its directory is damaged (a name of more than 4096 bytes)")
        table = np.frombuffer(numbers, dtype=np.uint64).reshape(-1, 6)
        listed: npt.NDArray[np.bytes_] = np.array(found, dtype=np.bytes_) if found else np.array([], dtype="S1")
        order = np.argsort(listed, kind="stable")
        self._names = listed[order]
        table = table[order]
        self._flags, self._methods = table[:, 0].astype(np.uint16), table[:, 1].astype(np.uint16)
        self._checksums = table[:, 2].astype(np.uint32)
        self._packed, self._sizes, self._offsets = (table[:, column].copy() for column in (3, 4, 5))

    def _row(self, name: str) -> int:
        row = self.find(name)
        if row is None:
            raise FileNotFoundError(f"{self.path}/{name} does not exist: the archive has no such file")
        return row

    def _row_of(self, key: bytes) -> int:
        return int(np.searchsorted(self._names, np.bytes_(key)))

    def _below(self, folder: str) -> tuple[int, int]:
        """Rows of everything in ``folder``: names from ``folder/`` up to, without it, ``folder0`` (0 follows /)."""
        if not folder:
            return 0, len(self._names)
        return self._row_of(f"{folder}/".encode()), self._row_of(f"{folder}0".encode())

    def _damaged(self, why: str) -> ValueError:
        return ValueError(f"{self.path} cannot be read as a zip archive ({why}); fetch it again")


def _long_numbers(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """The ZIP64 numbers of an entry, in place of those that did not fit into 32 bits."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            body = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            long = [next(body, 0) if number == 0xFFFFFFFF else number for number in (size, packed, offset)]
            return long[0], long[1], long[2]
        at += 4 + length
    return size, packed, offset

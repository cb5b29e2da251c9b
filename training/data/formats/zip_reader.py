"""Reader of zip archives, and paths into them: ``task_D_D.zip/task_D_D/training/episode_0000001.npz`` is a path.

The full CALVIN downloads are archives of 166 to 656 GB with up to two million files. Python's own ``zipfile`` keeps an
object of half a kilobyte for each and one position in the file for all, which forked data workers would share; here
the directory of an archive is a few arrays (shared by workers that fork), and reading moves no position.
``training.data.formats.npz`` reads the arrays of an ``.npz``, which is a zip too, with the same functions.
"""

from __future__ import annotations

import io
import os
import struct
import threading
import weakref
import zlib
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from training.data.formats.packed_frames import pack_at, packed_frame
from training.data.formats.shards import WHOLE
from training.data.formats.video_frames import frame_as_file, video_frame

SUFFIX = ".zip"
STORED, DEFLATED = 0, 8
_METHODS = {1: "shrink", 6: "implode", 9: "deflate64", 12: "bzip2", 14: "lzma", 93: "zstandard", 95: "xz", 99: "AES"}

MAX_DEFLATE_RATIO = 1033
"""Deflate cannot compress further, so a larger claim is damage."""
EXTRA_READ = 64
"""Bytes of a local header's extra field that are read together with the member."""

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
    """A file, or a member of a zip, a packed frame or a frame of a video (held in memory whole, a checksum verified).

    Raises FileNotFoundError or another OSError, or ValueError for a damaged archive, which it names.
    """
    found = inside(path)
    if found is None or not found[1]:
        if (packed := packed_frame(path)) is not None:
            return io.BytesIO(packed[0].npz(packed[1]))
        filmed = video_frame(path)
        return path.open("rb") if filmed is None else io.BytesIO(frame_as_file(*filmed))
    return io.BytesIO(archive(found[0]).read(found[1]))


def is_file(path: Path) -> bool:
    found = inside(path)
    if found is None or not found[1]:
        return path.is_file() or packed_frame(path) is not None or video_frame(path) is not None
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
    """Bytes of a file, unpacked; of a frame of a video, those of the video."""
    found = inside(path)
    if found is None and (packed := packed_frame(path)) is not None:
        return len(packed[0].npz(packed[1]))
    return container(path).stat().st_size if found is None else archive(found[0]).size(found[1])


def modified_ns(path: Path) -> int:
    """When a file (of a member: its archive) was last written."""
    return container(path).stat().st_mtime_ns


def container(path: Path) -> Path:
    """The file on disk in which a path's content lies: itself, an archive, a video, or what closes a folder of packed
    frames."""
    found = inside(path)
    if found is not None:
        return found[0]
    if (filmed := video_frame(path)) is not None:
        return filmed[0]
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


# ------------------------------------------------------------------------------------------------------- format of zip
class Entry(NamedTuple):
    """What the directory of an archive knows of a member. Sizes and offset in bytes."""

    flags: int
    method: int
    checksum: int
    packed: int
    size: int
    offset: int


_ROW = np.dtype(list(zip(Entry._fields, ("u2", "u2", "u4", "u8", "u8", "u8"), strict=True)))


def read_directory(
    read: Callable[[int, int], bytes], archive_size: int, max_comment: int = 0xFFFF
) -> Iterator[tuple[bytes, Entry]]:
    """Yield name and entry of the members of an archive.

    read: returns the bytes of the archive at an offset, at most so many. max_comment: bytes behind the directory in
    which its end is searched. Raises ValueError or struct.error if the directory is damaged.
    """
    tail_at = max(archive_size - _END.size - max_comment, 0)
    tail = read(tail_at, archive_size - tail_at)
    place = tail.rfind(b"PK\5\6")
    if place < 0:
        raise ValueError("it has no directory; it is cut off or no zip")
    _, _, _, _, count, size, offset, _ = _END.unpack_from(tail, place)
    end = tail_at + place
    if count == 0xFFFF or 0xFFFFFFFF in (size, offset):
        locator = read(end - _LOCATOR.size, _LOCATOR.size) if end >= _LOCATOR.size else b""
        if locator[:4] == b"PK\6\7":
            end = _LOCATOR.unpack(locator)[2]
            record = read(end, _END64.size)
            if record[:4] != b"PK\6\6":
                raise ValueError("its ZIP64 directory is not where it should be")
            *_, count, size, offset = _END64.unpack(record)
    shift = end - size - offset  # of an archive behind other bytes
    if shift < 0 or size > archive_size or count * _ENTRY.size > size:
        raise ValueError("its directory does not fit into it")
    yield from _entries(read(offset + shift, size), count, shift)


def _entries(directory: bytes, count: int, shift: int) -> Iterator[tuple[bytes, Entry]]:
    at = 0
    for _ in range(count):
        mark, _, _, flags, method, _, _, checksum, packed, size, name, extra, comment, _, _, _, offset = (
            _ENTRY.unpack_from(directory, at)
        )
        if mark != b"PK\1\2":
            raise ValueError("its directory is damaged")
        at += _ENTRY.size + name
        if 0xFFFFFFFF in (packed, size, offset):
            size, packed, offset = _long_numbers(directory[at : at + extra], size, packed, offset)
        yield directory[at - name : at], Entry(flags, method, checksum, packed, size, offset + shift)
        at += extra + comment
    if at != len(directory):
        raise ValueError("its directory is longer or shorter than it says")


def read_member(read: Callable[[int, int], bytes], name: bytes, entry: Entry) -> bytes:
    """Return the unpacked content of a stored or deflated member, its checksum verified.

    read: returns the bytes of the archive at an offset, at most so many. Raises ValueError with the reason.
    """
    if entry.size > entry.packed * MAX_DEFLATE_RATIO or (entry.method == STORED and entry.size != entry.packed):
        raise ValueError("claims an impossible size")
    start = _LOCAL.size + len(name)
    data = read(entry.offset, start + EXTRA_READ + entry.packed)
    # The directory has no checksum: a flipped bit in a name there would give one frame for another.
    if data[:4] != b"PK\3\4" or data[_LOCAL.size : start] != name:
        raise ValueError("is not where the directory says")
    *_, name_length, extra = _LOCAL.unpack_from(data)
    if extra > EXTRA_READ:
        data = read(entry.offset, start + extra + entry.packed)
    data = data[start + extra : start + extra + entry.packed]
    if len(data) < entry.packed or name_length != len(name):
        raise ValueError("ends beyond the end of the archive, which is cut off")
    if entry.method == DEFLATED:
        try:
            data = zlib.decompress(data, -zlib.MAX_WBITS, entry.size)  # memory for all of it from the start
        except zlib.error as error:
            raise ValueError(str(error)) from None
    if len(data) != entry.size or zlib.crc32(data) != entry.checksum:
        raise ValueError("does not match its checksum")
    return data


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
            self._read_entries()
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
        return int(self._entries[self._row(name)]["size"])

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
        entry = Entry(*self._entries[self._row(name)].item())
        if entry.flags & 1:
            raise self._damaged(f"{name} is encrypted")
        if entry.method not in (STORED, DEFLATED):
            how = _METHODS.get(entry.method, f"method {entry.method}")
            raise ValueError(f"{self.path}/{name} is packed with {how}; unpack the archive, or pack it with deflate")
        try:
            return read_member(self._at, name.encode(), entry)
        except ValueError as error:
            raise self._damaged(f"{name}: {error}") from None

    def _at(self, offset: int, length: int) -> bytes:
        """Return bytes of the file (fewer at its end), without a position that others could move."""
        length = min(length, self._size - offset)
        pieces = []
        while length > 0:  # one call gives at most 2 GB
            piece = os.pread(self._file.fileno(), min(length, 1 << 30), offset)
            if not piece:
                break
            pieces.append(piece)
            offset, length = offset + len(piece), length - len(piece)
        return b"".join(pieces)

    def _read_entries(self) -> None:
        names: list[bytes] = []
        numbers = array("Q")
        try:
            for name, entry in read_directory(self._at, self._size):
                if name and not name.endswith(b"/"):
                    # Names in the old encoding are ASCII in practice; others keep their bytes and are not found.
                    names.append(name)
                    numbers.extend(entry)
        except ValueError as error:
            raise self._damaged(str(error)) from None
        if max(map(len, names), default=0) > 4096:
            raise self._damaged("its directory is damaged (a name of more than 4096 bytes)")
        listed: npt.NDArray[np.bytes_] = np.array(names, dtype=np.bytes_) if names else np.array([], dtype="S1")
        order = np.argsort(listed, kind="stable")
        self._names = listed[order]
        self._entries = np.empty(len(names), _ROW)
        for field, column in zip(Entry._fields, np.frombuffer(numbers, np.uint64).reshape(-1, 6).T, strict=True):
            self._entries[field] = column[order]

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

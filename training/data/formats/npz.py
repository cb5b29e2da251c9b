"""Arrays of an ``.npz`` without the detours: NumPy and zipfile spend as long on finding an array as on unpacking it.

Only what ``numpy.savez`` and ``savez_compressed`` write is understood; for anything else, damage included, ``of`` and
``arrays`` give None, and the caller asks NumPy, who knows more and can say what is wrong. Sizes and checksums are
compared before an array is handed out.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

_TAIL = 4096  # bytes in which the directory of a frame's dozen arrays lies
_END = struct.Struct("<4s4H2IH")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_STORED, _DEFLATED = 0, 8
MOST_DEFLATE_SAVES = 1033  # times: deflate cannot do better, so a larger claim is damage
_SPARE = 64  # bytes of a local header's extra field that are read along


class _Member(NamedTuple):
    method: int
    checksum: int
    packed: int
    size: int
    offset: int


class QuickNpz:
    """The directory of an open ``.npz``."""

    def __init__(self, file: BinaryIO, members: dict[str, _Member]) -> None:
        self._file, self._members = file, members

    @property
    def names(self) -> set[str]:
        return set(self._members)

    @classmethod
    def of(cls, file: BinaryIO) -> QuickNpz | None:
        size = file.seek(0, os.SEEK_END)
        at = max(size - _TAIL, 0)
        file.seek(at)
        tail = file.read(_TAIL)
        end = len(tail) - _END.size
        if end < 0:
            return None
        mark, disk, start_disk, here, count, length, offset, comment = _END.unpack_from(tail, end)
        place = offset - at
        if mark != b"PK\5\6" or disk or start_disk or comment or here != count:
            return None
        if place < 0 or place + length != end:
            return None
        members = _directory(tail[place:end], count)
        return None if members is None else cls(file, members)

    def arrays(self, keys: Sequence[str]) -> dict[str, npt.NDArray[Any]] | None:
        found: dict[str, npt.NDArray[Any]] = {}
        for key in keys:
            content = self._content(key)
            array = None if content is None else _array(content)
            if array is None:
                return None
            found[key] = array
        return found

    def _content(self, key: str) -> bytes | None:
        member, name = self._members[key], f"{key}.npy".encode()
        self._file.seek(member.offset)
        head = _LOCAL.size + len(name)
        data = self._file.read(head + _SPARE + member.packed)
        if len(data) < head:
            return None
        mark, *_, name_length, extra = _LOCAL.unpack_from(data)
        if mark != b"PK\3\4" or name_length != len(name) or data[_LOCAL.size : head] != name or extra > _SPARE:
            return None
        data = data[head + extra : head + extra + member.packed]
        if member.method == _DEFLATED:
            if member.size > member.packed * MOST_DEFLATE_SAVES:
                return None
            try:
                data = zlib.decompress(data, -zlib.MAX_WBITS, member.size)  # with room for all of it from the start
            except zlib.error:
                return None
        return data if len(data) == member.size and zlib.crc32(data) == member.checksum else None


def _directory(content: bytes, count: int) -> dict[str, _Member] | None:
    members: dict[str, _Member] = {}
    at = 0
    for _ in range(count):
        if at + _ENTRY.size > len(content):
            return None
        entry = _ENTRY.unpack_from(content, at)
        flags, method, checksum, packed, size = entry[3], entry[4], *entry[7:10]
        name_length, extra, comment, offset = *entry[10:13], entry[16]
        name = content[at + _ENTRY.size : at + _ENTRY.size + name_length]
        at += _ENTRY.size + name_length + extra + comment
        plain = entry[0] == b"PK\1\2" and not flags & 1 and method in (_STORED, _DEFLATED)
        if not plain or 0xFFFFFFFF in (packed, size, offset) or not name.endswith(b".npy") or not name.isascii():
            return None
        members[name[:-4].decode()] = _Member(method, checksum, packed, size, offset)
    return members if at == len(content) and len(members) == count else None


def _array(content: bytes) -> npt.NDArray[Any] | None:
    if content[:8] != b"\x93NUMPY\x01\x00":
        return None
    start = 10 + int.from_bytes(content[8:10], "little")
    header = _header(content[8:start])
    if header is None:
        return None
    shape, fortran, dtype = header
    if fortran or dtype.hasobject or len(content) - start != math.prod(shape) * dtype.itemsize:
        return None
    return np.frombuffer(content, dtype, offset=start).reshape(shape).copy()  # which may be written to


@lru_cache(256)
def _header(text: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]] | None:
    """(shape, Fortran order, type) that a header says, which in a million frames is always the same."""
    try:
        return np.lib.format.read_array_header_1_0(io.BytesIO(text))
    except ValueError:
        return None

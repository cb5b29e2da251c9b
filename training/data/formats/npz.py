"""Fast reader of the arrays of an ``.npz``: NumPy and zipfile take as long to find an array as to unpack it.

Only what ``numpy.savez`` and ``savez_compressed`` write is read. For anything else, damage included, ``of`` and
``arrays`` return None, and the caller uses NumPy, which reads more and names what is wrong. Sizes and checksums are
compared before an array is returned.
"""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from training.data.formats.zip_reader import DEFLATED, STORED, Entry, read_directory, read_member


class QuickNpz:
    """The directory of an open ``.npz``."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._size = file, file.seek(0, os.SEEK_END)
        self._entries: dict[str, Entry] = {}

    @property
    def names(self) -> set[str]:
        return set(self._entries)

    @classmethod
    def of(cls, file: BinaryIO) -> QuickNpz | None:
        """Return the directory of ``file``, or None if it is not as NumPy writes it."""
        archive = cls(file)
        try:
            for name, entry in read_directory(archive._at, archive._size, max_comment=0):
                if entry.flags & 1 or entry.method not in (STORED, DEFLATED):
                    return None
                if not name.endswith(b".npy") or not name.isascii():
                    return None
                archive._entries[name[:-4].decode()] = entry
        except (ValueError, struct.error):
            return None
        return archive

    def arrays(self, keys: Sequence[str]) -> dict[str, npt.NDArray[Any]] | None:
        """Return the arrays of ``keys``, or None if one is damaged or not as NumPy writes it."""
        found: dict[str, npt.NDArray[Any]] = {}
        for key in keys:
            try:
                array = _array(read_member(self._at, f"{key}.npy".encode(), self._entries[key]))
            except (ValueError, struct.error):
                return None
            if array is None:
                return None
            found[key] = array
        return found

    def _at(self, offset: int, length: int) -> bytes:
        self._file.seek(min(offset, self._size))  # a damaged offset may be larger than any file
        return self._file.read(min(length, self._size))


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
    """Return the shape, Fortran order and type in a header; cached, because the frames of a split share one."""
    try:
        return np.lib.format.read_array_header_1_0(io.BytesIO(text))
    except ValueError:
        return None

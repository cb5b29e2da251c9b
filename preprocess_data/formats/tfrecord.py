"""TFRecord files and the tf.train.Example inside them, read without TensorFlow; every checksum is compared.

A TFRecord file is a row of [length u64][masked CRC-32C of it u32][content][masked CRC-32C of it u32], little endian
(https://www.tensorflow.org/tutorials/load_data/tfrecord). An Example is a protocol buffer: a map from names to lists
of bytes, of float32 or of int64 (tensorflow/core/example/feature.proto).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.data.formats.zip_reader import open_binary

Words = npt.NDArray[np.uint32]
Feature = list[bytes] | npt.NDArray[np.float32] | npt.NDArray[np.int64]

_POLYNOMIAL = np.uint32(0x82F63B78)  # Castagnoli's, reflected
_LANE = 64  # bytes: fewer are not worth a column of their own
_LIMIT = 1 << 31  # bytes of a record; protocol buffers end there


def records(path: Path) -> Iterator[bytes]:
    """The contents of a TFRecord file, one after the other.

    Raises FileNotFoundError, or ValueError naming the file and the record that does not match its checksum.
    """
    try:
        file = open_binary(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    with file:
        number = 0
        while head := file.read(12):
            where = f"{path}: record {number}"
            if len(head) < 12:
                raise ValueError(f"{where} is cut off; fetch the file again")
            length, wanted = struct.unpack("<QI", head)
            if masked_crc(head[:8]) != wanted or length >= _LIMIT:
                raise ValueError(f"{where}: its length does not match its checksum; fetch the file again")
            content = file.read(length + 4)
            if len(content) < length + 4:
                raise ValueError(f"{where} is cut off; fetch the file again")
            if masked_crc(content[:-4]) != struct.unpack("<I", content[-4:])[0]:
                raise ValueError(f"{where} does not match its checksum; fetch the file again")
            yield content[:-4]
            number += 1


# ------------------------------------------------------------------------------------------------------------- CRC-32C
def masked_crc(content: bytes) -> int:
    crc = crc32c(content)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(content: bytes) -> int:
    """CRC-32C (Castagnoli). Long contents are cut into equal lanes that are taken a byte at a time, all together."""
    lanes = 1
    while 2 * lanes * _LANE <= len(content):
        lanes *= 2
    each = len(content) // lanes
    head = len(content) - lanes * each  # what does not fill a lane goes first, byte by byte
    table = _byte_table()
    crc = 0xFFFFFFFF
    for byte in content[:head]:
        crc = int(table[(crc ^ byte) & 0xFF]) ^ (crc >> 8)
    columns = np.frombuffer(content, dtype=np.uint8, offset=head).reshape(lanes, each).T
    state = np.zeros(lanes, dtype=np.uint32)
    state[0] = crc  # the others begin as if nothing were before them: a CRC is linear
    for column in np.ascontiguousarray(columns):
        state = table.take(state.astype(np.uint8) ^ column) ^ (state >> 8)
    shift = _past_zeros(each)
    while len(state) > 1:
        state = _apply(shift, state[0::2]) ^ state[1::2]
        shift = _apply(shift, shift)  # twice as far
    return int(state[0]) ^ 0xFFFFFFFF


@cache
def _byte_table() -> Words:
    table: Words = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> np.uint32(1)) ^ ((table & np.uint32(1)) * _POLYNOMIAL)
    return table


@cache
def _past_zeros(count: int) -> Words:
    """The linear map [32] (what becomes of each bit) of a CRC that ``count`` bytes of zero go through."""
    result = np.uint32(1) << np.arange(32, dtype=np.uint32)  # nothing changes
    power = _byte_table()[result & 0xFF] ^ (result >> 8)  # one byte
    while count:
        if count & 1:
            result = _apply(power, result)
        power = _apply(power, power)
        count >>= 1
    return result


def _apply(linear: Words, values: Words) -> Words:
    """A linear map of many values: of each of their four bytes, by table."""
    out = np.zeros_like(values)
    for byte in range(4):
        table = np.zeros(256, dtype=np.uint32)
        for bit in range(8):
            table[1 << bit : 2 << bit] = table[: 1 << bit] ^ linear[8 * byte + bit]
        out ^= table[(values >> (8 * byte)) & 0xFF]
    return out


# -------------------------------------------------------------------------------------------------- tf.train.Example
def parse_example(content: bytes, where: str) -> dict[str, Feature]:
    """Name -> list of bytes, float32 [n] or int64 [n]. ``where`` (file and record) is named by the ValueError."""
    try:
        found: dict[str, Feature] = {}
        for field, features in _fields(content):
            if field != 1 or not isinstance(features, bytes):
                continue
            for entry_field, entry in _fields(features):
                if entry_field == 1 and isinstance(entry, bytes):
                    parts = dict(_fields(entry))
                    name, feature = parts.get(1, b""), parts.get(2, b"")
                    if not isinstance(name, bytes) or not isinstance(feature, bytes):
                        raise ValueError("a feature without a name")
                    found[name.decode("utf-8")] = _feature(feature)
        return found
    except (ValueError, IndexError, struct.error) as error:
        raise ValueError(f"{where} is no tf.train.Example ({error})") from None


def _feature(content: bytes) -> Feature:
    for kind, listed in _fields(content):
        if not isinstance(listed, bytes):
            break
        values = [value for field, value in _fields(listed) if field == 1]
        if kind == 1:
            return [value for value in values if isinstance(value, bytes)]
        if kind == 2:  # packed, or a float for itself: bytes in either case
            return np.frombuffer(b"".join(v for v in values if isinstance(v, bytes)), dtype="<f4")
        if kind == 3:
            numbers = [n for v in values for n in ([v] if isinstance(v, int) else _varints(v))]
            return np.asarray(numbers, dtype=np.uint64).view(np.int64)
    return []


def _fields(content: bytes) -> Iterator[tuple[int, bytes | int]]:
    """(number, value) of every field of a message: bytes, or an int for a varint."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(content, at)
            yield key >> 3, value
            continue
        if wire == 2:
            size, at = _varint(content, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(content):
            raise ValueError("a field passes the end")
        yield key >> 3, content[at : at + size]
        at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _varints(content: bytes) -> Iterator[int]:
    at = 0
    while at < len(content):
        value, at = _varint(content, at)
        yield value

"""Read TFRecord files and the tf.train.Example messages in them without TensorFlow, checking every checksum.

A TFRecord file is a row of [length u64][masked CRC-32C of it u32][content][masked CRC-32C of it u32], little endian
(https://www.tensorflow.org/tutorials/load_data/tfrecord). An Example is a protocol buffer: a map from names to lists
of bytes, of float32 or of int64 (tensorflow/core/example/feature.proto).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.data.formats.zip_reader import open_binary

Feature = list[bytes] | npt.NDArray[np.float32] | npt.NDArray[np.int64]

_LIMIT = 1 << 31  # bytes of a record; protocol buffers end there


_FIELDS = {
    "Example": (("features", "Features"),),
    "Features": (("feature", "*Entry"),),  # a map is encoded as such a list
    "Entry": (("key", "string"), ("value", "Feature")),
    "Feature": (("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List")),
    "BytesList": (("value", "*bytes"),),
    "FloatList": (("value", "*float"),),
    "Int64List": (("value", "*int64"),),
}
"""Message -> name and type of its fields, numbered from 1; * marks a repeated one."""


def records(path: Path) -> Iterator[bytes]:
    """Yield the contents of a TFRecord file, one after the other.

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


def masked_crc(content: bytes) -> int:
    """Return the masked CRC-32C of a TFRecord file. Raise ValueError if google-crc32c is not installed."""
    try:
        from google_crc32c import value as crc32c
    except ImportError:
        raise ValueError(
            "TFRecord files need google-crc32c, which is not installed: pip install google-crc32c"
        ) from None
    crc = crc32c(content)
    return int((((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def parse_example(content: bytes, where: str) -> dict[str, Feature]:
    """Return name -> list of bytes, float32 [n] or int64 [n]. Raise ValueError beginning with ``where``."""
    from google.protobuf.message import DecodeError

    try:
        example = _example_type().FromString(content)
    except DecodeError as error:
        raise ValueError(f"{where} is no tf.train.Example ({error})") from None
    return {entry.key: _values(entry.value) for entry in example.features.feature}


def _values(feature: Any) -> Feature:
    if feature.HasField("float_list"):
        return np.array(feature.float_list.value, dtype=np.float32)
    if feature.HasField("int64_list"):
        return np.array(feature.int64_list.value, dtype=np.int64)
    return list(feature.bytes_list.value)


@cache
def _example_type() -> Any:
    """Return the message class of tf.train.Example."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="tfrecord.proto", package="tfrecord", syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto
    for message, fields in _FIELDS.items():
        made = file.message_type.add(name=message)
        for number, (name, kind) in enumerate(fields, 1):
            label = field.LABEL_REPEATED if kind.startswith("*") else field.LABEL_OPTIONAL
            kind = kind.removeprefix("*")
            if kind in _FIELDS:
                type_ = {"type": field.TYPE_MESSAGE, "type_name": f".tfrecord.{kind}"}
            else:
                type_ = {"type": getattr(field, f"TYPE_{kind.upper()}")}
            made.field.add(name=name, number=number, label=label, **type_)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tfrecord.Example"))

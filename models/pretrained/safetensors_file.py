"""Write a safetensors file tensor by tensor, without a second copy of a model in memory.

``safetensors.torch.save_file`` takes all tensors at once. Weights that are computed (adapters merged into their layers)
or copied from a device would then all be in memory beside the model. The bytes are the same as those of ``save_file``
(https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

DTYPES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of the types in a file, in the order in which their tensors are written."""
ALIGNMENT = 8


@dataclass(frozen=True)
class Deferred:
    """A tensor that is computed when it is written."""

    shape: torch.Size
    dtype: torch.dtype
    compute: Callable[[], Tensor]


Writable: TypeAlias = Tensor | Deferred


def stream_safetensors(path: Path, tensors: Mapping[str, Writable], metadata: Mapping[str, str]) -> None:
    """Write ``tensors``; one at a time is computed, copied to the host and made contiguous.

    Raises:
        ValueError: two tensors share their memory, a type is none of ``DTYPES``, or a deferred tensor is not of the
            shape and type that it declares.
    """
    _require_separate(tensors)
    kinds = list(DTYPES)
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{path}: {name} has the type {tensor.dtype}, which safetensors files do not hold")
    names = sorted(tensors, key=lambda name: (kinds.index(tensors[name].dtype), name.encode()))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    at = 0
    for name in names:
        tensor = tensors[name]
        size = tensor.shape.numel() * tensor.dtype.itemsize
        offsets = [at, at + size]
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        at += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for name in names:
            file.write(_bytes_of(tensors[name], f"{path}: {name}"))


def _bytes_of(tensor: Writable, what: str) -> memoryview:
    now = tensor.compute() if isinstance(tensor, Deferred) else tensor
    if (now.shape, now.dtype) != (tensor.shape, tensor.dtype):
        raise ValueError(f"{what} is {now.dtype} {tuple(now.shape)}, declared as {tensor.dtype} {tuple(tensor.shape)}")
    return now.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _require_separate(tensors: Mapping[str, Writable]) -> None:
    """Raise ``ValueError`` if two tensors overlap in memory, as tied weights do: a file would hold them twice."""
    places = sorted(
        (str(tensor.device), tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size(), name)
        for name, tensor in tensors.items()
        if isinstance(tensor, Tensor) and tensor.numel() and tensor.is_contiguous()
    )
    for (device, _, end, first), (other, start, _, second) in pairwise(places):
        if device == other and start < end:
            raise ValueError(f"{first} and {second} share their memory; omit one of them")

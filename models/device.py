"""Copy tensors to a device without waiting; keep freed host memory for the next tensor, or return it."""

from __future__ import annotations

import ctypes
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST = (1 << 30, 1 << 25)
"""Freed blocks of up to this many bytes are kept; the second value is for versions of glibc that refuse the first."""

RETURNED = 1 << 20
LARGE = 1 << 30
"""Bytes of weights from which training on a CPU uses ``return_freed_memory``. Smaller models leave little to return."""


def to_device_async(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return the tensor on ``device`` without blocking the host.

    A copy from pageable memory to a GPU blocks the host until the GPU reaches it; one from page-locked memory does not.
    A tensor that is on ``device`` is returned unchanged.
    """
    device = torch.device(device)
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


Fields = TypeVar("Fields", bound=Any)


def fields_to_device(instance: Fields, device: torch.device | str) -> Fields:
    """Return a dataclass whose tensors, and fields with a method ``to``, are copied to ``device``."""
    moved: dict[str, Any] = {}
    for field in fields(instance):
        value = getattr(instance, field.name)
        if isinstance(value, Tensor):
            moved[field.name] = to_device_async(value, device)
        elif hasattr(value, "to"):
            moved[field.name] = value.to(device)
    return replace(instance, **moved)


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory instead of returning it to the kernel; return whether it accepted.

    On a CPU every activation of the image tokenizer is several megabytes that are mapped, zeroed page by page and
    unmapped again, which took up to two fifths of the time of an encoding. The process keeps the memory of its peak.
    Other C libraries are not changed.
    """
    return _mallopt(M_TRIM_THRESHOLD, 2**31 - 1) and any(_mallopt(M_MMAP_THRESHOLD, size) for size in LARGEST)


def return_freed_memory() -> bool:
    """Make glibc return every freed block of ``RETURNED`` bytes or more to the kernel; return whether it accepted.

    torch asks for aligned blocks. glibc takes those of up to 32 MB from its heap and seldom uses a freed one again. The
    holes that a training step with gradient checkpointing leaves are about as large as the weights (docs/log.md).
    """
    return _mallopt(M_MMAP_THRESHOLD, RETURNED)


def _mallopt(parameter: int, value: int) -> bool:
    try:
        return bool(ctypes.CDLL(None).mallopt(parameter, value))
    except (OSError, AttributeError, TypeError):  # another C library
        return False

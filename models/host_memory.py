"""Freed memory that stays with the process, for its next tensor."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST = (1 << 30, 1 << 25)
"""Bytes up to which a freed tensor's memory is kept; where glibc forbids the first, the second."""


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed in place of giving it back to the kernel; returns whether it agreed.

    On a CPU every activation of the image tokenizer is megabytes that are mapped, filled with zeros page by page and
    unmapped again: that took up to two fifths of the time of an encoding. What a process has needed at its peak stays
    its own. Other C libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1)) and any(mallopt(M_MMAP_THRESHOLD, size) for size in LARGEST)

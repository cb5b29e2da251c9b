"""Recognise errors of libraries that are known only by their message.

Gloo, torch's serialisation and torch's data loader raise general exceptions (``RuntimeError``, ``OSError``) for a lost
peer, a full disk and exhausted shared memory. All substrings that this package matches are listed here. They were
checked with torch 2.11 to 2.13 (``tests/training/test_known_errors.py``).
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import torch.distributed as dist
from safetensors import SafetensorError

LOST_PROCESS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "Connection refused",
)
"""Gloo: another process has ended."""
TORCH_WRITER_MARKER = "inline_container"
"""``torch.save``: the archive cannot be written. (Its source file is named in the message.)"""
SHARED_MEMORY = ("shm", "shared memory", "/torch_", "No space left")
"""Data loader: a tensor cannot be placed in shared memory."""
OPEN_FILES = "Too many open files"
"""Data loader: the limit of file descriptors is reached."""

WRITE_ERRORS = (OSError, SafetensorError, RuntimeError)
"""Exceptions of file writers when the disk is full. A ``RuntimeError`` counts only if ``is_write_error`` is True."""
MIN_FREE = 1 << 20
"""Bytes: a disk with less free space is called full."""


def is_lost_process(error: RuntimeError) -> bool:
    """Return True if the error means that another process of the run has ended."""
    return isinstance(error, dist.DistError) or any(words in str(error) for words in LOST_PROCESS)


def is_write_error(error: BaseException) -> bool:
    """Return True if the error means that a file could not be written."""
    if isinstance(error, RuntimeError):
        return TORCH_WRITER_MARKER in str(error)
    return isinstance(error, WRITE_ERRORS)


def describe_write_error(error: BaseException, folder: Path) -> str:
    """Return the reason of a write error in a few words. Libraries often lose the error number of a full disk."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    try:
        free = shutil.disk_usage(folder).free
    except OSError as failed:
        return os.strerror(failed.errno or errno.EIO)
    lines = str(error).strip().splitlines()
    return os.strerror(errno.ENOSPC) if free < MIN_FREE else lines[0] if lines else type(error).__name__


def is_shared_memory_error(message: str) -> bool:
    """Return True if the message means that shared memory is full or not available."""
    return any(words in message for words in SHARED_MEMORY)


def is_open_files_error(message: str) -> bool:
    """Return True if the message means that a process has too many open files."""
    return OPEN_FILES in message

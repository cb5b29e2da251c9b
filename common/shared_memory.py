"""Shared memory of this machine, in which data workers exchange batches. Imports no torch."""

from __future__ import annotations

import shutil
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
LESS_MEMORY = "lower dataset.params.num_workers or training.batch_size_pre and batch_size_mmu"


def shared_memory_note(in_flight: int, processes: int) -> str | None:
    """Return a warning if batches of ``in_flight`` bytes, in each process of this machine, do not fit ``/dev/shm``."""
    need = in_flight * processes
    if need == 0 or not SHARED_MEMORY.is_dir() or shutil.disk_usage(SHARED_MEMORY).free >= need:
        return None
    return f"warning: data workers keep up to {need / 1e6:.0f} MB of batches in shared memory; {shared_memory_remedy()}"


def shared_memory_remedy() -> str:
    """Return the size of ``/dev/shm``, and how to get more or use less of it."""
    size = ""
    if SHARED_MEMORY.is_dir():
        usage = shutil.disk_usage(SHARED_MEMORY)
        size = f" has {usage.total / 1e6:.3g} MB, {usage.free / 1e6:.3g} MB of them free"
    return f"{SHARED_MEMORY}{size}: {more_shared_memory()}"


def more_shared_memory() -> str:
    """Return how to get more shared memory, or use less of it."""
    return (
        f"give it more (docker run --shm-size=1g, or mount -o remount,size=1g {SHARED_MEMORY}), or {LESS_MEMORY} "
        "(dataset.params.num_workers=0 needs none)"
    )

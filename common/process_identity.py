"""Identify machines and processes, so that a record of a process can be compared with what runs now."""

from __future__ import annotations

import os
import socket
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = Path("/proc/self/ns/pid")


def boot_id() -> str:
    """Return the identity of the running kernel, or an empty text if the system has none.

    It changes with every boot, and containers on one machine share it."""
    return _BOOT_ID.read_text(encoding="utf-8").strip() if _BOOT_ID.exists() else ""


def machine() -> str:
    """Return a text that is equal for processes that see each other's process ids, and for no others."""
    namespace = os.readlink(_PID_NAMESPACE) if _PID_NAMESPACE.is_symlink() else ""
    return " ".join(fact for fact in (socket.gethostname(), boot_id(), namespace) if fact)


def process_stamp(pid: int) -> str:
    """Return the id and the start time of a process of this machine, or ``<pid> gone`` if it has ended.

    The start time is needed because ids are used again."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        state, started = fields[0], fields[19]
    except (FileNotFoundError, ProcessLookupError):
        return f"{pid} {_without_proc(pid)}"
    return f"{pid} gone" if state in "ZX" else f"{pid} {started}"


def _without_proc(pid: int) -> str:
    if Path("/proc/self").exists():
        return "gone"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "gone"
    except PermissionError:
        pass
    return "running"

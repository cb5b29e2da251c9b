"""Run a command and watch the memory of its processes, by phase."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.harness.memory import smaps_rollup

INTERVAL = 0.25
"""Seconds between two readings."""


@dataclass
class Watched:
    """Results of a command.

    ``anonymous``: phase -> most bytes at once that its processes held themselves; ``resident``: with mapped files.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    code: int = 0
    anonymous: dict[str, int] = field(default_factory=dict)
    resident: dict[str, int] = field(default_factory=dict)

    @property
    def peak(self) -> int:
        """Most anonymous bytes at once in any phase."""
        return max(self.anonymous.values(), default=0)


def watch(command: Sequence[str], log: Path, phase: Callable[[], str] = lambda: "run") -> Watched:
    """Run ``command`` with its output in ``log``.

    ``phase`` returns the name of what it does now. It is called after each reading, so that memory which a phase takes
    is never counted for the one before it.
    """
    found, started, over = Watched(), time.perf_counter(), threading.Event()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        child = psutil.Popen(list(command), stdout=file, stderr=subprocess.STDOUT)

        def read() -> None:
            while not over.wait(INTERVAL):
                _read(child, phase, found)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        found.code = child.wait()
        over.set()
        reader.join()
    found.seconds = time.perf_counter() - started
    return found


def _read(child: psutil.Process, phase: Callable[[], str], found: Watched) -> None:
    anonymous = resident = 0
    cpu = 0.0
    try:
        for process in (child, *child.children(recursive=True)):
            own, all_of_it = _rollup(process.pid)
            times = process.cpu_times()
            anonymous, resident, cpu = anonymous + own, resident + all_of_it, cpu + times.user + times.system
    except (psutil.NoSuchProcess, psutil.ZombieProcess, OSError):
        return
    found.cpu_seconds = max(found.cpu_seconds, cpu)
    name = phase()
    found.anonymous[name] = max(found.anonymous.get(name, 0), anonymous)
    found.resident[name] = max(found.resident.get(name, 0), resident)


def _rollup(pid: int) -> tuple[int, int]:
    """Return (anonymous, resident) bytes of a process, from ``/proc``. Shared pages are divided among processes."""
    values = smaps_rollup(pid)
    return values["Pss_Anon"] * 1024, values["Pss"] * 1024

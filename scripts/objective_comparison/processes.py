"""Run commands in separate processes, several at a time, each after those that it needs."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.5
LOG_TAIL = 12
"""Lines at the end of a failed command's log that are shown."""


@dataclass(frozen=True)
class Work:
    """A command; ``finished()``: whether its result exists; ``after``: names of the works that have to be finished."""

    name: str
    command: Sequence[str]
    log: Path
    finished: Callable[[], bool]
    after: tuple[str, ...] = ()


@dataclass
class _Process:
    work: Work
    popen: subprocess.Popen[bytes]


def run_works(
    works: Sequence[Work], jobs: int, on_poll: Callable[[Sequence[str]], object] = lambda running: None
) -> Generator[tuple[Work, str | None], None, None]:
    """Run the works that are not finished; yield each at its end, with the end of its log if it failed.

    Works that need a failed one are left out. ``on_poll`` receives the names of the running ones, again and again.
    Closing the iterator stops the running ones, which resume at the next call.
    """
    done = {work.name for work in works if work.finished()}
    waiting = [work for work in works if work.name not in done]
    threads, running = max(1, (os.cpu_count() or 1) // jobs), list[_Process]()
    try:
        while True:
            ready = [work for work in waiting if done.issuperset(work.after)][: jobs - len(running)]
            for work in ready:
                waiting.remove(work)
                running.append(_Process(work, _start(work, threads)))
            if not running:
                return
            time.sleep(POLL_SECONDS)
            for process in [p for p in running if p.popen.poll() is not None]:
                running.remove(process)
                failed = process.popen.returncode != 0 or not process.work.finished()
                if not failed:
                    done.add(process.work.name)
                yield process.work, _failure(process) if failed else None
            on_poll([process.work.name for process in running])
    finally:
        _stop(running)


def _start(work: Work, threads: int) -> subprocess.Popen[bytes]:
    work.log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    with work.log.open("ab") as log:
        return subprocess.Popen(
            work.command,
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this command only, which then stops its works
        )


def _failure(process: _Process) -> str:
    log = process.work.log
    end = "\n".join("  " + line for line in _last_lines(log))
    return f"{process.work.name} ended with code {process.popen.returncode}; the end of {log}:\n{end}"


def _last_lines(log: Path) -> list[str]:
    text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    return [line for line in text.splitlines() if line.strip()][-LOG_TAIL:]


def _stop(running: Sequence[_Process]) -> None:
    """Terminate the processes; kill those that do not end within 20 seconds."""
    for process in running:
        process.popen.terminate()
    for process in running:
        try:
            process.popen.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.popen.kill()
            process.popen.wait()

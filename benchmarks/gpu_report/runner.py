"""Run the cases one after another in a worker process, within their time, and record every outcome at once."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu_report.case import Case
from benchmarks.harness.record import ROOT

START_LIMIT = 120.0
"""Seconds in which a worker must have imported the libraries and reached the device."""
CPU_PATIENCE = 20.0
"""Factor of all limits on a CPU, which other work may occupy."""
SHORTEST = 10.0
"""Seconds that must be left to start a case."""


class WorkerEndedError(RuntimeError):
    """The worker process ended or was stopped; the message states why."""


@dataclass
class Worker:
    """A worker process. ``command``: its command line; ``log``: file that its stderr is appended to."""

    command: Sequence[str]
    log: Path
    _lines: queue.Queue[str | None] = field(default_factory=queue.Queue)

    def __post_init__(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
                start_new_session=True,  # the compiler's processes end with it
            )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def ask(self, name: str, limit: float) -> dict[str, Any]:
        """Return the answer to a line within ``limit`` seconds.

        Raises ``WorkerEndedError`` if the worker ends, or is stopped because it takes longer.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{name}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerEndedError(self._end()) from None
        return self.read(limit)

    def read(self, limit: float) -> dict[str, Any]:
        """Return the next answer, as ``ask``."""
        try:
            line = self._lines.get(timeout=limit)
        except queue.Empty:
            self.stop()
            raise WorkerEndedError(f"stopped after its {limit:.0f} s") from None
        if line is None:
            raise WorkerEndedError(self._end())
        found: dict[str, Any] = json.loads(line)
        return found

    def _end(self) -> str:
        code = self._process.wait()
        lines = [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        self.stop()
        return f"{lines[-1].strip()[:300] if lines else 'no message'} (exit code {code}; {self.log.name})"

    def stop(self) -> None:
        """End the process and those that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):  # a line that it did not read
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()


def run_cases(
    cases: Sequence[Case],
    start: Callable[[], Worker],
    record: Callable[[Case | None, dict[str, Any]], None],
    seconds: float,
    patience: float = 1.0,
) -> None:
    """Run cases within ``seconds``, and pass the outcome of each to ``record`` at once.

    ``patience``: factor of the limits of single cases.

    A failed case does not end the others. Outcomes have ``status`` (done, skipped, failed, not run), ``message``,
    ``seconds`` and ``figures``. The first thing that a worker answers, its hardware, is recorded without a case.
    """
    deadline, worker = time.monotonic() + seconds, None
    try:
        for case in cases:
            left = deadline - time.monotonic()
            if left < SHORTEST:
                record(case, outcome("not run", "the time of the report was used up"))
                continue
            started = time.monotonic()
            try:
                if worker is None:
                    worker = start()
                    record(None, worker.read(patience * START_LIMIT))
                record(case, worker.ask(case.key, min(patience * case.limit, left)))
            except WorkerEndedError as why:
                record(case, outcome("failed", str(why), time.monotonic() - started))
                worker = None
    finally:
        if worker is not None:
            worker.stop()


def outcome(status: str, message: str, seconds: float = 0.0) -> dict[str, Any]:
    """Return the outcome of a case without figures."""
    return {"status": status, "message": message, "seconds": seconds, "figures": {}}

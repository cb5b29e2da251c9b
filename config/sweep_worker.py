"""Run one combination of a sweep as a process with its own folder, log and record."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.files import write_text

RECORD = "sweep_run.json"
LOG = "output.log"
MAX_NAME_LENGTH = 150


@dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
        values: the swept `key=value` texts.
        folder: the run's output folder.
        command: the command that starts it.
        settings: digest of its resolved configuration.
    """

    values: tuple[str, ...]
    folder: Path
    command: tuple[str, ...]
    settings: str


@dataclass
class Processes:
    """The running processes of this worker; `stopped` after SIGTERM."""

    running: set[subprocess.Popen[bytes]] = field(default_factory=set)
    stopped: bool = False

    def stop(self, *_: Any) -> None:
        self.stopped = True
        for process in list(self.running):
            process.terminate()


@contextmanager
def forward_sigterm() -> Iterator[Processes]:
    """Forward SIGTERM to the processes of the `with` block. They can save and end; then this process ends with 143."""
    processes = Processes()
    before = signal.signal(signal.SIGTERM, processes.stop)
    try:
        yield processes
    finally:
        signal.signal(signal.SIGTERM, before)
    if processes.stopped:
        raise SystemExit(143)


def run_job(run: Run) -> int:
    """Execute a run in a job of its own; see `execute`."""
    with forward_sigterm() as processes:
        return execute(run, processes)


def execute(run: Run, processes: Processes) -> int:
    """Execute a run unless an earlier sweep finished it, and return its exit code.

    A folder or file that cannot be written raises nothing, because other runs follow.
    """
    name = run.folder.name
    try:
        record = read_record(run.folder)
        if record.get("exit") == 0 and record.get("settings") == run.settings:
            print(f"[{name}] already finished", flush=True)
            return 0
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / RECORD).unlink(missing_ok=True)
        print(f"[{name}] {shlex.join(run.command)}", flush=True)
        start = time.time()
        code = _run_process(run.command, run.folder / LOG, processes)
        if processes.stopped:  # without a record the next sweep resumes the run
            return code or 143
        record = {
            "exit": code,
            "seconds": round(time.time() - start, 1),
            "settings": run.settings,
            "overrides": run.values,
            "command": run.command,
            "said": _last_line(run.folder / LOG) if code else "",
        }
        write_text(run.folder / RECORD, json.dumps(record, indent=1))
    except OSError as error:
        print(f"[{name}] FAILED: {error}", flush=True)
        return 1
    print(f"[{name}] {'done' if code == 0 else f'FAILED with exit code {code}'}", flush=True)
    return code


def digest(settings: str) -> str:
    """Return the SHA-256 of a text."""
    return hashlib.sha256(settings.encode()).hexdigest()


def name_of(values: Sequence[str]) -> str:
    """Return the folder name of a run: its swept values (`seed=0,text_objective=bd`), safe in a path and short."""
    leaves = [value.partition("=")[0].rpartition(".")[2] for value in values]
    ambiguous = len(set(leaves)) < len(leaves)
    short = [f"{leaf}={value.partition('=')[2]}" for leaf, value in zip(leaves, values, strict=True)]
    name = ",".join(values if ambiguous else short) or "run"
    safe = re.sub(r"[^\w.,=+\-\[\]]", "_", name)
    if safe == name and len(name) <= MAX_NAME_LENGTH:
        return name
    return f"{safe[:MAX_NAME_LENGTH]}-{digest(name)[:8]}"


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record of a finished run; empty if it did not finish."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return record if isinstance(record, dict) else {}


def _run_process(command: Sequence[str], log: Path, processes: Processes) -> int:
    """Run a command, copy its output to stdout and to a file, and return its exit code."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with (
        log.open("ab") as file,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment) as process,
    ):
        assert process.stdout is not None
        processes.running.add(process)
        if processes.stopped:  # SIGTERM while the process was started
            process.terminate()
        while chunk := os.read(process.stdout.fileno(), 1 << 16):
            file.write(chunk)
            file.flush()
            sys.stdout.buffer.write(chunk)
            sys.stdout.flush()
        code = process.wait()
        processes.running.discard(process)
        return code


def _last_line(log: Path) -> str:
    lines = [part for part in re.split(r"[\r\n]+", log.read_text(encoding="utf-8", errors="replace")) if part.strip()]
    return lines[-1][:300] if lines else ""

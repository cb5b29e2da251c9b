"""One run of a sweep: a process of its own, a folder of its own, and a record of how it ended."""

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.files import write_text
from config.files import PROJECT_DIR

RECORD = "sweep_run.json"
LOG = "output.log"
LONGEST_NAME = 150


@dataclass(frozen=True)
class Plan:
    """What all runs of a sweep share. By a run's name: the digest of its settings, and the script that starts it."""

    fixed: tuple[str, ...]
    folder: str
    launch: tuple[str, ...]
    digests: Mapping[str, str]
    scripts: Mapping[str, str]


def digest(settings: str) -> str:
    return hashlib.sha256(settings.encode()).hexdigest()


def name_of(values: Sequence[str]) -> str:
    """The folder of a run: `seed=0,text_objective=bd`, made of what is swept, safe in a path and never too long."""
    leaves = [value.partition("=")[0].rpartition(".")[2] for value in values]
    whole = len(set(leaves)) < len(leaves)
    parts = [
        value if whole else f"{leaf}={value.partition('=')[2]}" for leaf, value in zip(leaves, values, strict=True)
    ]
    name = ",".join(parts) or "run"
    safe = re.sub(r"[^\w.,=+\-\[\]]", "_", name)
    if safe == name and len(name) <= LONGEST_NAME:
        return name
    return f"{safe[:LONGEST_NAME]}-{digest(name)[:8]}"


def read_record(folder: Path) -> dict[str, Any]:
    """How a run ended; empty if it never did."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def run_one(plan: Plan, values: Sequence[str]) -> int:
    """Run one combination unless an earlier sweep finished it; returns its exit code. Nothing raises: others follow."""
    try:
        return _run_one(plan, values)
    except OSError as error:  # a folder or file that cannot be written
        print(f"[{name_of(values)}] FAILED: {error}", flush=True)
        return 1


def _run_one(plan: Plan, values: Sequence[str]) -> int:
    name = name_of(values)
    folder, wanted = Path(plan.folder) / name, plan.digests[name]
    old = read_record(folder)
    if old.get("exit") == 0 and old.get("settings") == wanted:
        print(f"[{name}] already finished", flush=True)
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).unlink(missing_ok=True)
    starter = list(plan.launch) or [sys.executable]
    command = [*starter, str(PROJECT_DIR / plan.scripts[name]), *plan.fixed, *values, f"experiment.output_dir={folder}"]
    print(f"[{name}] {shlex.join(command)}", flush=True)
    started = time.time()
    code = _watch(command, folder / LOG)
    record = {
        "exit": code,
        "seconds": round(time.time() - started, 1),
        "settings": wanted,
        "overrides": list(values),
        "command": command,
        "said": _last_line(folder / LOG) if code else "",
    }
    write_text(folder / RECORD, json.dumps(record, indent=1))
    print(f"[{name}] {'done' if code == 0 else f'FAILED with exit code {code}'}", flush=True)
    return code


def _watch(command: Sequence[str], log: Path) -> int:
    """Run a command; what it says goes to our own output and to a file. A signal to us is handed on to it."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with (
        log.open("ab") as file,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment) as run,
    ):
        with _Handing(run):
            assert run.stdout is not None
            while chunk := os.read(run.stdout.fileno(), 1 << 16):
                file.write(chunk)
                file.flush()
                sys.stdout.buffer.write(chunk)
                sys.stdout.flush()
        return run.wait()


class _Handing:
    """While a run goes on, SIGTERM goes to it; when it has ended (saved, if it could), this process ends too."""

    def __init__(self, run: subprocess.Popen[bytes]) -> None:
        self.run, self.came = run, False
        self.before: Any = None

    def __enter__(self) -> None:
        try:
            self.before = signal.signal(signal.SIGTERM, self._hand_on)
        except ValueError:  # not the main thread: a launcher that has workers looks after them itself
            self.before = None

    def _hand_on(self, number: int, _: Any) -> None:
        self.came = True
        self.run.send_signal(number)

    def __exit__(self, *_: Any) -> None:
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)
        if self.came:
            raise SystemExit(self.run.wait() or 143)


def _last_line(log: Path) -> str:
    lines = [part for part in re.split(r"[\r\n]+", log.read_text(encoding="utf-8", errors="replace")) if part.strip()]
    return lines[-1][:300] if lines else ""

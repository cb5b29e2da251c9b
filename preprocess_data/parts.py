"""Work in parts, and not twice when killed: a finished part lies as a file until all are there.

The parts lie in a hidden folder of the output, with the plan they belong to; a run that is started again with the
same plan takes what it finds, one with another plan starts anew.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def plan_folder(folder: Path, plan: Mapping[str, Any]) -> Path:
    """``folder``, emptied if it holds the parts of another plan (which is anything that JSON can hold)."""
    held = None
    with suppress(OSError, ValueError):
        held = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    if held != plan:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        replace(folder / "plan.json", json.dumps(plan).encode())
    return folder


def is_current(part: Path, sources: Iterable[Path]) -> bool:
    """Return whether a finished part is there, and none of the files it was read from was changed since."""
    if not part.is_file():
        return False
    made = part.stat().st_mtime_ns
    states = (source.stat() for source in sources if source.is_file())
    return all(max(state.st_mtime_ns, state.st_ctime_ns) <= made for state in states)


def output_folder(path: Path) -> None:
    """Make it, with those above it. Raises ValueError saying why it cannot be written, before anything is read."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output-dir {path}: the folder cannot be made ({error.strerror}); give another") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise ValueError(f"--output-dir {path}: the folder is read-only; give another")


def replace(path: Path, content: bytes) -> None:
    """Write a file, complete or not at all."""
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    partial.write_bytes(content)
    os.replace(partial, path)

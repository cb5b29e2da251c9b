"""Work in parts, and not twice when killed: a finished part lies as a file until all are there.

The parts lie in a hidden folder of the output, with the plan they belong to; a run that is started again with the
same plan takes what it finds, one with another plan starts anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from common.files import reason_of, remove, write_bytes
from common.folder_lock import hold


def plan_folder(folder: Path, plan: Mapping[str, Any]) -> Path:
    """Return ``folder``, emptied if it holds the parts of another plan (which is anything that JSON can hold); where
    those cannot be deleted, a folder beside it that is named after the plan."""
    if not _holds(folder, plan) and remove(folder) is not None:
        text = json.dumps(plan, sort_keys=True).encode()
        folder = folder.with_name(f"{folder.name}-{hashlib.blake2b(text, digest_size=8).hexdigest()}")
    if not _holds(folder, plan):
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / "plan.json", json.dumps(plan).encode())
    return folder


def _holds(folder: Path, plan: Mapping[str, Any]) -> bool:
    with suppress(OSError, ValueError):
        return bool(json.loads((folder / "plan.json").read_text(encoding="utf-8")) == plan)
    return False


def remove_parts(output: Path, name: str) -> None:
    """Delete the folders of parts of an output that is written, as far as they can be."""
    for folder in output.glob(f"{name}*"):
        remove(folder)


def is_current(part: Path, sources: Iterable[Path]) -> bool:
    """Return whether a finished part is there, and none of the files it was read from was changed since."""
    if not part.is_file():
        return False
    made = part.stat().st_mtime_ns
    states = (source.stat() for source in sources if source.is_file())
    return all(max(state.st_mtime_ns, state.st_ctime_ns) <= made for state in states)


@contextmanager
def output_folder(path: Path, purpose: str) -> Iterator[None]:
    """Make the folder, with those above it, and hold it until the block ends (``common.folder_lock``).

    Raises ValueError where it cannot be written or another process holds it, before anything is read."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output-dir {path}: the folder cannot be made ({reason_of(error)}); give another") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise ValueError(f"--output-dir {path}: the folder is read-only; give another")
    with hold(path, purpose, "--output-dir "):
        yield

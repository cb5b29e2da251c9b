"""Resume work in parts: a finished part is a file until all parts are finished.

The parts are in a hidden folder of the output, together with the plan they belong to. A run with the same plan uses
them; a run with another plan starts from the beginning.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from common.files import reason_of, remove, write_bytes
from common.folder_lock import hold
from preprocess_data.jobs.workers import in_processes

Job = TypeVar("Job")
Result = TypeVar("Result")


def plan_folder(folder: Path, plan: Mapping[str, Any]) -> Path:
    """Return ``folder``, emptied if it has the parts of another plan (any JSON value).

    If those cannot be deleted, return a folder next to it that is named after the plan.
    """
    if not _has_plan(folder, plan) and remove(folder) is not None:
        text = json.dumps(plan, sort_keys=True).encode()
        folder = folder.with_name(f"{folder.name}-{hashlib.blake2b(text, digest_size=8).hexdigest()}")
    if not _has_plan(folder, plan):
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / "plan.json", json.dumps(plan).encode())
    return folder


def _has_plan(folder: Path, plan: Mapping[str, Any]) -> bool:
    with suppress(OSError, ValueError):
        return bool(json.loads((folder / "plan.json").read_text(encoding="utf-8")) == plan)
    return False


def remove_parts(output: Path, name: str) -> None:
    """Delete the folders of parts of a complete output, as far as possible."""
    for folder in output.glob(f"{name}*"):
        remove(folder)


def is_current(part: Path, sources: Iterable[Path]) -> bool:
    """Return whether a finished part exists and no file that it was read from has changed since."""
    if not part.is_file():
        return False
    made = part.stat().st_mtime_ns
    states = (source.stat() for source in sources if source.is_file())
    return all(max(state.st_mtime_ns, state.st_ctime_ns) <= made for state in states)


def run_missing(
    function: Callable[[Job], Result], jobs: Sequence[Job], finished: Sequence[Result | None], workers: int
) -> Iterator[Result]:
    """Yield the result of each job, in order: the finished one or, if that is None, a new one (``in_processes``)."""
    missing = [job for job, result in zip(jobs, finished, strict=True) if result is None]
    new = in_processes(function, missing, workers)
    for result in finished:
        yield next(new) if result is None else result


@contextmanager
def output_folder(path: Path, purpose: str) -> Iterator[None]:
    """Make the folder, with those above it, and lock it until the block ends (``common.folder_lock``).

    Raises ValueError if it cannot be written or another process has locked it, before anything is read.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output-dir {path}: the folder cannot be made ({reason_of(error)}); give another") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise ValueError(f"--output-dir {path}: the folder is read-only; give another")
    with hold(path, purpose, "--output-dir "):
        yield

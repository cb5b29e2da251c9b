"""Read and write files: JSON with named errors, and writes that happen completely or not at all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROJECT_DIR = Path(__file__).resolve().parents[1]
CONFIG_DIR = PROJECT_DIR / "config"


# ---------------------------------------------------------------------------------------------------------------- write
@contextmanager
def atomic_path(path: Path, sync: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; the file written there replaces ``path`` when the block ends.

    The temporary name is used by no other process. Folders above are made. After an error an older file is unchanged
    and nothing else is left.

    Args:
        path: The file's name.
        sync: Flush the file to the disk before it takes its name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield partial
        if sync:
            flush(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str, sync: bool = False) -> None:
    """Write ``text`` in UTF-8; see ``atomic_path``."""
    write_bytes(path, text.encode("utf-8"), sync)


def write_bytes(path: Path, content: bytes, sync: bool = False) -> None:
    """Write ``content``; see ``atomic_path``."""
    with atomic_path(path, sync) as partial:
        partial.write_bytes(content)


def write_json(path: Path, content: Any, indent: int | None = 2, sync: bool = False) -> None:
    """Write ``content`` as JSON with a newline at the end; see ``atomic_path``."""
    write_text(path, json.dumps(content, indent=indent) + "\n", sync)


def flush(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def give_usual_mode(path: Path) -> None:
    """Give ``path`` the permissions of a new file in its folder; libraries leave 0600 on temporary files.

    A probe file is written, because the umask cannot be read without changing it for all threads.
    """
    probe = path.with_name(f".{path.name}.{secrets.token_hex(4)}.mode")
    try:
        with probe.open("xb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
        os.chmod(path, mode)
    finally:
        probe.unlink(missing_ok=True)


# ----------------------------------------------------------------------------------------------------------------- read
def read_json(file: Path, why: str = "", named: Path | None = None) -> Any:
    """Return the content of a JSON file.

    Args:
        file: The file.
        why: Text behind "does not exist", for example the reader of the file.
        named: Name of the file in messages, if it has a temporary one.

    Raises:
        FileNotFoundError: It does not exist.
        ValueError: It cannot be read, or is not JSON.
    """
    name = named or file
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{name} does not exist{'; ' if why else ''}{why}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not readable JSON: {str(error).splitlines()[0]}") from None


def read_object(file: Path, why: str = "", named: Path | None = None) -> dict[str, Any]:
    """Return the object in ``file``, as ``read_json``. Raise ``ValueError`` too if it holds something else."""
    content = read_json(file, why, named)
    if not isinstance(content, dict):
        raise ValueError(f"{named or file} must hold a JSON object, holds a {type(content).__name__}")
    return content


# --------------------------------------------------------------------------------------------------------------- delete
def remove(path: Path) -> str | None:
    """Delete a file, a link (not its target) or a folder.

    Return the reason if it could not be deleted, else None. A path that does not exist counts as deleted.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        return reason_of(error) if os.path.lexists(path) else None
    return None


def retire(path: Path) -> str | None:
    """Rename a folder to a hidden name (``.<name>.<token>.old``) and delete it: a kill leaves no half of it.

    Return the reason if that was not possible completely, else None. A linked folder is not deleted.
    """
    if path.is_symlink():
        return "it is a link to a folder elsewhere; remove both by hand"
    hidden = path.with_name(f".{path.name}.{secrets.token_hex(3)}.old")
    try:
        os.replace(path, hidden)
    except OSError as error:
        return reason_of(error)
    return remove(hidden)


# ----------------------------------------------------------------------------------------------------- paths and errors
def expand_home(text: str | Path) -> Path:
    """Return the path with a leading `~` or `~user` replaced by the home folder.

    Raises ValueError if there is no such home folder, so that no folder named `~user` is made by accident.
    """
    path = Path(os.path.expanduser(text))
    if path.parts[:1] and path.parts[0].startswith("~"):
        raise ValueError(f"{text}: {path.parts[0]} has no home folder; write ./{path} for a folder of that name")
    return path


def reason_of(error: OSError) -> str:
    """Return the system's text, or the error's own where a library raised it with a sentence and no number."""
    lines = str(error).strip().splitlines()
    return error.strerror or (lines[0] if lines else type(error).__name__)


def display(path: Path) -> str:
    """Return the path relative to the current folder if it lies in it, otherwise as it is."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative

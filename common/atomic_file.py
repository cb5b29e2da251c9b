"""Write a file completely or not at all, with the permissions that the umask gives."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Write ``text`` in UTF-8; see ``replace_bytes``."""
    replace_bytes(path, text.encode("utf-8"))


def replace_bytes(path: Path, content: bytes) -> None:
    """Write under a name that no other process uses, then move the file to ``path``. Folders above it are made.

    An error leaves an older file as it was, and no other behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def give_usual_mode(path: Path) -> None:
    """Give ``path`` the permissions of a new file in its folder; libraries leave 0600 on temporary files.

    They come from a probe file, because reading the umask changes it for all threads."""
    probe = path.with_name(f".{path.name}.{secrets.token_hex(4)}.mode")
    try:
        with probe.open("xb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
        os.chmod(path, mode)
    finally:
        probe.unlink(missing_ok=True)

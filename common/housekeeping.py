"""Delete what is not needed any more. Failure to delete never ends a command."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from common.os_errors import reason_of


def remove(path: Path) -> str | None:
    """Delete a file, a link (not what it leads to) or a folder. Return the reason where it could not be deleted, else
    None; a path that does not exist counts as deleted."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        return reason_of(error) if os.path.lexists(path) else None
    return None


def retire(path: Path) -> str | None:
    """Delete a folder under a hidden name (``.<name>.<token>.old``) that it is given first, so that a kill never leaves
    half of it under its own. Return the reason where that could not be done completely, else None.

    A folder that is only linked here stays: somebody has put it where it is.
    """
    if path.is_symlink():
        return "it is a link to a folder elsewhere; remove both by hand"
    hidden = path.with_name(f".{path.name}.{secrets.token_hex(3)}.old")
    try:
        os.replace(path, hidden)
    except OSError as error:
        return reason_of(error)
    return remove(hidden)

"""Delete what is not needed any more. Failure to delete never ends a command."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from common.os_errors import reason_of


def remove(path: Path) -> str | None:
    """Delete a file, a link (not its target) or a folder, and return None or the reason of a failure.

    A path that does not exist counts as deleted."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        return reason_of(error) if os.path.lexists(path) else None
    return None


def retire(path: Path) -> str | None:
    """Rename a folder to ``.<name>.<token>.old``, delete it, and return None or the reason of a failure.

    A kill therefore never leaves half a folder under the old name. A folder that is only linked here stays.
    """
    if path.is_symlink():
        return "it is a link to a folder elsewhere; remove both by hand"
    hidden = path.with_name(f".{path.name}.{secrets.token_hex(3)}.old")
    try:
        os.replace(path, hidden)
    except OSError as error:
        return reason_of(error)
    return remove(hidden)

"""The one way JSON of users' folders is read: a file that is missing or broken is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json(file: Path, why: str = "", named: Path | None = None) -> Any:
    """What ``file`` holds.

    Args:
        why: what is said behind "does not exist", e.g. who needs the file.
        named: the file's name for messages, where it lies under a temporary one.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read, or is not JSON.
    """
    name = named or file
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{name} does not exist{'; ' if why else ''}{why}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not readable JSON: {str(error).splitlines()[0]}") from None


def read_object(file: Path, why: str = "", named: Path | None = None) -> dict[str, Any]:
    """The object in ``file``, as ``read_json``; ``ValueError`` too where it holds something else."""
    content = read_json(file, why, named)
    if not isinstance(content, dict):
        raise ValueError(f"{named or file} must hold a JSON object, holds a {type(content).__name__}")
    return content

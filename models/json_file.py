"""The one way JSON objects of users' folders are read: a file that is missing or broken is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_object(file: Path, why: str = "", named: Path | None = None) -> dict[str, Any]:
    """The object in ``file``.

    Args:
        why: what is said behind "does not exist", e.g. who needs the file.
        named: the file's name for messages, where it lies under a temporary one.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read, is not JSON, or holds something else than an object.
    """
    name = named or file
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{name} does not exist{'; ' if why else ''}{why}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not readable JSON: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{name} must hold a JSON object, holds a {type(content).__name__}")
    return content

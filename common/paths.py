"""Folders of the project, and paths as users type and read them."""

from __future__ import annotations

import os
from pathlib import Path

PROJECT_DIR = Path(__file__).resolve().parents[1]
CONFIG_DIR = PROJECT_DIR / "config"


def expand_home(text: str | Path) -> Path:
    """Return the path with a leading `~` or `~user` replaced by the home folder.

    Raises ValueError if there is no such home folder, so that no folder named `~user` is made by accident.
    """
    path = Path(os.path.expanduser(text))
    if path.parts[:1] and path.parts[0].startswith("~"):
        raise ValueError(f"{text}: {path.parts[0]} has no home folder; write ./{path} for a folder of that name")
    return path


def display(path: Path) -> str:
    """Return the path relative to the current folder if it lies in it, otherwise as it is."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative

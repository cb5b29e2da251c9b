"""Declare the keys and sections of a configuration: what `config.schema` is written with."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

PathKind = Literal["dir", "list", "model", "weights", "other"]
"""dir: an existing folder. list: a folder or a JSON file. model: a folder, a weights file or a hub id. weights: a file.
other: a path that is not checked at start, or a word. Each text of a list is such a path. A leading `~` is expanded."""


def field(
    default: Any, doc: str, *, path: PathKind | None = None, requires: str = "", allowed: str = "", **bounds: float
) -> Any:
    """Declare one key. A union in its annotation names narrow types first.

    Args:
        default: its value where no file and no argument sets it; a list is copied for each job.
        doc: one line of documentation.
        path: the kind of path that the value is.
        requires: name of a file that the folder has to contain.
        allowed: the allowed values in words, where the annotation alone does not give them.
        bounds: `ge`, `gt`, `le`, `lt`: bounds of a number, or of each number of a list.
    """
    assert bounds.keys() <= {"ge", "gt", "le", "lt"}
    metadata = {"doc": doc, "path": path, "requires": requires, "allowed": allowed, **bounds}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(cls: type) -> Any:
    """Declare a section of keys."""
    return dataclasses.field(default_factory=cls)


def internal(factory: Any) -> Any:
    """Declare an attribute of the job that is not a key and does not count when jobs are compared."""
    return dataclasses.field(default_factory=factory, compare=False, metadata={"internal": True})

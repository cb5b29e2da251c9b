"""One knob of the configuration: its default, its documentation, and what it is checked against."""

from __future__ import annotations

from dataclasses import field
from typing import Any, Final, Literal

MISSING: Final = "???"
"""Value of a key that the user has to give; `config.load` refuses a job in which one is left."""

PathKind = Literal["dir", "list", "model", "weights", "other"]
"""dir: an existing folder. list: a folder, or a json file. model: a folder, a weights file or a hub id. weights: a bare
weights file. other: a path that is not checked here, or a word. A key that is a list of texts has such a path in each.
`~` is expanded in all of them."""


def key(
    default: Any,
    doc: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    path: PathKind | None = None,
    holds: str | None = None,
    says: str | None = None,
) -> Any:
    """Declare one knob: default, one-line documentation, bounds (inclusive `at_*`, exclusive `above`/`below`).

    `path` says what kind of path the value is, `holds` names a file that must lie in that folder, `says` puts what is
    allowed in words where the annotation alone does not.
    """
    bounds = {"at_least": at_least, "at_most": at_most, "above": above, "below": below}
    metadata = {
        "doc": doc,
        "path": path,
        "holds": holds,
        "says": says,
        **{k: v for k, v in bounds.items() if v is not None},
    }
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)

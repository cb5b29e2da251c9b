"""State the reason of an ``OSError`` in a few words."""

from __future__ import annotations


def reason_of(error: OSError) -> str:
    """Return the system's text, or the error's own where a library raised it with a sentence and no number."""
    lines = str(error).strip().splitlines()
    return error.strerror or (lines[0] if lines else type(error).__name__)

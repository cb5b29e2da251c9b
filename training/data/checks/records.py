"""Read and check the texts of an episode of ``dataset_info.json``, and the numbers of its frames."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from common.constants import CALVIN_ACTION_DIM
from common.text import check_text

OPTIONAL = {"states": "state", "expert_actions": "expert_action", "expert_chunks": "expert_chunk"}
"""Columns of numbers that a split may have -> their key in a frame. The first frame shows which ones it has."""


def action_dim(record: Mapping[str, Any]) -> int:
    """Return the size of the first action; CALVIN's if it has none, which is then reported as wrong."""
    with suppress(LookupError, TypeError):
        action = record["frames"][0]["rel_action"]
        if isinstance(action, list) and action:
            return len(action)
    return CALVIN_ACTION_DIM


def optional_columns(record: Mapping[str, Any]) -> dict[str, int]:
    """Return the optional columns that the first episode has -> size of a row."""
    found: dict[str, int] = {}
    with suppress(LookupError, TypeError):
        frame = record["frames"][0]
        for name, key in OPTIONAL.items():
            if key in frame:  # what is no list is reported as wrong
                found[name] = max(len(frame[key]), 1) if isinstance(frame[key], list) else 1
    return found


def table(frames: list[Any], key: str, where: str, dim: int) -> npt.NDArray[np.float32]:
    """Return the numbers [n, dim] that an episode's frames have under ``key``."""
    for position, frame in enumerate(frames):
        if not isinstance(frame, dict) or key not in frame:
            raise ValueError(f"{where}, frame {position} needs a {key!r} of {dim} numbers")
    try:
        rows = np.asarray([frame[key] for frame in frames], dtype=np.float32)
    except (TypeError, ValueError):
        rows = np.empty(0, dtype=np.float32)
    if rows.shape != (len(frames), dim):
        for position, frame in enumerate(frames):
            row = frame[key]
            if not (
                isinstance(row, list) and len(row) == dim and all(isinstance(number, (int, float)) for number in row)
            ):
                raise ValueError(f"{where}, frame {position}: {key} must be {dim} numbers, is {row!r}")
    if not np.isfinite(rows).all():
        position = int(np.argmin(np.isfinite(rows).all(axis=1)))
        raise ValueError(f"{where}, frame {position}: {key} holds a number that is not finite")
    return rows


def text_of(record: dict[str, Any], key: str, where: str, may_be_empty: bool = False) -> str:
    """Return the text under ``key``. Raises ValueError beginning with ``where`` if it is missing or empty."""
    value = record.get(key)
    if not isinstance(value, str) or not (value or may_be_empty):
        raise ValueError(f"{where} needs a text under {key!r}, found {value!r}")
    require_text(value, f"{where}, {key!r}")
    return value


def require_text(text: str, where: str) -> None:
    """Raise ValueError beginning with ``where`` if a text holds characters that no file can hold."""
    try:
        check_text(text)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None

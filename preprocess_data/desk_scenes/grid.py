"""The grid in which places on the desk are named: square cells, numbered as columns and rows.

Column 1 begins at x = -0.45 m, the left edge for a viewer in front of the desk, row 1 at y = -0.50 m, in front of the
open drawer. A cell has sides of 5 cm, so that a right answer is 19 mm from the true place in the mean.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

ORIGIN = (-0.45, -0.50)
"""Left front corner of column 1, row 1: x and y in metres."""
CELL = 0.05
"""Metres."""
COLUMNS, ROWS = 18, 15
SURFACES = {
    "table": "on the table",
    "drawer": "in the drawer",
    "slider_left": "in the left of the cabinet",
    "slider_right": "in the right of the cabinet",
    "grasped": "in the hand",
}
"""Words for the places of a block that is on no other block, by name of ``policy_rollout.calvin.scene_state``."""
_CELL = re.compile(r"column (\d+), row (\d+)", re.IGNORECASE)


def cell_of(position: Sequence[float]) -> tuple[int, int]:
    """Return column and row of a position (x, y, ...); positions beyond the grid belong to the cells at its edge."""
    numbers = (math.floor((value - low) / CELL) + 1 for value, low in zip(position, ORIGIN, strict=False))
    column, row = (min(max(number, 1), most) for number, most in zip(numbers, (COLUMNS, ROWS), strict=True))
    return column, row


def cell_words(position: Sequence[float]) -> str:
    """Return the words for the cell of a position: "column 9, row 7"."""
    column, row = cell_of(position)
    return f"column {column}, row {row}"


def cell_centre(text: str) -> tuple[float, float] | None:
    """Return the centre (x, y) in metres of the first cell that a text names; None if it names none of the grid."""
    match = _CELL.search(text)
    if match is None:
        return None
    column, row = int(match[1]), int(match[2])
    if not (1 <= column <= COLUMNS and 1 <= row <= ROWS):
        return None
    return ORIGIN[0] + (column - 0.5) * CELL, ORIGIN[1] + (row - 0.5) * CELL


def error_mm(text: str, position: Sequence[float]) -> float | None:
    """Return the horizontal distance in millimetres between the cell in a text and a position; None without a cell."""
    centre = cell_centre(text)
    return None if centre is None else 1000 * math.dist(centre, tuple(position)[:2])

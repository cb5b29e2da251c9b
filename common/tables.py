"""Numbers with intervals as text and JSON, and Markdown tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol


class Interval(Protocol):
    """A point estimate with the ends of its confidence interval; see ``common.statistics.Interval``."""

    @property
    def point(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def interval_json(interval: Interval) -> dict[str, float]:
    """Return the interval as the values of a JSON object."""
    return {"value": interval.point, "low": interval.low, "high": interval.high}


def percent(interval: Interval) -> str:
    """Return a rate in percent, such as `77 % [72, 82]`, or a dash if it is not a number."""
    if math.isnan(interval.point):
        return "–"
    return f"{100 * interval.point:.0f} % [{100 * interval.low:.0f}, {100 * interval.high:.0f}]"


def points(interval: Interval) -> str:
    """Return a difference of rates in percentage points, such as `+5 [-2, +12]`, or a dash if it is not a number."""
    if math.isnan(interval.point):
        return "–"
    return f"{100 * interval.point:+.0f} [{100 * interval.low:+.0f}, {100 * interval.high:+.0f}]"


def probability(value: float) -> str:
    """Return a probability with two digits.

    Values near 0 and 1 become bounds, because 10,000 resamples prove no certainty.
    """
    return "> 0.999" if value > 0.999 else "< 0.001" if value < 0.001 else f"{value:.2f}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first column is aligned left and the others right. Bars in cells are escaped."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    lines = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (head, *rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (lines[0], rule, *lines[1:]))

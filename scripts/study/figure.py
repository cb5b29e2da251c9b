"""Draw the study: words before and after acting, success and following of the colour, by arm."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.files import write_bytes
from common.statistics import Interval
from scripts.objective_comparison.figure import COLOURS, GREY, INK
from scripts.study.plan import Run
from scripts.study.table import Results, figure_of, title

PANELS = (
    ("exact match", "exact match of words (%)"),
    ("success", "success (%)"),
    ("follows the colour", "follows the colour (points)"),
    ("image use of actions", "success less that\nwith other images (points)"),
)


def draw(arms: Mapping[str, Sequence[Run]], results: Results, path: Path, note: str) -> None:
    """Write a PNG file: a row for each kind of runs, a point with its interval for each objective."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    rows: dict[str, dict[str, list[Run]]] = {}
    for runs in arms.values():
        measured = [run for run in runs if run in results]
        if measured:
            row = (
                title(measured[0]) if measured[0].speaks else f"{measured[0].tasks.replace('_', ' ')}, no words before"
            )
            rows.setdefault(row, {})[measured[0].label] = measured
    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY}
    with matplotlib.rc_context({**style, "text.color": INK, "axes.labelcolor": INK, "font.family": "DejaVu Sans"}):
        shown = [panel for panel in PANELS if _compares(panel[0], rows.values(), results)]
        figure = Figure(figsize=(12, 1.6 + 0.55 * len(rows)), layout="constrained")
        panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for panel, (metric, label) in zip(panels, shown, strict=True):
            for place, of_row in enumerate(rows.values()):
                for number, (objective, runs) in enumerate(of_row.items()):
                    found = figure_of(metric, [results[run] for run in runs])
                    if found is not None:
                        _point(panel, place + 0.16 * (number - 1.5), found, COLOURS.get(objective, INK))
            panel.set_xlabel(label)
            panel.grid(axis="x", color="#e6e6e6", linewidth=0.7)
            panel.set_axisbelow(True)
        panels[0].set_yticks(range(len(rows)), list(rows))
        panels[0].set_ylim(len(rows) - 0.5, -0.5)
        names = dict.fromkeys(objective for of_row in rows.values() for objective in of_row)
        handles = [Line2D([], [], color=COLOURS.get(name, INK), marker="o", label=name) for name in names]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
        figure.supxlabel(note, fontsize=8, color=GREY)
        content = io.BytesIO()
        figure.savefig(content, dpi=130, format="png")
    write_bytes(path, content.getvalue())


def _compares(metric: str, rows: Collection[Mapping[str, Sequence[Run]]], results: Results) -> bool:
    """Return whether at least two rows, or the only row, have the metric: one row among many compares nothing."""
    measured = [any(results[run].values.get(metric) for runs in row.values() for run in runs) for row in rows]
    return sum(measured) >= min(2, len(measured))


def _point(panel: Any, place: float, found: Interval, colour: str) -> None:
    panel.plot([100 * found.low, 100 * found.high], [place, place], color=colour, linewidth=1.4)
    panel.plot([100 * found.point], [place], "o", color=colour, markersize=5)

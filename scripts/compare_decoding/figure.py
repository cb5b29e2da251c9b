"""Draw quality against speed of decoding, a curve for each model."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.files import write_bytes
from scripts.compare_decoding.sweep import Decoded, Way, best_of
from scripts.objective_comparison.figure import GREY, INK, NAMES, colour_of


def draw(results: Mapping[str, Mapping[Way, Decoded]], path: Path, note: str) -> None:
    """Write a PNG file: exact matches by tokens per second (left) and by tokens per forward (right).

    Every way is a point, and a line joins those that no other one of the model beats. On the right a hollow mark shows
    the bound of the same way with perfect acceptance.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY}
    with matplotlib.rc_context({**style, "text.color": INK, "axes.labelcolor": INK, "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        speed, forwards = figure.subplots(1, 2, sharey=True)
        for number, (name, ways) in enumerate(results.items()):
            _points(speed, forwards, ways, colour_of(name, number))
        speed.set_xlabel("tokens per second, one answer at a time")
        speed.set_ylabel("exact match (%)")
        forwards.set_xlabel("tokens per forward (hollow: bound with perfect acceptance)")
        for panel in (speed, forwards):
            panel.grid(color="#e6e6e6", linewidth=0.7)
            panel.set_axisbelow(True)
        handles = [
            Line2D([], [], color=colour_of(name, number), linewidth=2.5, label=NAMES.get(name, name))
            for number, name in enumerate(results)
        ]
        marks = {"s": "next token", "o": "blocks", "*": "speculative"}
        handles += [Line2D([], [], color=GREY, marker=mark, linestyle="", label=label) for mark, label in marks.items()]
        figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
        figure.supxlabel(note, fontsize=8, color=GREY)
        content = io.BytesIO()
        figure.savefig(content, dpi=130, format="png")
    write_bytes(path, content.getvalue())


def _points(speed: Any, forwards: Any, ways: Mapping[Way, Decoded], colour: str) -> None:
    """Draw one model into both panels."""
    for way, one in ways.items():
        mark = "s" if way.objective == "ar" else "*" if way.speculative else "o"
        size, y = 9 if mark == "*" else 5, 100 * one.exact_match
        speed.plot([one.tokens_per_second], [y], mark, color=colour, markersize=size, alpha=0.6)
        forwards.plot([one.tokens_per_forward], [y], mark, color=colour, markersize=size, alpha=0.6)
        forwards.plot([one.bound], [y], mark, color=colour, markersize=size, fillstyle="none", alpha=0.35)
    best = [ways[way] for way in best_of(ways)]
    speed.plot(
        [one.tokens_per_second for one in best], [100 * one.exact_match for one in best], color=colour, linewidth=1.8
    )

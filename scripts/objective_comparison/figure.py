"""Draw a comparison: training losses by step, and results on held-out items."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.files import write_bytes
from common.statistics import Interval

COLOURS = {"ar": "#0072B2", "mdm": "#D55E00", "bd": "#009E73", "joint": "#CC79A7"}
"""Distinguishable for colour-blind readers too."""
FURTHER_COLOURS = ("#56B4E9", "#E69F00", "#000000", "#F0E442")
NAMES = {
    "ar": "ar  autoregressive",
    "mdm": "mdm  masked diffusion",
    "bd": "bd  block diffusion",
    "joint": "joint  bd and ar",
}
GREY, INK = "#8a8a8a", "#222222"
SMOOTHED = 0.06
"""Window of a curve's running mean, as a fraction of the steps."""
LOSSES = {
    "text/nats_per_token": "text: nats per answer token",
    "image/loss": "image loss",
    "action/loss": "action loss",
}


@dataclass(frozen=True)
class Bars:
    """A panel with a bar for each objective.

    ``baselines``: name -> objective -> a value that is drawn as a mark on the objective's bar; ``floor``: a value that
    is drawn as a line across all bars.
    """

    title: str
    values: Mapping[str, Interval]
    baselines: Mapping[str, Mapping[str, float]]
    floor: float | None = None
    floor_name: str = ""
    percent: bool = False


def colour_of(name: str, number: int = 0) -> str:
    """Return the colour of an objective, or of the ``number``-th thing with another name."""
    return COLOURS.get(name, FURTHER_COLOURS[number % len(FURTHER_COLOURS)])


def smooth(values: Sequence[float], reach: int) -> np.ndarray:
    """Return the running mean of the last ``reach`` values, of fewer at the start."""
    data = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - max(1, reach), 0)
    return np.asarray((data[ends] - data[starts]) / (ends - starts))


def draw_figure(
    path: Path,
    curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
    held_out_nats: Mapping[str, Interval],
    bars: Sequence[Bars],
    title: str,
    note: str,
) -> None:
    """Write a PNG file: three losses by step in the upper row, ``bars`` in the lower row.

    Args:
        path: The file.
        title: Title of the legend.
        note: Text below the figure.
        curves: Objective -> seeds -> lines of metrics.jsonl.
        held_out_nats: Objective -> nats per token on held-out questions, drawn behind the end of the text loss.
        bars: A fourth one widens the figure.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY}
    with matplotlib.rc_context({**style, "text.color": INK, "axes.labelcolor": INK, "font.family": "DejaVu Sans"}):
        columns = max(len(LOSSES), len(bars))
        figure = Figure(figsize=(4 * columns, 7.2), layout="constrained")
        axes = figure.subplots(2, columns)
        for panel, (name, label) in zip(axes[0], LOSSES.items(), strict=False):
            _curves(panel, curves, name, label)
        _held_out(axes[0][0], curves, held_out_nats)
        for panel, bar in zip(axes[1], bars, strict=False):
            _bars(panel, bar)
        for panel in [*axes[0][len(LOSSES) :], *axes[1][len(bars) :]]:
            panel.set_axis_off()
        handles = [Line2D([], [], color=COLOURS[name], linewidth=2.5, label=NAMES[name]) for name in curves]
        figure.legend(
            handles=handles,
            loc="outside upper center",
            ncols=len(handles),
            frameon=False,
            title=title,
            title_fontsize=12,
        )
        figure.supxlabel(note, fontsize=8, color=GREY)
        content = io.BytesIO()
        figure.savefig(content, dpi=130, format="png")
    write_bytes(path, content.getvalue())


def _curves(panel: Any, curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], name: str, label: str) -> None:
    """Draw the loss of the first seed as a thin line and the running mean of each seed as a thick one."""
    for number, (objective, seeds) in enumerate(curves.items()):
        for seed, lines in enumerate(seeds):
            steps = [line["step"] for line in lines if name in line]
            values = [line[name] for line in lines if name in line]
            if not values:
                continue
            reach = max(1, round(SMOOTHED * len(values)))
            if seed == 0:
                panel.plot(steps, values, color=COLOURS[objective], linewidth=0.5, alpha=0.25)
            # Image and action losses nearly coincide: dashes of different phase show all of them.
            dashes = {} if name.startswith("text") else {"linestyle": (4 * number, (6, 4))}
            panel.plot(steps, smooth(values, reach), color=COLOURS[objective], linewidth=2, alpha=0.95, **dashes)
    panel.set_title(label, loc="left", fontsize=10, fontweight="bold")
    panel.set_xlabel("optimizer step")
    panel.set_yscale("log")
    panel.grid(axis="y", which="major", color="#e6e6e6", linewidth=0.7)
    panel.set_axisbelow(True)
    _plain_log_axis(panel)


def _plain_log_axis(panel: Any) -> None:
    """Label a logarithmic axis with plain numbers, not powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panel.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def _held_out(
    panel: Any, curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], nats: Mapping[str, Interval]
) -> None:
    """Draw held-out results as points with intervals, behind the end of the curves."""
    last = max((line["step"] for seeds in curves.values() for lines in seeds for line in lines), default=1)
    for number, (name, interval) in enumerate(nats.items()):
        at = last * (1.05 + 0.04 * number)
        panel.plot([at, at], [interval.low, interval.high], color=COLOURS[name], linewidth=1.5)
        panel.plot([at], [interval.point], marker="o", markersize=6, color=COLOURS[name], markeredgecolor="white")
    panel.annotate("held out", (last * 1.02, panel.get_ylim()[1]), fontsize=8, color=GREY, va="top")


def _bars(panel: Any, bar: Bars) -> None:
    scale = 100 if bar.percent else 1
    names = list(bar.values)
    for number, name in enumerate(names):
        interval = bar.values[name]
        panel.bar(number, scale * interval.point, 0.62, color=COLOURS[name])
        if interval.high > interval.low:
            panel.plot([number, number], [scale * interval.low, scale * interval.high], color=INK, linewidth=1.2)
        text = f"{scale * interval.point:.0f}" if bar.percent else f"{interval.point:.3g}"
        above = (number, scale * interval.high)
        panel.annotate(text, above, xytext=(0, 3), textcoords="offset points", ha="center", fontsize=9)
    for place, (what, values) in enumerate(bar.baselines.items()):
        at = [number + 0.13 * (2 * place - len(bar.baselines) + 1) for number in range(len(names))]
        heights = [scale * values[name] for name in names]
        panel.plot(at, heights, "vs"[place % 2], color="white", markeredgecolor=INK, markersize=7, label=what)
    if bar.floor is not None:
        panel.axhline(scale * bar.floor, color=INK, linestyle=(0, (3, 2)), linewidth=1.1, label=bar.floor_name)
    entries = len(bar.baselines) + (bar.floor is not None)
    if entries:
        panel.legend(frameon=False, fontsize=8, loc="upper center", ncols=entries, columnspacing=1.2, handletextpad=0.4)
    panel.set_xticks(range(len(names)), names)
    panel.set_title(bar.title, loc="left", fontsize=10, fontweight="bold")
    top = max([bar.floor or 0.0, *(interval.high for interval in bar.values.values())])
    panel.set_ylim(0, 118 if bar.percent else top * (1.25 if entries else 1.12))
    if bar.percent:
        panel.set_yticks(range(0, 101, 20))
    panel.grid(axis="y", color="#e6e6e6", linewidth=0.7)
    panel.set_axisbelow(True)

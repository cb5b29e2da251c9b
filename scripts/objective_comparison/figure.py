"""Draw a comparison in one figure: training curves of the three losses, and held-out results."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from policy_rollout.intervals import Interval

COLORS = {"ar": "#0072B2", "mdm": "#D55E00", "bd": "#009E73"}
"""Distinguishable for color-blind readers."""
NAMES = {"ar": "ar  autoregressive", "mdm": "mdm  masked diffusion", "bd": "bd  block diffusion"}
GREY, INK = "#8a8a8a", "#222222"
SMOOTHING = 0.06
"""Window of a curve's running mean, as a fraction of the steps."""
LOSSES = {
    "text/nats_per_token": "text: nats per answer token",
    "image/loss": "image loss",
    "action/loss": "action loss",
}


@dataclass(frozen=True)
class Bars:
    """One metric of every objective. ``baselines``: name -> the metric without the right image, drawn as marks."""

    title: str
    values: Mapping[str, Interval]
    baselines: Mapping[str, Mapping[str, float]]
    floor: float | None = None
    floor_name: str = ""
    percent: bool = False


def smooth(values: Sequence[float], reach: int) -> np.ndarray:
    """Return the mean of the last ``reach`` values at every step, of fewer at the start."""
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
    """Write the figure: three losses by step in the upper row, ``bars`` in the lower one.

    ``curves``: objective -> seeds -> lines of metrics.jsonl.
    """
    import matplotlib

    matplotlib.use("Agg")  # no display
    import matplotlib.pyplot as plt

    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY}
    with plt.rc_context({**style, "text.color": INK, "axes.labelcolor": INK, "font.family": "DejaVu Sans"}):
        columns = max(len(LOSSES), len(bars))
        figure, axes = plt.subplots(2, columns, figsize=(4 * columns, 7.2), layout="constrained")
        for panel, (name, label) in zip(axes[0], LOSSES.items(), strict=False):
            _curves(panel, curves, name, label)
        _held_out(axes[0][0], curves, held_out_nats)
        for panel, bar in zip(axes[1], bars, strict=False):
            _bars(panel, bar)
        for panel in [*axes[0][len(LOSSES) :], *axes[1][len(bars) :]]:
            panel.set_axis_off()
        handles = [plt.Line2D([], [], color=COLORS[name], linewidth=2.5, label=NAMES[name]) for name in curves]
        figure.legend(
            handles=handles,
            loc="outside upper center",
            ncols=len(handles),
            frameon=False,
            title=title,
            title_fontsize=12,
        )
        figure.supxlabel(note, fontsize=8, color=GREY)
        temporary = path.with_name(path.name + ".tmp")
        figure.savefig(temporary, dpi=130, format="png")
        plt.close(figure)
    os.replace(temporary, path)


def _curves(panel: Any, curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], name: str, label: str) -> None:
    """Draw the first seed's loss of each step as a thin line and each seed's running mean as a thick one."""
    for number, (objective, seeds) in enumerate(curves.items()):
        for seed, lines in enumerate(seeds):
            steps = [line["step"] for line in lines if name in line]
            values = [line[name] for line in lines if name in line]
            if not values:
                continue
            reach = max(1, round(SMOOTHING * len(values)))
            if seed == 0:
                panel.plot(steps, values, color=COLORS[objective], linewidth=0.5, alpha=0.25)
            # Image and action losses nearly coincide: dashes of different phases keep all of them visible.
            dashes = {} if name.startswith("text") else {"linestyle": (4 * number, (6, 4))}
            panel.plot(steps, smooth(values, reach), color=COLORS[objective], linewidth=2, alpha=0.95, **dashes)
    panel.set_title(label, loc="left", fontsize=10, fontweight="bold")
    panel.set_xlabel("optimizer step")
    panel.set_yscale("log")
    panel.grid(axis="y", which="major", color="#e6e6e6", linewidth=0.7)
    panel.set_axisbelow(True)
    _plain_log_axis(panel)


def _plain_log_axis(panel: Any) -> None:
    """Write tick labels as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panel.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def _held_out(
    panel: Any, curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], nats: Mapping[str, Interval]
) -> None:
    """Draw held-out values as points with intervals, after the end of the curves."""
    last = max((line["step"] for seeds in curves.values() for lines in seeds for line in lines), default=1)
    for number, (name, interval) in enumerate(nats.items()):
        at = last * (1.05 + 0.04 * number)
        panel.plot([at, at], [interval.low, interval.high], color=COLORS[name], linewidth=1.5)
        panel.plot([at], [interval.point], marker="o", markersize=6, color=COLORS[name], markeredgecolor="white")
    panel.annotate("held out", (last * 1.02, panel.get_ylim()[1]), fontsize=8, color=GREY, va="top")


def _bars(panel: Any, bar: Bars) -> None:
    scale = 100 if bar.percent else 1
    names = list(bar.values)
    for number, name in enumerate(names):
        interval = bar.values[name]
        panel.bar(number, scale * interval.point, 0.62, color=COLORS[name])
        if interval.high > interval.low:
            panel.plot([number, number], [scale * interval.low, scale * interval.high], color=INK, linewidth=1.2)
        text = f"{scale * interval.point:.0f}" if bar.percent else f"{interval.point:.3g}"
        above = (number, scale * interval.high)
        panel.annotate(text, above, xytext=(0, 3), textcoords="offset points", ha="center", fontsize=9)
    for number, (what, values) in enumerate(bar.baselines.items()):
        at = [position + 0.13 * (2 * number - len(bar.baselines) + 1) for position in range(len(names))]
        heights = [scale * values[name] for name in names]
        panel.plot(at, heights, "vs"[number % 2], color="white", markeredgecolor=INK, markersize=7, label=what)
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

"""Draw the contact sheet of a data set: frames of episodes with their instructions, tasks and action histograms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpecFromSubplotSpec

from common.files import atomic_path
from common.image_grid import side_by_side
from preprocess_data.dataset_viewer.interface import EpisodeView, Source
from preprocess_data.dataset_viewer.stats import Facts

PAPER, INK, FAINT, GRID = "#fbfaf7", "#22252a", "#7c8087", "#dedbd3"
HUES = ("#c8553d", "#4f8a5b", "#3f6fa8")  # x y z, and roll pitch yaw; the gripper has INK
STRIPS, MOMENTS = 8, 6
TASK_BARS = 18


def draw_sheet(source: Source, facts: Facts, path: Path) -> None:
    """Write the contact sheet as PNG, completely or not at all."""
    views = [view for view in map(source.episode, select_varied(source, STRIPS)) if view.cameras]
    rows = -(-len(views) // 2)
    heights = [1.0, 1.62 * rows, 4.6 if facts.action_names else 3.6]  # inches
    total = sum(heights) + 1.3
    figure = Figure(figsize=(16, total), dpi=100, facecolor=PAPER)
    FigureCanvasAgg(figure)
    margins = {"left": 0.035, "right": 0.97, "top": 1 - 0.2 / total, "bottom": 0.6 / total, "hspace": 1.1 / total}
    grid = figure.add_gridspec(3, 1, height_ratios=heights, **margins)
    _heading(figure.add_subplot(grid[0]), facts)
    _strips(figure, grid[1], views, MOMENTS if source.rate else 1)
    charts = GridSpecFromSubplotSpec(1, 3, grid[2], width_ratios=[0.45, 0.7, 2], wspace=0.1)
    _tasks(figure, charts[1], facts)
    if facts.action_names:
        _actions(figure, charts[2], facts)
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", facecolor=PAPER, metadata={"Software": None})


def _heading(axes: Any, facts: Facts) -> None:
    axes.axis("off")
    axes.text(0, 0.88, Path(facts.path).name, fontsize=22, color=INK, weight="bold", va="center")
    axes.text(0, 0.4, f"{facts.kind}   ·   {facts.path}", fontsize=10.5, color=FAINT, va="center")
    for column, (label, value) in enumerate(reversed(facts.figures())):
        x = 1 - 0.105 * column
        axes.text(x, 0.88, value, fontsize=18, color=INK, ha="right", va="center")
        axes.text(x, 0.4, label, fontsize=10.5, color=FAINT, ha="right", va="center")
    axes.set_xlim(0, 1), axes.set_ylim(0, 1)


def select_varied(source: Source, count: int) -> list[int]:
    """Return episodes from all over the data set, of as many tasks as possible, in order."""
    labels = list(source.labels())
    if len(labels) <= count:
        return list(range(len(labels)))
    by_task: dict[str, list[int]] = {}
    for number, label in enumerate(labels):
        by_task.setdefault(label.task or label.instruction, []).append(number)
    groups = sorted(by_task.values(), key=len, reverse=True)
    chosen: list[int] = []
    for lap in range(count):
        for index, numbers in enumerate(groups):
            if lap < len(numbers) and len(chosen) < count:
                # Steps of the golden ratio, so that tasks are not all shown from their first episodes.
                start = int(((index * 0.618034 + lap * 0.381966) % 1) * len(numbers))
                chosen.append(next(n for n in [*numbers[start:], *numbers] if n not in chosen))
    return sorted(chosen)


def moments(length: int, count: int) -> list[int]:
    """Return at most ``count`` evenly spaced frames of an episode, the first and the last included."""
    return sorted(set(np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist()))


def strip(view: EpisodeView, count: int, height: int = 150) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the first camera at ``count`` moments followed by the other cameras at the last moment, as one image."""
    times = moments(view.length, count)
    images = [view.image(view.cameras[0], moment) for moment in times]
    images += [view.image(camera, view.length - 1) for camera in view.cameras[1:]]
    return side_by_side(images, height, gap=3)


def _strips(figure: Figure, area: Any, views: list[EpisodeView], count: int) -> None:
    grid = GridSpecFromSubplotSpec(max(-(-len(views) // 2), 1), 2, area, wspace=0.03, hspace=0.45)
    for cell, view in enumerate(views):
        axes = figure.add_subplot(grid[cell // 2, cell % 2])
        axes.axis("off")
        axes.imshow(strip(view, count), interpolation="lanczos")
        axes.set_anchor("NW")
        box = grid[cell // 2, cell % 2].get_position(figure)
        line = 0.19 / figure.get_figheight()
        figure.text(box.x0, box.y1 + line, _short(view.title, 74), fontsize=12, color=INK, va="bottom")
        figure.text(box.x0, box.y1 + line / 4, _short(view.note, 110), fontsize=8.5, color=FAINT, va="bottom")


def _tasks(figure: Figure, area: Any, facts: Facts) -> None:
    axes = figure.add_subplot(area)
    counts = facts.tasks if len(facts.tasks) > 1 else facts.instructions
    bars = counts.most_common(TASK_BARS)[::-1]
    names = [_short(name or "(empty)", 34) for name, _ in bars]
    axes.barh(range(len(bars)), [count for _, count in bars], color=HUES[2], height=0.66)
    axes.set_yticks(range(len(bars)), names, fontsize=9, color=INK)
    for row, (_, count) in enumerate(bars):
        axes.text(count, row, f" {count:,}", va="center", fontsize=8.5, color=FAINT)
    hidden = len(counts) - len(bars)
    unit = "task" if counts is facts.tasks else "sentence"
    more = f" ({hidden} more {unit}s)" if hidden else ""
    axes.set_title(f"Episodes by {unit}{more}", fontsize=12, color=INK, loc="left")
    axes.margins(x=0.12)
    _style_axes(axes)
    axes.set_xticks([])
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0)


def _actions(figure: Figure, area: Any, facts: Facts) -> None:
    columns = 4
    rows = -(-(len(facts.action_names) + 1) // columns)
    grid = GridSpecFromSubplotSpec(rows, columns, area, wspace=0.12, hspace=0.42)
    centres = (facts.edges[1:] + facts.edges[:-1]) / 2
    for axis, name in enumerate(facts.action_names):
        axes = figure.add_subplot(grid[axis // columns, axis % columns])
        colour = HUES[axis % 3] if axis < 6 else INK
        share = facts.histogram[axis] / max(facts.histogram[axis].sum(), 1)
        axes.bar(centres, np.sqrt(share), width=centres[1] - centres[0], color=colour, linewidth=0)
        outside = f", {facts.outside[axis]:,} outside" if facts.outside[axis] else ""
        title = f"{name}   mean {facts.mean[axis]:+.2f} ± {facts.deviation[axis]:.2f}{outside}"
        axes.set_title(title, fontsize=9.5, color=INK, loc="left")
        axes.set_xticks([-1, 0, 1])
        axes.set_yticks([])
        _style_axes(axes)
    axes = figure.add_subplot(grid[-1, -1])
    axes.hist(facts.lengths, bins=min(30, max(int(np.ptp(facts.lengths)), 1)), color=FAINT)
    axes.set_title("frames in an episode", fontsize=9.5, color=INK, loc="left")
    axes.set_yticks([])
    _style_axes(axes)
    box = area.get_position(figure)
    note = f"actions of {facts.actions_of}; bar heights are square roots of fractions"
    figure.text(box.x0, box.y0 - 0.022, note, fontsize=9, color=FAINT, va="top")


def _style_axes(axes: Any) -> None:
    axes.set_facecolor(PAPER)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=FAINT, labelsize=8, length=3)


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"

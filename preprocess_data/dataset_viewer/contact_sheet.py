"""An image sheet of a data set: episodes as strips of moments, what is said and done, how actions are spread."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpecFromSubplotSpec

from common.image_grid import side_by_side
from preprocess_data.dataset_viewer.interface import EpisodeView, Source
from preprocess_data.dataset_viewer.stats import Facts

PAPER, INK, FAINT, GRID = "#fbfaf7", "#22252a", "#7c8087", "#dedbd3"
HUES = ("#c8553d", "#4f8a5b", "#3f6fa8")  # x y z, and roll pitch yaw; the gripper is INK
STRIPS, MOMENTS = 8, 6
NAMED = 18  # tasks in the chart


def draw_sheet(source: Source, facts: Facts, path: Path) -> None:
    """Write the sheet as a PNG, complete or not at all."""
    views = [view for view in map(source.episode, varied(source, STRIPS)) if view.cameras]
    rows = -(-len(views) // 2)
    heights = [1.0, 1.62 * rows, 4.6 if facts.action_names else 3.6]  # inches
    tall = sum(heights) + 1.3
    figure = Figure(figsize=(16, tall), dpi=100, facecolor=PAPER)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        3,
        1,
        height_ratios=heights,
        left=0.035,
        right=0.97,
        top=1 - 0.2 / tall,
        bottom=0.6 / tall,
        hspace=0.5 / tall * 2.2,
    )
    _heading(figure.add_subplot(grid[0]), facts)
    _strips(figure, grid[1], views, MOMENTS if source.rate else 1)
    charts = GridSpecFromSubplotSpec(1, 3, grid[2], width_ratios=[0.45, 0.7, 2], wspace=0.1)
    _tasks(figure, charts[1], facts)
    if facts.action_names:
        _actions(figure, charts[2], facts)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(partial, format="png", facecolor=PAPER, metadata={"Software": None})
    os.replace(partial, path)


def _heading(axes: Any, facts: Facts) -> None:
    axes.axis("off")
    axes.text(0, 0.88, Path(facts.path).name, fontsize=22, color=INK, weight="bold", va="center")
    axes.text(0, 0.4, f"{facts.kind}   ·   {facts.path}", fontsize=10.5, color=FAINT, va="center")
    for place, (what, much) in enumerate(reversed(facts.figures())):
        x = 1 - 0.105 * place
        axes.text(x, 0.88, much, fontsize=18, color=INK, ha="right", va="center")
        axes.text(x, 0.4, what, fontsize=10.5, color=FAINT, ha="right", va="center")
    axes.set_xlim(0, 1), axes.set_ylim(0, 1)


def varied(source: Source, count: int) -> list[int]:
    """Episodes from all over the data set, of as many tasks as can be, in order."""
    labels = list(source.labels())
    if len(labels) <= count:
        return list(range(len(labels)))
    by_task: dict[str, list[int]] = {}
    for number, label in enumerate(labels):
        by_task.setdefault(label.task or label.instruction, []).append(number)
    turn = Counter({task: len(numbers) for task, numbers in by_task.items()})
    tasks = [task for task, _ in turn.most_common()]
    chosen: list[int] = []
    for lap in range(count):
        for place, task in enumerate(tasks):
            numbers = by_task[task]
            if lap < len(numbers) and len(chosen) < count:
                # Not every task from its beginning: a step of the golden ratio spreads them.
                at = int(((place * 0.618034 + lap * 0.381966) % 1) * len(numbers))
                chosen.append(next(n for n in [*numbers[at:], *numbers] if n not in chosen))
    return sorted(chosen)


def moments(length: int, count: int) -> list[int]:
    """At most ``count`` moments of an episode, its first and last among them."""
    return sorted(set(np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist()))


def strip(view: EpisodeView, count: int, height: int = 150) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The first camera at ``count`` moments, then the other cameras at the last one."""
    times = moments(view.length, count)
    images = [view.image(view.cameras[0], moment) for moment in times]
    images += [view.image(camera, view.length - 1) for camera in view.cameras[1:]]
    return side_by_side(images, height, gap=3)


def _strips(figure: Figure, place: Any, views: list[EpisodeView], count: int) -> None:
    grid = GridSpecFromSubplotSpec(max(-(-len(views) // 2), 1), 2, place, wspace=0.03, hspace=0.45)
    for cell, view in enumerate(views):
        axes = figure.add_subplot(grid[cell // 2, cell % 2])
        axes.axis("off")
        axes.imshow(strip(view, count), interpolation="lanczos")
        axes.set_anchor("NW")
        where = grid[cell // 2, cell % 2].get_position(figure)
        line = 0.19 / figure.get_figheight()
        figure.text(where.x0, where.y1 + line, _short(view.title, 74), fontsize=12, color=INK, va="bottom")
        figure.text(where.x0, where.y1 + line / 4, _short(view.note, 110), fontsize=8.5, color=FAINT, va="bottom")


def _tasks(figure: Figure, place: Any, facts: Facts) -> None:
    axes = figure.add_subplot(place)
    counts = facts.tasks if len(facts.tasks) > 1 else facts.instructions
    named = counts.most_common(NAMED)[::-1]
    names = [_short(name or "(empty)", 34) for name, _ in named]
    axes.barh(range(len(named)), [count for _, count in named], color=HUES[2], height=0.66)
    axes.set_yticks(range(len(named)), names, fontsize=9, color=INK)
    for row, (_, count) in enumerate(named):
        axes.text(count, row, f" {count:,}", va="center", fontsize=8.5, color=FAINT)
    rest = len(counts) - len(named)
    of = "tasks" if counts is facts.tasks else "sentences"
    axes.set_title(
        f"Episodes by {of[:-1]}" + (f" ({rest} more {of})" if rest else ""), fontsize=12, color=INK, loc="left"
    )
    axes.margins(x=0.12)
    _quiet(axes)
    axes.set_xticks([])
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0)


def _actions(figure: Figure, place: Any, facts: Facts) -> None:
    columns = 4
    rows = -(-(len(facts.action_names) + 1) // columns)
    grid = GridSpecFromSubplotSpec(rows, columns, place, wspace=0.12, hspace=0.42)
    centres = (facts.edges[1:] + facts.edges[:-1]) / 2
    for axis, name in enumerate(facts.action_names):
        axes = figure.add_subplot(grid[axis // columns, axis % columns])
        colour = HUES[axis % 3] if axis < 6 else INK
        share = facts.histogram[axis] / max(facts.histogram[axis].sum(), 1)
        axes.bar(centres, np.sqrt(share), width=centres[1] - centres[0], color=colour, linewidth=0)
        outside = f", {facts.outside[axis]:,} outside" if facts.outside[axis] else ""
        axes.set_title(f"{name}   mean {facts.mean[axis]:+.2f} ± {facts.deviation[axis]:.2f}{outside}",
                       fontsize=9.5, color=INK, loc="left")  # fmt: skip
        axes.set_xticks([-1, 0, 1])
        axes.set_yticks([])
        _quiet(axes)
    axes = figure.add_subplot(grid[-1, -1])
    axes.hist(facts.lengths, bins=min(30, max(int(np.ptp(facts.lengths)), 1)), color=FAINT)
    axes.set_title("frames in an episode", fontsize=9.5, color=INK, loc="left")
    axes.set_yticks([])
    _quiet(axes)
    where = place.get_position(figure)
    figure.text(
        where.x0, where.y0 - 0.022, f"actions of {facts.actions_of}; bar heights are square roots of shares",
        fontsize=9, color=FAINT, va="top",
    )  # fmt: skip


def _quiet(axes: Any) -> None:
    axes.set_facecolor(PAPER)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=FAINT, labelsize=8, length=3)


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"

"""Write the HTML page of a data set from dataset.html.j2: counts, action distributions, and episodes to play."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.command import progress_bar
from common.files import write_text
from common.html import render
from common.html.figures import COLOURS, new_figure, svg
from common.image_grid import image_url, resize_to_height
from preprocess_data.dataset_viewer.contact_sheet import moments
from preprocess_data.dataset_viewer.interface import EpisodeView, Source
from preprocess_data.dataset_viewer.stats import Facts

TEMPLATE = Path(__file__).with_name("dataset.html.j2")
HEIGHT, OTHER_HEIGHT = 220, 130  # pixels: images of the first camera, and of the others
CONVERSATION_HEIGHT = 300
JPEG_QUALITY = 82
THUMBNAILS = 8  # in the strip below an episode
CURVE_WIDTH, LANE, LANE_GAP = 640, 62, 14  # of the charts of actions, in SVG units
LANE_CURVES = 3  # position, rotation, and the rest


def write_page(
    source: Source, facts: Facts, numbers: Sequence[int], cells: int, path: Path, progress: bool
) -> list[str]:
    """Write the page and return an error message for each episode that could not be read.

    ``numbers``: the episodes to show; ``cells``: number of moments of each.
    """
    errors: list[str] = []
    cards: list[dict[str, Any]] = []
    for number in progress_bar(numbers, desc="episodes", unit="episode", disable=not progress):
        try:
            cards.append(_card(source, source.episode(number), cells))
        except (ValueError, FileNotFoundError) as error:
            errors.append(str(error))
            cards.append({"number": number, "error": str(error)})
    page = render(
        TEMPLATE,
        title=Path(facts.path).name or facts.path,
        facts=facts,
        counts=_counts(facts),
        distributions=_distributions(facts),
        heading=f"{len(numbers)} of {facts.episodes:,} {'episodes' if source.rate else 'records'}",
        conversations=not source.rate,
        rate=source.rate,
        cards=cards,
        legend=_legend(source.action_names),
    )
    write_text(path, page)
    return errors


# --- the whole data set ----------------------------------------------------------------------------------------------


def _counts(facts: Facts) -> list[tuple[str, list[tuple[str, int, float]]]]:
    """Return (title, bars) of the two tables of counts; a bar is (name, count, percent of the largest count)."""
    if facts.rate:
        tables = {"Tasks": facts.tasks, "Sentences": facts.instructions}
    else:
        tables = {"First questions": facts.instructions, "Folders": facts.tasks}
    return [(title, _bars(counts)) for title, counts in tables.items()]


def _bars(counts: Counter[str]) -> list[tuple[str, int, float]]:
    most = max(counts.values())
    return [(name or "(empty)", count, 100 * count / most) for name, count in counts.most_common()]


def _distributions(facts: Facts) -> list[tuple[str, str, str, tuple[str, ...]]]:
    """Return (name, note, SVG, labels below) of each dimension of the actions, and of the lengths of the episodes."""
    if not facts.action_names:
        return []
    charts: list[tuple[str, str, str, tuple[str, ...]]] = []
    for axis, name in enumerate(facts.action_names):
        outside = f" · {facts.outside[axis]:,} outside" if facts.outside[axis] else ""
        note = f"{facts.mean[axis]:+.2f} ± {facts.deviation[axis]:.2f}{outside}"
        charts.append((name, note, _histogram(facts.histogram[axis], _colour(axis), name), ("−1", "0", "1")))
    low, high = int(facts.lengths.min()), int(facts.lengths.max())
    counts = np.histogram(facts.lengths, bins=min(41, high - low + 1), range=(low - 0.5, high + 0.5))[0]
    drawing = _histogram(counts.astype(np.int64), "c4", "frames")
    return [*charts, ("frames", f"median {int(np.median(facts.lengths))}", drawing, (str(low), str(high)))]


def _histogram(counts: npt.NDArray[np.int64], colour: str, label: str) -> str:
    """Return bars whose heights are square roots of the counts, so that rare values are visible."""
    figure = new_figure(6 * len(counts), 58)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, len(counts)), ylim=(-0.03, 1))
    heights = np.sqrt(counts / max(int(counts.max()), 1))
    filled = np.flatnonzero(counts)
    axes.bar(filled, heights[filled], 5 / 6, align="edge", color=COLOURS[colour])
    axes.axhline(-0.015, color=COLOURS["line"], linewidth=1)
    return svg(figure, label, stretch=True)


# --- an episode ------------------------------------------------------------------------------------------------------


def _card(source: Source, view: EpisodeView, cells: int) -> dict[str, Any]:
    if view.turns:
        image = None
        if view.cameras:
            image = image_url(resize_to_height(view.image(view.cameras[0], 0), CONVERSATION_HEIGHT), JPEG_QUALITY)
        turns = [("asks" if speaker == "human" else "answers", text) for speaker, text in view.turns]
        return {"view": view, "image": image, "turns": turns}
    times = moments(view.length, cells)
    films = [_film(view, camera, times, OTHER_HEIGHT if row else HEIGHT) for row, camera in enumerate(view.cameras)]
    return {
        "view": view,
        "times": times,
        "films": films,
        "strip": moments(len(times), THUMBNAILS) if films else [],
        "curves": None if view.actions is None else _curves(view.actions, source.action_names),
    }


def _film(view: EpisodeView, camera: str, times: Sequence[int], height: int) -> dict[str, str]:
    """Return all moments of a camera as one image, of which the page shows one cell at a time."""
    images = [resize_to_height(view.image(camera, time), height) for time in times]
    shape = images[0].shape
    data = image_url(np.concatenate(images, axis=1), JPEG_QUALITY)
    return {"data": data, "aspect": f"{shape[1]}/{shape[0]}", "label": f"{camera} of {view.title}"}


def _colour(axis: int) -> str:
    """Return the colour of a dimension of the action: those of position and rotation repeat."""
    return f"c{axis % 3}" if axis < 6 else "c3"


def _legend(names: Sequence[str]) -> list[list[tuple[str, str]]]:
    """Return (colour, name) of each curve, by lanes."""
    entries = [(_colour(axis), name) for axis, name in enumerate(names)]
    return [entries[start : start + LANE_CURVES] for start in range(0, len(entries), LANE_CURVES)]


def _curves(actions: npt.NDArray[np.float32], names: Sequence[str]) -> str:
    """Return the actions [n, A] of an episode over time as SVG, ``LANE_CURVES`` dimensions in a lane."""
    count, size = actions.shape
    starts = range(0, size, LANE_CURVES)
    figure = new_figure(CURVE_WIDTH, len(starts) * (LANE + LANE_GAP))
    tooltips = []
    for lane, start in enumerate(starts):
        dimensions = range(start, min(start + LANE_CURVES, size))
        bottom = 1 - (lane + 1 - LANE_GAP / 2 / (LANE + LANE_GAP)) / len(starts)
        axes = figure.add_axes((0, bottom, 1, LANE / (LANE + LANE_GAP) / len(starts)))
        axes.set_axis_off()
        limit = max(1.0, float(np.abs(actions[:, start : start + LANE_CURVES]).max()))
        axes.set(xlim=(0, max(count - 1, 1)), ylim=(-limit, limit))
        axes.axhline(0, color=COLOURS["line"], linewidth=1)
        # A lane of one dimension is a gripper, whose command holds until the next moment.
        single = len(dimensions) == 1
        for axis in dimensions:
            values = actions[:, axis] if count > 1 else actions[:, axis].repeat(2)
            colour = COLOURS["c3" if single else f"c{axis - start}"]
            (line,) = axes.plot(values, color=colour, linewidth=1.7, solid_joinstyle="round")
            line.set_drawstyle("steps-post" if single else "default")
            tooltips.append((line, names[axis] if axis < len(names) else f"dimension {axis}"))
    return svg(figure, "actions over time", tooltips, stretch=True)

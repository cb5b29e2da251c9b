"""Closed-loop evaluations as one HTML page: tables and charts with intervals, videos, settings; see report.html.j2."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from matplotlib.figure import Figure

from common.files import read_object
from common.html import data_url, render
from common.html.figures import COLOURS, new_figure, svg
from common.image_grid import FrameErrors, mean_errors
from common.statistics import Interval, wilson
from policy_rollout.closed_loop.interface import ChainRecord
from policy_rollout.reports.comparison import Comparison, Side, TaskRow, task_difference, verdict
from policy_rollout.reports.results import (
    FIGURES,
    Results,
    attempts,
    average_length,
    dotted,
    success_rates,
    task_counts,
)

TEMPLATE = Path(__file__).with_name("report.html.j2")
VIDEOS, FRAMES = "videos", "input_predict_truth"
MEDIA_TYPES = {".gif": "image/gif", ".png": "image/png", ".mp4": "video/mp4"}
MIN_CHAINS = 20
"""Fewer chains have no charts: the intervals would fill them."""
WIDTH, HEIGHT = 520, 250  # of a chart, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 14, 40  # its margins
SERIES_GAP = 9.0  # SVG units between the points of several series at one place


@dataclass(frozen=True)
class Column:
    """One run. ``name``: of its side, with a number if the side has several runs; ``records``: chain index -> chain."""

    name: str
    run: Results
    records: Mapping[int, ChainRecord]


def render_report(sides: Sequence[Side], comparison: Comparison | None, page: Path, megabytes: float) -> str:
    """Return the page of one evaluation, or of several and their comparison.

    Args:
        sides: The evaluations; each has a colour and a column.
        comparison: The differences between several sides.
        page: The file that the page will be written to. Links to media that are not embedded are relative to it.
        megabytes: Size limit of embedded videos and images.
    """
    columns = [
        Column(f"{side.name} {i + 1}" if len(side.runs) > 1 else side.name, run, {c.index: c for c in run.chains})
        for side in sides
        for i, run in enumerate(side.runs)
    ]
    videos, frames = _media_files(columns, VIDEOS, (".gif", ".mp4")), _media_files(columns, FRAMES, (".png",))
    length = columns[0].run.length
    fractions = [f"{i}/{length}" for i in range(1, length + 1)]
    rates = {side.name: success_rates(side.runs) for side in sides}
    different, same = _settings([column.run for column in columns])
    return render(
        TEMPLATE,
        environments=list(dict.fromkeys(column.run.environment for column in columns)),
        names=[side.name for side in sides],
        columns=columns,
        fractions=fractions,
        difference_names=[f"{sides[0].name} − {side.name}, points" for side in sides[1:]],
        answers=[*map(verdict, comparison.lengths), *comparison.notes] if comparison else [],
        means={side.name: average_length(side.runs) for side in sides},
        rates=rates,
        comparison=comparison,
        charts=_charts(sides, rates, fractions),
        min_chains=MIN_CHAINS,
        tasks=_tasks(sides),
        linked=_embed([*videos, *frames], page, megabytes),
        videos=videos,
        frames=frames,
        frame_errors=_mean_errors(columns, frames),
        different=different,
        same=same,
        all_alike=any(len(set(column.run.completed())) == 1 for column in columns),
    )


def _tasks(sides: Sequence[Side]) -> list[dict[str, Any]]:
    """Return a row for each attempted task, those with the highest pooled success rate first."""
    counts = [task_counts(side.runs) for side in sides]
    steps: dict[str, list[int]] = {}
    for task, done, taken in _attempts(sides[0]):
        if done:
            steps.setdefault(task, []).append(taken)
    rows = []
    for task in sorted({task for of_side in counts for task in of_side}):
        row = TaskRow(task, tuple(of_side.get(task, (0, 0)) for of_side in counts))
        done, tried = (sum(numbers) for numbers in zip(*row.counts, strict=True))
        rows.append(
            {
                "task": task,
                "rates": [(wilson(*count), count[1]) for count in row.counts],
                "differences": [task_difference(row, 0, other) for other in range(1, len(sides))],
                "steps": f"{np.mean(steps[task]):.0f}" if task in steps else "–",
                "pooled": done / max(tried, 1),
            }
        )
    return sorted(rows, key=lambda row: -row["pooled"])


def _attempts(side: Side) -> Iterator[tuple[str, bool, int]]:
    return (attempt for run in side.runs for chain in run.chains for attempt in attempts(chain))


def _settings(runs: Sequence[Results]) -> tuple[list[list[str]], list[list[str]]]:
    """Return the settings that differ as rows of a name and a value for each run, and those that are the same."""
    found = [_provenance(run) for run in runs]
    rows = [
        [key, *(of_run.get(key, "–") for of_run in found)] for key in dict.fromkeys(k for run in found for k in run)
    ]
    return [row for row in rows if len(set(row[1:])) > 1], [row for row in rows if len(set(row[1:])) == 1]


def _provenance(run: Results) -> dict[str, str]:
    """Return the settings, and everything else in the file except results: dotted name -> value."""
    found: dict[str, str] = {}
    for name, value in run.content.items():
        if name in FIGURES:
            continue
        for key, leaf in (dotted(value) if isinstance(value, Mapping) else {"": value}).items():
            label = key if name == "settings" else f"{name}.{key}" if key else name
            found[label] = "–" if leaf is None else str(leaf)
    return found


# --- videos and images -----------------------------------------------------------------------------------------------


def _media_files(columns: Sequence[Column], folder: str, suffixes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the videos or images of all runs, chain by chain, so that a page whose limit is reached has complete
    pairs. The first number in a file's name is the chain. A leading dot marks a file that is still being written."""
    found = []
    for column in columns:
        for file in sorted((column.run.folder / folder).glob("*")):
            if file.suffix.lower() in suffixes and not file.name.startswith(".") and file.is_file():
                number = re.search(r"\d+", file.stem)
                record = column.records.get(int(number.group())) if number else None
                title = file.stem.replace("_", " ")
                found.append(
                    {
                        "file": file,
                        "name": column.name,
                        "chain": int(number.group()) if number else math.inf,
                        "record": record,
                        "title": title,
                        "outcome": f"{record.completed} of {len(record.tasks)}" if record else title,
                    }
                )
    return sorted(found, key=lambda medium: medium["chain"])


def _read_errors(image: Path) -> list[FrameErrors]:
    """Return the errors of the predictions in an image; none for images of earlier versions."""
    file = image.with_suffix(".json")
    if not file.is_file():
        return []
    return [FrameErrors(row["predicted"], row["present"]) for row in read_object(file)["errors"]]


def _mean_errors(columns: Sequence[Column], frames: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line with the mean errors of the shown predictions for each run that has them."""
    found = []
    for column in columns:
        errors = [error for frame in frames if frame["name"] == column.name for error in _read_errors(frame["file"])]
        if errors:
            run = f"{column.name}, " if len(columns) > 1 else ""
            found.append(f"{run}{len(errors)} frames of the static camera: {mean_errors(errors)}.")
    return found


def _embed(media: Sequence[dict[str, Any]], page: Path, megabytes: float) -> int:
    """Add a ``data`` URL to each file while their sum is below the limit, a ``link`` to the others; return how many
    are linked."""
    left, folder = int(megabytes * 1_000_000), page.parent.resolve()
    for medium in media:
        file = medium["file"].resolve()
        if (size := file.stat().st_size) > left:
            medium["link"] = quote((file.relative_to(folder) if file.is_relative_to(folder) else file).as_posix())
        else:
            medium["type"] = MEDIA_TYPES[file.suffix.lower()]
            medium["data"] = data_url(file.read_bytes(), medium["type"])
            left -= size
    return sum("link" in medium for medium in media)


# --- charts ----------------------------------------------------------------------------------------------------------


def _charts(
    sides: Sequence[Side], rates: Mapping[str, Sequence[Interval]], fractions: Sequence[str]
) -> list[dict[str, str]]:
    """Return title, note and SVG of each chart; none for few chains, or if no task was done."""
    length, count = len(fractions), len(sides[0].runs[0].chains)
    completed = {side.name: np.concatenate([run.completed() for run in side.runs]) for side in sides}
    if count < MIN_CHAINS or not any(done.any() for done in completed.values()):
        return []
    by_place = {
        name: [wilson(int((done >= i).sum()), int((done >= i - 1).sum())) for i in range(1, length + 1)]
        for name, done in completed.items()
    }
    shares = {name: [float((done == i).mean()) for i in range(length + 1)] for name, done in completed.items()}
    tries = {side.name: [(done, steps) for _, done, steps in _attempts(side)] for side in sides}
    limit = max((steps for of_side in tries.values() for _, steps in of_side), default=1)
    numbers = [str(i) for i in range(length + 1)]
    charts = [
        {
            "title": "Chains with at least k tasks done",
            "note": "share of all chains, with 95 % intervals",
            "svg": rate_chart(rates, fractions, "chains with at least k tasks done"),
        }
    ]
    if length > 1:  # a chain of one task has no more to show
        charts += [
            {
                "title": "Success rate by position in the chain",
                "note": "of the chains that reached the position, with 95 % intervals",
                "svg": rate_chart(by_place, numbers[1:], "success rate by position in the chain"),
            },
            {
                "title": "Tasks completed per chain",
                "note": "share of all chains",
                "svg": bar_chart(shares, numbers, "tasks completed per chain", " tasks done"),
            },
        ]
    steps = {
        "title": "Control steps to success",
        "note": "share of all attempted tasks; those that were not done are the last bar",
        "svg": steps_histogram(tries, limit, "control steps to success"),
    }
    return [*charts, steps]


def _new_chart(labels: Sequence[str], top: float) -> tuple[Figure, Any]:
    """Return a figure and its axes: percent from 0 to ``top`` upwards, one unit of x for each label."""
    figure = new_figure(WIDTH, HEIGHT)
    size = ((WIDTH - LEFT - RIGHT) / WIDTH, (HEIGHT - TOP - BOTTOM) / HEIGHT)
    axes = figure.add_axes((LEFT / WIDTH, BOTTOM / HEIGHT, *size))
    axes.set(xlim=(-0.5, len(labels) - 0.5), ylim=(0, top))
    ticks = [share for share in (0, 0.25, 0.5, 0.75, 1) if share <= top] if top > 0.5 else [0, top / 2, top]
    axes.set_yticks(ticks, [f"{100 * share:.0f}%" for share in ticks])
    every = max(1, math.ceil(len(labels) / 12))  # labels that do not overlap
    places = [i for i in range(len(labels)) if i % every == 0 or i == len(labels) - 1]
    axes.set_xticks(places, [labels[i] for i in places])
    axes.tick_params(colors=COLOURS["faint"], labelsize=12, length=0, pad=8)
    axes.grid(axis="y", color=COLOURS["line"], linewidth=1)
    axes.set_axisbelow(True)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(COLOURS["faint"])
    return figure, axes


def rate_chart(series: Mapping[str, Sequence[Interval]], labels: Sequence[str], title: str) -> str:
    """Return rates with intervals at each label, joined by lines. A rate that is not a number has no point."""
    figure, axes = _new_chart(labels, top=1.0)
    tooltips = []
    for number, (name, rates) in enumerate(series.items()):
        colour = COLOURS[f"s{number}"]
        shift = SERIES_GAP * (number - (len(series) - 1) / 2) * len(labels) / (WIDTH - LEFT - RIGHT)
        known = [(i + shift, rate) for i, rate in enumerate(rates) if not math.isnan(rate.point)]
        axes.plot([x for x, _ in known], [rate.point for _, rate in known], color=colour, linewidth=2, alpha=0.55)
        for x, rate in known:
            axes.plot([x, x], [rate.low, rate.high], color=colour, linewidth=2)
            (dot,) = axes.plot(x, rate.point, "o", color=colour, markersize=8, markeredgecolor=COLOURS["card"])
            text = f"{name}: {100 * rate.point:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
            tooltips.append((dot, text))
            if len(series) == 1:
                label, style = f"{100 * rate.point:.0f}", {"fontsize": 13, "fontweight": "bold"}
                axes.annotate(label, (x, rate.point), (7, 6), "data", "offset points", color=COLOURS["ink"], **style)
    return svg(figure, title, tooltips)


def bar_chart(series: Mapping[str, Sequence[float]], labels: Sequence[str], title: str, unit: str) -> str:
    """Return shares at each label as bars, those of several series next to each other."""
    highest = max((share for shares in series.values() for share in shares), default=0.0)
    figure, axes = _new_chart(labels, top=min(1.0, math.ceil(max(highest, 0.02) * 10) / 10))
    width = min(46.0 * len(labels) / (WIDTH - LEFT - RIGHT), 0.8 / len(series))
    tooltips = []
    for number, (name, shares) in enumerate(series.items()):
        at = np.arange(len(shares)) + width * (number - (len(series) - 1) / 2)
        bars = axes.bar(at, shares, 0.96 * width, color=COLOURS[f"s{number}"], alpha=0.82)
        texts = [f"{name}, {label}{unit}: {100 * share:.1f} %" for label, share in zip(labels, shares, strict=True)]
        tooltips += list(zip(bars, texts, strict=True))
    return svg(figure, title, tooltips)


def steps_histogram(series: Mapping[str, Sequence[tuple[bool, int]]], limit: int, title: str, bins: int = 18) -> str:
    """Return the shares of attempts by control steps; attempts without success are the last bar.

    Args:
        series: Name -> (success, control steps) of each attempt.
        limit: The largest number of control steps.
    """
    width = next(width for width in (1, 2, 5, 10, 20, 25, 50, 100, limit) if width * bins >= limit)
    count = math.ceil(limit / width)
    labels = [*(str((i + 1) * width) for i in range(count)), "not done"]
    shares = {}
    for name, tries in series.items():
        of_bin = [0] * (count + 1)
        for done, steps in tries:
            of_bin[min(max(steps - 1, 0) // width, count - 1) if done else count] += 1
        shares[name] = [number / max(len(tries), 1) for number in of_bin]
    return bar_chart(shares, labels, title, " steps")

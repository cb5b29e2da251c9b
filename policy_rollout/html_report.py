"""Closed-loop evaluations as one HTML page: tables and charts with intervals, videos, settings; see report.html.j2."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from matplotlib.figure import Figure

from common.html import data_url, render
from common.html.figures import COLOURS, new_figure, svg
from common.tables import percent, points, probability
from policy_rollout.compare import Comparison, Side, TaskRow, task_difference, verdict
from policy_rollout.intervals import Interval, wilson
from policy_rollout.results import FIGURES, Results, attempts, average_length, dotted, success_rates, task_counts
from policy_rollout.seats import ChainRecord

TEMPLATE = Path(__file__).with_name("report.html.j2")
VIDEOS, FRAMES = "videos", "input_predict_truth"
MEDIA_TYPES = {".gif": "image/gif", ".png": "image/png", ".mp4": "video/mp4"}
WIDTH, HEIGHT = 520, 250  # of a chart, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 14, 40  # its margins
SERIES_GAP = 9.0  # SVG units between the points of several series at one place


def render_report(sides: Sequence[Side], comparison: Comparison | None, page: Path, megabytes: float) -> str:
    """Return the page of one evaluation, or of several and their comparison.

    Args:
        sides: The evaluations; each has a colour and a column.
        comparison: The differences between several sides.
        page: The file that the page will be written to. Links to media that are not embedded are relative to it.
        megabytes: Size limit of embedded videos and images.
    """
    runs = [run for side in sides for run in side.runs]
    media = MediaBudget(megabytes, page)
    return render(
        TEMPLATE,
        names=[side.name for side in sides],
        files=[run.file for run in runs],
        notes=[note for run in runs if (note := run.cut_note()) is not None],
        answers=[*map(verdict, comparison.lengths), *comparison.notes] if comparison else [],
        headline=_headline(sides),
        charts=_charts(sides),
        rates=_rates(sides, comparison),
        tasks=_tasks(sides),
        videos=_videos(sides, media),
        frames=_frames(sides, media),
        settings=_settings(sides),
        chains=_chains(sides),
        all_alike=any(run.completed().min() == run.completed().max() for run in runs),
        media=media,
    )


# --- numbers ---------------------------------------------------------------------------------------------------------


def _brackets(interval: Interval, scale: float, digits: int) -> str:
    return f"[{scale * interval.low:.{digits}f}, {scale * interval.high:.{digits}f}]"


def _headline(sides: Sequence[Side]) -> list[tuple[str, str, str]]:
    """Return (name, value, note) of the average lengths, and for a single side of its first and last rate."""
    numbers = []
    for side in sides:
        mean = average_length(side.runs)
        name = f"tasks per chain, {side.name}" if len(sides) > 1 else "tasks per chain"
        numbers.append((name, f"{mean.point:.2f}", _brackets(mean, 1, 2)))
    runs = sides[0].runs
    if len(sides) == 1:
        rates = success_rates(runs)
        for place in dict.fromkeys((1, len(rates))):
            rate = rates[place - 1]
            numbers.append((f"{place}/{len(rates)}", f"{100 * rate.point:.0f} %", _brackets(rate, 100, 0)))
    return [*numbers, ("chains", str(len(runs[0].chains)), f"{len(runs)} runs" if len(runs) > 1 else "")]


def _rates(sides: Sequence[Side], comparison: Comparison | None) -> dict[str, Any]:
    length = sides[0].runs[0].length
    rows = [[side.name, f"{average_length(side.runs):.2f}", *map(percent, success_rates(side.runs))] for side in sides]
    differences = [
        [
            f"{pair.first} − {pair.second}",
            f"{pair.difference.interval:+.2f}",
            *(points(of_place[number].difference.interval) for of_place in comparison.rates),
            probability(pair.difference.probability),
        ]
        for number, pair in enumerate(comparison.lengths)
    ] if comparison else []  # fmt: skip
    head = ["", "tasks per chain", *(f"{i}/{length}" for i in range(1, length + 1))]
    return {"head": head, "rows": rows, "differences": differences}


def _tasks(sides: Sequence[Side]) -> list[dict[str, Any]]:
    """Return a row for each attempted task, those with the highest pooled success rate first."""
    counts = [task_counts(side.runs) for side in sides]
    steps = _mean_steps(sides[0])
    rows = []
    for task in sorted({task for of_side in counts for task in of_side}):
        row = TaskRow(task, tuple(of_side.get(task, (0, 0)) for of_side in counts))
        rates = [wilson(*count) for count in row.counts]
        cells = [f"{percent(rate)} of {tried}" for rate, (_, tried) in zip(rates, row.counts, strict=True)]
        extra = [points(task_difference(row, 0, other)) for other in range(1, len(sides))] or [steps.get(task, "–")]
        done, tried = (sum(numbers) for numbers in zip(*row.counts, strict=True))
        known = [rate if count[1] else None for rate, count in zip(rates, row.counts, strict=True)]
        name = task.replace("_", " ")
        rows.append({"task": name, "rates": known, "cells": cells, "extra": extra, "pooled": done / max(tried, 1)})
    return sorted(rows, key=lambda row: -row["pooled"])


def _mean_steps(side: Side) -> dict[str, str]:
    """Return the mean number of control steps of each task's successes."""
    steps: dict[str, list[int]] = {}
    for task, done, taken in _attempts(side):
        if done:
            steps.setdefault(task, []).append(taken)
    return {task: f"{np.mean(taken):.0f}" for task, taken in steps.items()}


def _attempts(side: Side) -> Iterator[tuple[str, bool, int]]:
    return (attempt for run in side.runs for chain in run.chains for attempt in attempts(chain))


def _settings(sides: Sequence[Side]) -> dict[str, Any]:
    """Return the settings of every run: those that differ with a column for each run, and those that are the same."""
    columns = [_provenance(run) for side in sides for run in side.runs]
    keys = dict.fromkeys(key for column in columns for key in column)
    rows = [[key, *(column.get(key, "–") for column in columns)] for key in keys]
    names = [
        side.name if len(side.runs) == 1 else f"{side.name} {i + 1}" for side in sides for i in range(len(side.runs))
    ]
    return {
        "names": names,
        "different": [row for row in rows if len(set(row[1:])) > 1],
        "same": [row[:2] for row in rows if len(set(row[1:])) == 1],
    }


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


def _chains(sides: Sequence[Side]) -> dict[str, Any]:
    columns = [(side.name, run) for side in sides for run in side.runs]
    records = [{chain.index: chain for chain in run.chains} for _, run in columns]
    rows = []
    for chain in columns[0][1].chains:
        done = [f"{of_run[chain.index].completed} of {len(chain.tasks)}" for of_run in records]
        steps = [", ".join(map(str, of_run[chain.index].steps)) for of_run in records]
        rows.append([str(chain.index), ", ".join(task.replace("_", " ") for task in chain.tasks), *done, *steps])
    suffixes = [f", {name}" if len(columns) > 1 else "" for name, _ in columns]
    heads = [f"{what}{suffix}" for what in ("done", "steps") for suffix in suffixes]
    return {"head": ["chain", "tasks", *heads], "rows": rows}


# --- charts ----------------------------------------------------------------------------------------------------------


def _charts(sides: Sequence[Side]) -> list[tuple[str, str, str]]:
    """Return (title, note, SVG) of each chart."""
    length = sides[0].runs[0].length
    completed = {side.name: np.concatenate([run.completed() for run in side.runs]) for side in sides}
    by_place = {
        name: [wilson(int((done >= i).sum()), int((done >= i - 1).sum())) for i in range(1, length + 1)]
        for name, done in completed.items()
    }
    shares = {name: [float((done == i).mean()) for i in range(length + 1)] for name, done in completed.items()}
    tries = {side.name: [(done, steps) for _, done, steps in _attempts(side)] for side in sides}
    limit = max((steps for of_side in tries.values() for _, steps in of_side), default=1)
    fractions = [f"{i}/{length}" for i in range(1, length + 1)]
    numbers = [str(i) for i in range(length + 1)]
    at_least = {side.name: success_rates(side.runs) for side in sides}
    return [
        (
            "Chains with at least this many tasks",
            "",
            rate_chart(at_least, fractions, "success by number of tasks"),
        ),
        (
            "Each task by its place in the chain",
            "success rate among the chains that reached the place",
            rate_chart(by_place, numbers[1:], "success by place in the chain"),
        ),
        (
            "Tasks completed per chain",
            "share of the chains",
            bar_chart(shares, numbers, "tasks completed per chain", " tasks done"),
        ),
        (
            "Control steps of a task",
            "share of all attempted tasks; those that were not done are the last bar",
            steps_histogram(tries, limit, "control steps of a task"),
        ),
    ]


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
                axes.annotate(
                    f"{100 * rate.point:.0f}",
                    (x, rate.point),
                    xytext=(7, 6),
                    textcoords="offset points",
                    color=COLOURS["ink"],
                    fontsize=13,
                    fontweight="bold",
                )
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


# --- videos and images -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MediaFile:
    """A video or an image of a chain; the first number in the file's name is the chain's index."""

    file: Path

    @property
    def title(self) -> str:
        return self.file.stem.replace("_", " ")

    @property
    def chain(self) -> int | None:
        number = re.search(r"\d+", self.file.stem)
        return None if number is None else int(number.group())

    @property
    def order(self) -> tuple[bool, int]:
        """The chain as a sort key; files without a chain come last."""
        return self.chain is None, self.chain or 0


def _media_files(folder: Path, suffixes: Sequence[str]) -> list[MediaFile]:
    """Return the folder's files in the order of chains and names, without those that are still being written (their
    names begin with a dot)."""
    files = [f for f in folder.glob("*") if f.suffix.lower() in suffixes and not f.name.startswith(".") and f.is_file()]
    return sorted(map(MediaFile, files), key=lambda medium: (medium.order, medium.file.name))


class MediaBudget:
    """Embeds files as long as their sum is below a limit, and links to the others."""

    def __init__(self, megabytes: float, page: Path) -> None:
        self.bytes_left = int(megabytes * 1_000_000)
        self.page = page
        self.linked = 0

    def embed(self, medium: MediaFile, description: str) -> dict[str, str]:
        """Return ``description`` and the file's ``data`` URL with its ``type``, or its ``link`` and ``name``."""
        if medium.file.stat().st_size > self.bytes_left:
            self.linked += 1
            return {"link": self._link(medium.file), "name": medium.file.name}
        content = medium.file.read_bytes()
        self.bytes_left -= len(content)
        media_type = MEDIA_TYPES[medium.file.suffix.lower()]
        return {"data": data_url(content, media_type), "type": media_type, "description": description}

    def _link(self, file: Path) -> str:
        folder = self.page.parent.resolve()
        file = file.resolve()
        return quote(file.relative_to(folder).as_posix() if file.is_relative_to(folder) else file.as_posix())


def _videos(sides: Sequence[Side], media: MediaBudget) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return (title, videos) of each chain that was filmed; chain by chain, so that a page whose limit is reached has
    complete pairs."""
    found = [
        (side.name, run, medium)
        for side in sides
        for run in side.runs
        for medium in _media_files(run.folder / VIDEOS, (".gif", ".mp4"))
    ]
    found.sort(key=lambda entry: entry[2].order)
    groups = []
    for chain, entries in groupby(found, key=lambda entry: entry[2].chain):
        title = "Videos" if chain is None else f"Chain {chain}"
        groups.append((title, [_video(*entry, media) for entry in entries]))
    return groups


def _video(name: str, run: Results, medium: MediaFile, media: MediaBudget) -> dict[str, Any]:
    record = next((chain for chain in run.chains if chain.index == medium.chain), None)
    outcome = medium.title if record is None else f"{record.completed} of {len(record.tasks)}"
    return {
        "medium": media.embed(medium, f"video of chain {medium.chain}, {name}: {outcome}"),
        "name": name,
        "outcome": outcome,
        "title": outcome if record is None else f"Chain {record.index}: {outcome}",
        "tasks": [] if record is None else _outcomes(record),
    }


def _outcomes(chain: ChainRecord) -> list[tuple[str, str, str]]:
    """Return (name, state, control steps) of a chain's tasks; the state is a class of the page's style."""
    rows = []
    for place, task in enumerate(chain.tasks):
        state = "done" if place < chain.completed else "failed" if place < len(chain.steps) else "never"
        steps = f"{chain.steps[place]} steps" if place < len(chain.steps) else ""
        rows.append((task.replace("_", " "), state, steps))
    return rows


def _frames(sides: Sequence[Side], media: MediaBudget) -> list[tuple[dict[str, str], str]]:
    """Return (medium, caption) of the images that show observed, predicted and true frames."""
    return [
        (media.embed(medium, medium.title), f"{side.name}: {medium.title}" if len(sides) > 1 else medium.title)
        for side in sides
        for run in side.runs
        for medium in _media_files(run.folder / FRAMES, (".png",))
    ]

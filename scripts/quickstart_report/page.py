"""Write the quickstart's report.html, and its films and frames as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from common.files import write_text
from common.html import data_url, render
from common.image_grid import RgbImage, add_caption, image_grid, image_url, mean_errors, side_by_side, write_png
from common.video import write_gif
from scripts.quickstart_report.evidence import (
    EXPERTS,
    SHIPPED,
    SHOWN_ANSWERS,
    SHOWN_FRAMES,
    TRAINED,
    EpisodeFilms,
    Evidence,
    Future,
    Result,
)
from training.data.readers import read_image

TEMPLATE = Path(__file__).with_name("quickstart.html.j2")
FILE, MEDIA = "report.html", "pictures"
COLUMNS = {
    "MAE": "mae_all",
    "RMSE": "rmse_all",
    "MAE position": "mae_pos",
    "MAE rotation": "mae_rot",
}
"""Heading -> metric of the action errors."""
MEANINGS = {
    SHIPPED: "the bundled model (assets/desk_policy), trained longer",
    TRAINED: "the model of this run, from random weights",
    "untrained": "the same network before training",
    "mean action": "the mean action of the recordings at every step",
    EXPERTS: "scripted controllers that read the state of the simulator",
}
JPEG_QUALITY = 85
CHART_WIDTH, CHART_HEIGHT = 520, 210  # SVG units
POINTS = 200
"""Largest number of points of a curve; each is the mean of some steps."""


@dataclass(frozen=True)
class Facts:
    """Conditions of the run. ``made_with``: its settings by name; ``seconds``: time of the whole command."""

    scene: str
    max_steps: int
    made_with: Mapping[str, Any]
    seconds: float

    def conditions(self) -> list[str]:
        return [
            f"Desk, scene {self.scene} (not CALVIN)",
            "doors and lights",
            f"text objective {self.made_with['objective']}",
            f"{self.made_with['steps']:,} training steps",
            f"{self.max_steps} control steps per task",
            f"{datetime.now(timezone.utc):%Y-%m-%d}",
        ]


def write_page(folder: Path, facts: Facts, results: Sequence[Result], shown: Evidence) -> Path:
    """Write ``report.html``, and its films and predicted frames as files; return the path of the page."""
    media, run = folder / MEDIA, folder / "run"
    some = shown.futures[:: max(1, len(shown.futures) // SHOWN_FRAMES)][:SHOWN_FRAMES]
    if shown.futures:
        write_png(media / "now_predicted_true.png", sheet(some, shown.act_step))
    page = render(
        TEMPLATE,
        conditions=facts.conditions(),
        seconds=facts.seconds,
        made_with=facts.made_with,
        results=results,
        columns=COLUMNS,
        meanings=MEANINGS,
        trained=next(result for result in results if result.name == TRAINED),
        charts=_charts(run / "metrics.jsonl"),
        episodes=[_episode(media, episode) for episode in shown.episodes],
        max_steps=facts.max_steps,
        sight=shown.sight
        and {
            "instruction": shown.sight.instruction,
            "codes": shown.sight.codes,
            "camera": image_url(shown.sight.camera),
            "through_codes": image_url(shown.sight.through_codes),
            "size": shown.sight.camera.shape[0],
        },
        futures=[
            {
                "instruction": future.instruction,
                "frames": [image_url(image) for image in (future.now, future.predicted, future.true)],
                "errors": str(future.errors),
            }
            for future in some
        ],
        act_step=shown.act_step,
        mean_errors=mean_errors([future.errors for future in shown.futures]) if shown.futures else None,
        evaluated=len(shown.futures),
        answers=[
            {"image": image_url(np.asarray(read_image(file).convert("RGB")), JPEG_QUALITY), "answer": answer}
            for file, answer in _varied(shown)
        ],
        right=sum(answer.verdict == "right" for _, answer in shown.answers),
        asked=len(shown.answers),
        run=run,
    )
    write_text(folder / FILE, page)
    return folder / FILE


def _varied(shown: Evidence) -> list[Any]:
    """Return answers to show: right ones first, and a wrong one among them if there is any."""
    right = [one for one in shown.answers if one[1].verdict == "right"]
    wrong = [one for one in shown.answers if one[1].verdict != "right"]
    first = right[: SHOWN_ANSWERS - bool(wrong)]
    return [*first, *wrong[: SHOWN_ANSWERS - len(first)]]


def _episode(folder: Path, episode: EpisodeFilms) -> dict[str, Any]:
    """Write the films of an episode, and return them for the page."""
    found = []
    for name, (record, frames) in episode.films.items():
        file = folder / f"rollout_{record.index}_{record.task}_{name.replace(' ', '_')}.gif"
        write_gif(file, frames)
        found.append({"name": name, "record": record, "data": data_url(file.read_bytes(), "image/gif")})
    return {"instruction": episode.instruction, "films": found}


def sheet(futures: Sequence[Future], act_step: int) -> RgbImage:
    """Return rows of now | predicted | true with captions."""
    cells = []
    for future in futures:
        row = side_by_side([future.now, future.predicted, future.true], height=192)
        note = f"now | predicted | true, {act_step} steps ahead; {future.errors}"
        cells.append(add_caption(row, future.instruction, note))
    return image_grid(cells, columns=1)


def _charts(metrics: Path) -> list[dict[str, Any]]:
    """Return title, note and SVG of the training curves that the run has."""
    from scripts.objective_comparison.plan import read_metrics

    rows = read_metrics(metrics)
    found = []
    for title, name in (("Action loss", "action/loss"), ("Text loss, nats per token", "text/nats_per_token")):
        training = [(row["step"], row[name]) for row in rows if name in row]
        held_out = [(row["step"], row[f"validation/{name}"]) for row in rows if f"validation/{name}" in row]
        if len(training) > 1:
            found.append({"title": title, "svg": _curve(title, training, held_out), "held_out": bool(held_out)})
    return found


def _curve(title: str, training: Sequence[tuple[float, float]], held_out: Sequence[tuple[float, float]]) -> str:
    """Return a curve over the steps, and points of the validation data, on a logarithmic scale."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    from common.html.figures import COLOURS, new_figure, svg

    parts = np.array_split(np.array(training), min(POINTS, len(training)))
    steps, values = np.array([part.mean(axis=0) for part in parts]).T
    figure = new_figure(CHART_WIDTH, CHART_HEIGHT)
    axes = figure.add_axes((0.11, 0.17, 0.86, 0.77))
    axes.plot(steps, values, color=COLOURS["s0"], linewidth=1.6)
    points = []
    for step, value in held_out:
        (dot,) = axes.plot(step, value, "o", color=COLOURS["s1"], markersize=8, markeredgecolor=COLOURS["card"])
        points.append((dot, f"validation, step {step:,.0f}: {value:.3g}"))
    axes.set_yscale("log")
    axes.set_xlim(0, training[-1][0] * 1.02)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(colors=COLOURS["faint"], labelsize=12, length=0, pad=6)
    axes.grid(axis="y", color=COLOURS["line"], linewidth=1)
    axes.set_axisbelow(True)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(COLOURS["faint"])
    return svg(figure, title, points)

"""A data set as one HTML file: pictures, curves, style and script inside it, nothing from outside."""

from __future__ import annotations

import base64
import io
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from common.image_grid import resize_to_height
from policy_rollout.reporting.markup import PAGE_STYLE
from preprocess_data.browsing import charts
from preprocess_data.browsing.facts import Facts
from preprocess_data.browsing.seam import EpisodeView, Picture, Source
from preprocess_data.browsing.sheet import moments

HERE = Path(__file__).resolve().parent
SIDE, HAND_SIDE = 220, 130  # pixels: heights of the first camera's and the other cameras' pictures
QUALITY = 82  # of JPEG
THUMBS = 8  # moments in the strip below an episode
LISTED = 12  # tasks and sentences before "more"

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title><style>{style}</style></head><body><main>
<header><h1>{title}</h1><p class="path">{kind} · {path}</p><dl class="figures">{figures}</dl></header>
{sections}
<h2>{shown}</h2><div class="cards{talks}">{cards}</div>
<footer>{notes}</footer>
</main><script>{script}</script></body></html>
"""


def write_page(
    source: Source, facts: Facts, numbers: Sequence[int], cells: int, path: Path, progress: bool
) -> list[str]:
    """Write the page with episodes ``numbers``, ``cells`` moments of each; returns what could not be shown, and why."""
    faults: list[str] = []
    cards: list[str] = []
    for number in tqdm(numbers, "episodes", unit="episode", disable=not progress):
        try:
            cards.append(_card(source, source.episode(number), cells))
        except (ValueError, FileNotFoundError) as error:
            faults.append(str(error))
            cards.append(f'<article><h3>Episode {number}</h3><p class="fault">{escape(str(error))}</p></article>')
    what = "episodes" if source.rate else "records"
    page = PAGE.format(
        title=escape(Path(facts.path).name or facts.path),
        kind=escape(facts.kind),
        path=escape(facts.path),
        figures="".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.figures()),
        sections=_counts(facts) + _spread(facts),
        shown=f"{len(numbers)} of {facts.episodes:,} {what}",
        talks="" if source.rate else " talks",
        cards="".join(cards),
        notes=escape(". ".join([*facts.notes, "Made by scripts/inspect_data.py; this file needs no other."])),
        style="".join(file.read_text(encoding="utf-8") for file in (PAGE_STYLE, HERE / "style.css")),
        script=(HERE / "page.js").read_text(encoding="utf-8"),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)
    return faults


# ------------------------------------------------------------------------------------------------------- the whole set
def _counts(facts: Facts) -> str:
    if not facts.rate:
        return f'<div class="two">{_bars("First questions", facts.instructions)}{_bars("Folders", facts.tasks)}</div>'
    return f'<div class="two">{_bars("Tasks", facts.tasks)}{_bars("Sentences", facts.instructions)}</div>'


def _bars(title: str, counts: Counter[str]) -> str:
    widest = max(counts.values())
    rows = [
        f'<li><div class="bar"><i style="width:{100 * count / widest:.1f}%"></i>'
        f'<span title="{escape(name)}">{escape(name or "(empty)")}</span></div><b>{count:,}</b></li>'
        for name, count in counts.most_common(200)
    ]
    rest = len(counts) - LISTED
    more = f"<details><summary>{rest:,} more</summary><ul class=bars>{''.join(rows[LISTED:])}</ul></details>"
    return (
        f'<section><h2>{title}</h2><ul class="bars">{"".join(rows[:LISTED])}</ul>{more if rest > 0 else ""}</section>'
    )


def _spread(facts: Facts) -> str:
    if not facts.action_names:
        return ""
    figures = []
    for axis, name in enumerate(facts.action_names):
        hue = f"c{axis % 3}" if axis < 6 else "c3"
        outside = f" · {facts.outside[axis]:,} outside" if facts.outside[axis] else ""
        spread = f"{facts.mean[axis]:+.2f} ± {facts.deviation[axis]:.2f}{outside}"
        figures.append(
            f"<figure><figcaption>{escape(name)}<span>{spread}</span></figcaption>"
            f"{charts.histogram(facts.histogram[axis], hue)}"
            f'<div class="ends"><span>−1</span><span>0</span><span>1</span></div></figure>'
        )
    drawing, low, high = charts.lengths(facts.lengths)
    figures.append(
        f"<figure><figcaption>frames<span>median {int(np.median(facts.lengths))}</span></figcaption>"
        f'{drawing}<div class="ends"><span>{low}</span><span>{high}</span></div></figure>'
    )
    note = f"{escape(facts.actions_of)}; mean ± deviation; heights are square roots of shares"
    return f'<h2>Actions <span class="small">· {note}</span></h2><div class="spread">{"".join(figures)}</div>'


# ---------------------------------------------------------------------------------------------------------- an episode
def _card(source: Source, view: EpisodeView, cells: int) -> str:
    head = f'<h3>{escape(view.title)}</h3><p class="note">{escape(view.note)}</p>'
    if view.turns:
        picture = f'<img alt="" src="{_jpeg(view.picture(view.cameras[0], 0), 300)}">' if view.cameras else ""
        turns = [f'<div class="turn {_role(who)}">{escape(text)}</div>' for who, text in view.turns]
        return f'<article class="talk"><p class="note">{escape(view.note)}</p>{picture}{"".join(turns)}</article>'
    times = moments(view.length, cells)
    films = [_film(view, camera, times, SIDE if place == 0 else HAND_SIDE) for place, camera in enumerate(view.cameras)]
    pictures = ";".join(f"--film{place}:url({film.data})" for place, film in enumerate(films))
    screens = "".join(film.cell(f"film hand{place}" if place else "film", place, 0) for place, film in enumerate(films))
    strip = "".join(films[0].cell("thumb", 0, cell) for cell in moments(len(times), THUMBS)) if films else ""
    plot, key = "", ""
    if view.actions is not None:
        plot = charts.curves(view.actions, source.action_names)
        hues = [f"c{axis % 3}" if axis < 6 else "c3" for axis in range(len(source.action_names))]
        named = [
            f'<span><i class="{hue}"></i>{escape(n)}</span>' for n, hue in zip(source.action_names, hues, strict=True)
        ]
        key = "".join(f"<div>{''.join(named[start : start + 3])}</div>" for start in range(0, len(named), 3))
    data = f'data-times="{",".join(map(str, times))}" data-last="{view.length - 1}" data-rate="{source.rate:g}"'
    return (
        f'<article {data} style="{pictures}">{head}'
        f'<div class="stage"><div class="views">{screens}</div>'
        f'<div class="plot">{plot}<div class="key">{key}</div></div></div>'
        f'<div class="scrub"><button type="button" aria-label="play">▶</button>'
        f'<input type="range" min="0" max="{len(times) - 1}" value="0" aria-label="moment"><output></output></div>'
        f'<div class="strip">{strip}</div></article>'
    )


def _role(who: str) -> str:
    return "asks" if who == "human" else "answers"


@dataclass(frozen=True)
class _Film:
    """All moments of a camera side by side in one picture, of which a cell is shown at a time."""

    data: str
    cells: int
    aspect: str
    label: str

    def cell(self, kind: str, place: int, cell: int) -> str:
        at = 100 * cell / max(self.cells - 1, 1)
        style = f"aspect-ratio:{self.aspect};background-image:var(--film{place});background-position:{at:.2f}% 0"
        about = f'role="img" aria-label="{escape(self.label)}"'
        return f'<div class="{kind}" data-cell="{cell}" {about} style="{style}"></div>'


def _film(view: EpisodeView, camera: str, times: Sequence[int], height: int) -> _Film:
    pictures = [resize_to_height(view.picture(camera, time), height) for time in times]
    shape = pictures[0].shape
    data = _jpeg(np.concatenate(pictures, axis=1), height)
    return _Film(data, len(times), f"{shape[1]}/{shape[0]}", f"{camera} of {view.title}")


def _jpeg(picture: Picture, height: int) -> str:
    content = io.BytesIO()
    Image.fromarray(resize_to_height(picture, height)).save(content, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"

"""Matplotlib figures as SVG inside a page, in the colours of the page's style (light and dark)."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.figure import Figure

_STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
COLOURS: dict[str, str] = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", _STYLE[: _STYLE.index("}")]))
"""The light colours of page.css by the names of their variables. ``svg`` replaces them by the variables."""
_SETTINGS = {"svg.hashsalt": "page", "svg.fonttype": "none"}


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of ``width`` times ``height`` units of its SVG."""
    return Figure(figsize=(width / 72, height / 72), dpi=72)


def svg(figure: Figure, label: str, tooltips: Sequence[tuple[Any, str]] = (), stretch: bool = False) -> Markup:
    """Return the figure as an SVG element; the same figure always gives the same text.

    Args:
        figure: Drawn in ``COLOURS``.
        label: Description for screen readers.
        tooltips: Artists of the figure and the text that a browser shows while the pointer is above each.
        stretch: The element takes the aspect ratio of its place on the page; lines keep their width.
    """
    for artist in figure.findobj():
        artist.set_clip_on(False)  # clip paths have ids, which would have to be unique in the page
    for number, (artist, _) in enumerate(tooltips):
        artist.set_gid(f"tooltip-{number}")
    content = io.StringIO()
    with matplotlib.rc_context(_SETTINGS):
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(content, format="svg", transparent=True, metadata=no_metadata)
    text = content.getvalue()
    width, height = figure.get_size_inches() * 72
    drawing = text[text.index('<g id="figure_1">') : text.rindex("</svg>")]

    def group(match: re.Match[str]) -> str:
        kind, _, number = match[1].partition("-")
        return f"<g><title>{escape(tooltips[int(number)][1])}</title>" if kind == "tooltip" else "<g>"

    drawing = re.sub(r'<g id="([^"]*)">', group, drawing)
    drawing = re.sub(r"font-family: [^;\"]*;? ?", "", drawing)  # the font of the page
    for name, colour in COLOURS.items():
        drawing = drawing.replace(colour, f"var(--{name})")
    options = ' preserveAspectRatio="none" class="stretch"' if stretch else ""
    return Markup(
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}"{options}>{drawing}</svg>'
    )

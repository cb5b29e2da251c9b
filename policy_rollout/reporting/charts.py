"""Drawings as SVG. Colours and type come from the page's style, so that they follow light and dark.

A series is one evaluation (or one policy); its number is its colour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from policy_rollout.intervals import Interval
from policy_rollout.reporting.markup import Html, el

WIDTH, HEIGHT = 520, 250  # SVG units; a chart is as wide as its place
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 14, 40
APART = 9.0  # between series at one place
BAR_WIDTH, BAR_HEIGHT = 190, 13  # of a rate in a table, pixels


def _svg(*children: object, width: float = WIDTH, height: float = HEIGHT, label: str, class_: str = "chart") -> Html:
    return el("svg", *children, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=label, class_=class_)


def _line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Html:
    return el("line", x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}", class_=class_)


def _text(x: float, y: float, text: object, anchor: str = "middle", class_: str = "tick") -> Html:
    return el("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_=class_)


def _rect(x: float, y: float, width: float, height: float, class_: str, title: str) -> Html:
    size = {"x": f"{x:.1f}", "y": f"{y:.1f}", "width": f"{width:.1f}", "height": f"{max(height, 0):.1f}"}
    return el("rect", el("title", title), **size, class_=class_)


def _height(share: float, top: float = 1.0) -> float:
    """y of a share of ``top``."""
    return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * share / top


def _percent_grid(top: float = 1.0) -> list[Html]:
    steps = [share for share in (0, 0.25, 0.5, 0.75, 1.0) if share <= top] if top > 0.5 else [0, top / 2, top]
    return [
        part
        for share in steps
        for part in (
            _line(LEFT, _height(share, top), WIDTH - RIGHT, _height(share, top), "grid" if share else "axis"),
            _text(LEFT - 7, _height(share, top) + 3.5, f"{100 * share:.0f}%", "end"),
        )
    ]


def curve(series: Mapping[str, Sequence[Interval]], places: Sequence[str], title: str) -> Html:
    """Rates by place, joined by lines, each with its interval; a place where nothing is known has no point."""
    step = (WIDTH - LEFT - RIGHT) / len(places)
    parts = _percent_grid()
    parts += [_text(LEFT + step * (i + 0.5), HEIGHT - BOTTOM + 18, place) for i, place in enumerate(places)]
    for number, (name, rates) in enumerate(series.items()):
        shift = APART * (number - (len(series) - 1) / 2)
        known = [(LEFT + step * (i + 0.5) + shift, rate) for i, rate in enumerate(rates) if not math.isnan(rate.point)]
        points = " ".join(f"{x:.1f},{_height(rate.point):.1f}" for x, rate in known)
        drawn = [el("polyline", points=points, class_="run")] if len(known) > 1 else []
        for x, rate in known:
            told = f"{name}: {100 * rate.point:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
            dot = el("circle", el("title", told), cx=f"{x:.1f}", cy=f"{_height(rate.point):.1f}", r="4")
            drawn += [_line(x, _height(rate.low), x, _height(rate.high), "interval"), dot]
            if len(series) == 1:
                drawn.append(_text(x + 7, _height(rate.point) - 6, f"{100 * rate.point:.0f}", "start", "value"))
        parts.append(el("g", *drawn, class_=f"s{number}"))
    return _svg(*parts, label=title)


def bars(series: Mapping[str, Sequence[float]], places: Sequence[str], title: str, unit: str) -> Html:
    """Shares by place, side by side."""
    top = max([share for shares in series.values() for share in shares], default=0.0)
    top = min(1.0, math.ceil(max(top, 0.02) * 10) / 10)
    step = (WIDTH - LEFT - RIGHT) / len(places)
    width = min(46.0, step * 0.8 / len(series))
    parts = _percent_grid(top)
    every = max(1, math.ceil(len(places) / 12))  # labels that do not touch
    for i, place in enumerate(places):
        if i % every == 0 or i == len(places) - 1:
            parts.append(_text(LEFT + step * (i + 0.5), HEIGHT - BOTTOM + 18, place))
    for number, (name, shares) in enumerate(series.items()):
        drawn = []
        for i, share in enumerate(shares):
            x = LEFT + step * (i + 0.5) + width * (number - len(series) / 2)
            told = f"{name}, {places[i]}{unit}: {100 * share:.1f} %"
            drawn.append(_rect(x, _height(share, top), width - 1, HEIGHT - BOTTOM - _height(share, top), "bar", told))
        parts.append(el("g", *drawn, class_=f"s{number}"))
    return _svg(*parts, label=title)


def steps_histogram(series: Mapping[str, Sequence[tuple[bool, int]]], limit: int, title: str, bins: int = 18) -> Html:
    """Of tries, (was it done, after how many steps): shares of all tries by bin, and last those that were not done."""
    width = next(width for width in (1, 2, 5, 10, 20, 25, 50, 100, limit) if width * bins >= limit)
    count = math.ceil(limit / width)
    places = [*(str((i + 1) * width) for i in range(count)), "not done"]
    shares = {}
    for name, tries in series.items():
        of_bin = [0] * (count + 1)
        for done, steps in tries:
            of_bin[min(max(steps - 1, 0) // width, count - 1) if done else count] += 1
        shares[name] = [number / max(len(tries), 1) for number in of_bin]
    return bars(shares, places, title, " steps")


def rate_bar(rates: Sequence[Interval], title: str) -> Html:
    """Rates between 0 and 1 as points on their intervals, one under the other, for a cell of a table."""
    parts = [_line(0.5, 0, 0.5, BAR_HEIGHT * len(rates), "grid")]
    parts += [_line(at, 0, at, BAR_HEIGHT * len(rates), "grid") for at in (BAR_WIDTH / 2, BAR_WIDTH - 0.5)]
    for number, rate in enumerate(rates):
        if math.isnan(rate.point):
            continue
        y = BAR_HEIGHT * (number + 0.5)
        low, high, at = (4 + (BAR_WIDTH - 8) * share for share in (rate.low, rate.high, rate.point))
        dot = el("circle", cx=f"{at:.1f}", cy=f"{y:.1f}", r="3.5")
        parts.append(el("g", _line(low, y, high, y, "interval"), dot, class_=f"s{number}"))
    height = BAR_HEIGHT * len(rates)
    return el(
        "svg",
        *parts,
        viewBox=f"0 0 {BAR_WIDTH} {height}",
        width=BAR_WIDTH,
        height=height,
        role="img",
        aria_label=title,
        class_="rate",
    )


def legend(names: Sequence[str]) -> Html | None:
    """Which colour is whose; nothing where there is only one."""
    if len(names) < 2:
        return None
    shown = (el("span", el("i", class_=f"s{number}"), name) for number, name in enumerate(names))
    return el("p", *shown, class_="legend")

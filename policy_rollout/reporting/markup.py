"""HTML as values: whatever is not markup already is escaped, so that a name or a sentence cannot become some."""

from __future__ import annotations

import os
from collections.abc import Iterable
from html import escape
from pathlib import Path

_VOID = frozenset({"meta", "img", "br", "hr", "source"})
PAGE_STYLE = Path(__file__).with_name("page.css")
"""Of every page that the project makes."""
REPORT_STYLE = PAGE_STYLE.with_name("report.css")


class Html(str):
    """Text that is markup."""

    __slots__ = ()


def el(name: str, /, *children: object, **attributes: object) -> Html:
    """An element. Children that are no ``Html`` are escaped, None and False are left out. ``class_`` is the attribute
    class, other underscores are hyphens; an attribute that is None or False is left out, one that is True has no value.
    """
    told = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        told.append(f" {key}" if value is True else f' {key}="{escape(str(value))}"')
    opened = f"<{name}{''.join(told)}>"
    return Html(opened if name in _VOID else f"{opened}{join(children)}</{name}>")


def join(children: Iterable[object], between: str = "") -> Html:
    shown = (child for child in children if child is not None and child is not False)
    return Html(between.join(child if isinstance(child, Html) else escape(str(child)) for child in shown))


def table(head: Iterable[object], rows: Iterable[Iterable[object]], class_: str | None = None) -> Html:
    """The first column heads its rows."""
    body = []
    for row in rows:
        first, *others = row
        body.append(el("tr", el("th", first, scope="row"), *(el("td", cell) for cell in others)))
    top = el("thead", el("tr", *(el("th", cell, scope="col") for cell in head)))
    # Wide tables scroll in themselves, not the page.
    return el("div", el("table", top, el("tbody", *body), class_=class_), class_="wide")


def figures(named: Iterable[tuple[str, object, object]]) -> Html:
    """Large numbers: (name, value, what stands small behind it)."""
    return el(
        "dl",
        *(el("div", el("dt", name), el("dd", value, el("small", " ", small))) for name, value, small in named),
        class_="figures",
    )


def page(title: str, *body: object) -> Html:
    """A whole document that fetches nothing and runs nothing."""
    style = "".join(file.read_text(encoding="utf-8") for file in (PAGE_STYLE, REPORT_STYLE))
    policy = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("title", title),
        el("style", Html(style)),
    )
    return Html("<!doctype html>\n" + el("html", head, el("body", el("main", *body)), lang="en") + "\n")


def write_page(path: Path, content: Html) -> Path:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    unfinished.write_text(content, encoding="utf-8")
    os.replace(unfinished, path)
    return path

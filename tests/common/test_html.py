"""Pages and figures of common/html: nothing from outside, and no text becomes markup."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from common.html import data_url, render
from common.html.figures import COLOURS, new_figure, svg

HOSTILE = "\"'><script>alert(1)</script>&amp;"


def drawing(tooltip: str = "a point") -> str:
    figure = new_figure(100, 50)
    axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
    (line,) = axes.plot([0, 1], [0, 1], "o", color=COLOURS["s1"])
    return svg(figure, HOSTILE, [(line, tooltip)], stretch=True)


def test_a_figure_is_the_same_every_time_and_needs_nothing_else() -> None:
    assert drawing() == drawing()
    for reference in ("http", "url(", "<style", "<?xml", 'id="axes'):
        assert reference not in drawing()
    assert "var(--s1)" in drawing()
    assert COLOURS["s1"] not in drawing()


def test_tooltips_and_labels_are_text() -> None:
    root = ElementTree.fromstring(drawing(HOSTILE).replace("xlink:href", "href"))
    assert root.get("aria-label") == HOSTILE
    assert [title.text for title in root.iter("title")] == [HOSTILE]
    assert not list(root.iter("script"))
    assert root.get("viewBox") == "0 0 100 50"


def test_text_in_a_page_is_escaped_and_markup_is_not(tmp_path: Path) -> None:
    template = tmp_path / "one.html.j2"
    template.write_text(
        '{% extends "page.html.j2" %}{% from "macros.html.j2" import row, table %}'
        "{% block title %}{{ text }}{% endblock %}"
        '{% block main %}<p class="{{ text }}">{{ drawing }}</p>'
        "{% call table([text], text) %}{{ row([text, 3]) }}{% endcall %}{% endblock %}",
        encoding="utf-8",
    )
    page = render(template, text=HOSTILE, drawing=drawing())
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 6  # title, attribute, table's class and cells, the figure's label
    assert "default-src 'none'" in page
    assert drawing() in page
    assert data_url(b"abc", "image/png") == "data:image/png;base64,YWJj"

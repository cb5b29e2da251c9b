"""Self-contained HTML pages, and other documents, from jinja2 templates.

A page loads nothing from outside. Its text is escaped unless it is ``markupsafe.Markup``. Importing ``figures`` takes
a second (matplotlib), so commands import it after their --help.
"""

from __future__ import annotations

import base64
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from common.tables import percent, points, probability

_FOLDER = Path(__file__).parent


def render(template: Path, **values: object) -> str:
    """Return the document of a template.

    A template whose name ends in ``.html.j2`` escapes its values and may extend ``page.html.j2`` and import
    ``macros.html.j2`` of this folder.
    """
    return _environment(template.parent).get_template(template.name).render(values)


@cache
def _environment(folder: Path) -> Environment:
    """Return the environment of the templates in ``folder``; it keeps compiled templates."""
    made = Environment(
        loader=FileSystemLoader([folder, _FOLDER]),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters.update(percent=percent, points=points, probability=probability)
    return made


def data_url(content: bytes, media_type: str) -> str:
    """Return a URL that contains ``content``, for the ``src`` of an image or a video."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"

"""Hooks of mkdocs.yml: links to files outside ``docs/`` become the path of the file in the repository."""

from __future__ import annotations

import re
from typing import Any

_OUTSIDE = re.compile(r"(?<!!)\[([^\]]+)\]\(\.\./([^)#\s]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the page with ``[text](../path)`` as ``text (`path`)``, because the site has no such page."""

    def replaced(found: re.Match[str]) -> str:
        text, path = found[1], found[2]
        return f"`{path}`" if text.strip("`") == path else f"{text} (`{path}`)"

    return _OUTSIDE.sub(replaced, markdown)

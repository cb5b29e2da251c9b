"""Films and images of an evaluation, as text inside the page, as long as there is room for them."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from policy_rollout.reporting.markup import Html, el

VIDEOS, IMAGES = "videos", "input_predict_truth"
TYPES = {".gif": "image/gif", ".png": "image/png", ".mp4": "video/mp4"}
ROOM = 48
"""Megabytes of films and images in a page (before they are written as text, which takes a third more)."""


@dataclass(frozen=True)
class Medium:
    """``chain``: its index, the first number in the file's name; None where there is none."""

    file: Path
    chain: int | None

    @property
    def title(self) -> str:
        return self.file.stem.replace("_", " ")


def media_in(folder: Path, suffixes: Sequence[str]) -> list[Medium]:
    """The files of a folder, in the order of chains and names; none where there is no folder. What is being written
    (a leading dot, an ending of its own) is left alone."""
    files = [f for f in folder.glob("*") if f.suffix.lower() in suffixes and not f.name.startswith(".") and f.is_file()]
    found = []
    for file in files:
        number = re.search(r"\d+", file.stem)
        found.append(Medium(file, None if number is None else int(number.group())))
    return sorted(found, key=lambda medium: (medium.chain is None, medium.chain or 0, medium.file.name))


class Room:
    """Takes files in as long as they fit; what does not fit is linked to where it lies, beside the page."""

    def __init__(self, megabytes: float, page: Path) -> None:
        self.left = int(megabytes * 1_000_000)
        self.page = page
        self.outside = 0

    def show(self, medium: Medium, description: str) -> Html:
        content = None
        if medium.file.stat().st_size <= self.left:
            content = medium.file.read_bytes()
        if content is None:
            self.outside += 1
            return el("p", "too large for this page: ", el("a", medium.file.name, href=self._link(medium.file)))
        self.left -= len(content)
        kind = TYPES[medium.file.suffix.lower()]
        data = f"data:{kind};base64,{base64.b64encode(content).decode()}"
        if kind.startswith("video"):
            return el("video", src=data, controls=True, loop=True, muted=True, playsinline=True, aria_label=description)
        return el("img", src=data, alt=description, loading="lazy")

    def _link(self, file: Path) -> str:
        folder = self.page.parent.resolve()
        file = file.resolve()
        return quote(file.relative_to(folder).as_posix() if file.is_relative_to(folder) else file.as_posix())

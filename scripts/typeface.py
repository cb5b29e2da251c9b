"""The fonts that images of tokens are set in: DejaVu, which comes with matplotlib and has every sign we draw."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from matplotlib import get_data_path
from PIL import ImageFont

_FACES = {"sans": "DejaVuSans", "bold": "DejaVuSans-Bold", "mono": "DejaVuSansMono"}


@cache
def font(size: int, face: str = "sans") -> ImageFont.FreeTypeFont:
    """``face``: sans, bold or mono."""
    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / f"{_FACES[face]}.ttf"), size)

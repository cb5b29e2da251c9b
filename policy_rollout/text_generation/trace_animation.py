"""Draw how an answer fills in as an animation: one chip for each slot, colored by the forward that filled it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from common.video import write_gif
from policy_rollout.text_generation.trace import END, MASKED, Step, Token
from training.data.readers import read_image

Color = tuple[int, int, int]
PAPER, CARD, INK, FAINT, SLOT = (246, 244, 239), (255, 255, 255), (30, 32, 38), (128, 130, 138), (232, 229, 222)
SCALE = ((72, 66, 196), (20, 140, 150), (54, 158, 92), (226, 148, 36))
"""Colors from the first forward to the last."""
WIDTH, MARGIN, IMAGE, TEXT = 980, 24, 190, 19
CHIP, GAP, LINE = 32, 7, 40
K = 2
"""Everything is drawn larger by this factor and then reduced, for smooth edges."""
SHOWN_ROWS = 4
LAST_REPEATS = 6
"""How often the last frame is repeated."""


@cache
def font(size: int, face: str = "Sans") -> ImageFont.FreeTypeFont:
    """Return DejaVu, which comes with matplotlib and has every sign that is drawn. ``face``: Sans or Sans-Bold."""
    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / f"DejaVu{face}.ttf"), size)


@dataclass(frozen=True)
class Panel:
    """A question and its image (None without one)."""

    image: Path | None
    question: str


@dataclass(frozen=True)
class _Chip:
    """Position of one slot in its panel's text area, in pixels."""

    x: int
    y: int
    width: int


def save_animation(path: Path, panels: Sequence[Panel], steps: Sequence[Step], name: str) -> None:
    """Write ``path`` (GIF). ``name``: the way of decoding. Raises ``ValueError`` or ``OSError``."""
    if not steps:
        raise ValueError(f"--trace-gif {path}: the answer has no token, so there is nothing to draw")
    frames = draw_frames(panels, steps, name)
    pixels = [np.asarray(frame) for frame in frames]
    write_gif(path, [*pixels, *[pixels[-1]] * LAST_REPEATS], fps=3.0 if len(frames) <= 30 else 6.0, colours=256)


def draw_frames(panels: Sequence[Panel], steps: Sequence[Step], name: str) -> list[Image.Image]:
    """Return frames: all slots masked, then one for each forward, then the answer. At most ``SHOWN_ROWS`` answers."""
    panels = panels[:SHOWN_ROWS]
    blank = Step(0, 0.0, [[Token(MASKED, None, False) for _ in row] for row in steps[0].rows])
    layouts = [_chips([step.rows[number] for step in steps], _room(panel)) for number, panel in enumerate(panels)]
    images = [None if p.image is None else _rounded(read_image(p.image)) for p in panels]
    settled = [[replace(token, fresh=False) for token in row] for row in steps[-1].rows]
    shown = [blank, *steps, replace(steps[-1], rows=settled)]
    return [_frame(panels, images, layouts, step, steps, name) for step in shown]


def _room(panel: Panel) -> int:
    """Return the width of the text area."""
    return WIDTH - 2 * MARGIN - 2 * 18 - (0 if panel.image is None else IMAGE + 22)


def _chips(rows: Sequence[Sequence[Token]], room: int) -> list[_Chip]:
    """Return a chip for every slot, as wide as its final token, so that nothing moves while the answer fills in."""
    count = max(len(row) for row in rows)
    final = [next((row[slot] for row in reversed(rows) if slot < len(row) and not row[slot].masked), None)
             for slot in range(count)]  # fmt: skip
    chips: list[_Chip] = []
    x = y = 0
    for token in final:
        text = MASKED if token is None else token.label
        width = int(font(TEXT, "Sans-Bold").getlength(text)) + 16
        gap = GAP if token is None or token.text.startswith(" ") or token.text == END else 2
        if chips and x + gap + width > room:
            x, y = 0, y + LINE
        elif chips:
            x += gap
        chips.append(_Chip(x, y, width))
        x += width
    return chips


def _height(panel: Panel, chips: Sequence[_Chip]) -> int:
    """Return the height of a panel's card."""
    text = 30 * len(_lines(panel)) + 16 + chips[-1].y + CHIP
    return 36 + max(text, 0 if panel.image is None else IMAGE)


def _lines(panel: Panel) -> list[str]:
    """Return the question, broken into lines."""
    lines = [""]
    for word in panel.question.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font(21, "Sans-Bold").getlength(longer) > _room(panel):
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _rounded(image: Image.Image) -> Image.Image:
    """Return the middle square, with round corners."""
    side, size = min(image.size), IMAGE * K
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
    corners = Image.new("L", (size, size), 0)
    ImageDraw.Draw(corners).rounded_rectangle((0, 0, size - 1, size - 1), 10 * K, fill=255)
    card = Image.new("RGB", (size, size), CARD)
    card.paste(square, mask=corners)
    return card


def _frame(
    panels: Sequence[Panel],
    images: Sequence[Image.Image | None],
    layouts: Sequence[Sequence[_Chip]],
    step: Step,
    steps: Sequence[Step],
    name: str,
) -> Image.Image:
    heights = [_height(panel, chips) for panel, chips in zip(panels, layouts, strict=True)]
    height = 62 + sum(heights) + 14 * len(heights) + 74
    page = Image.new("RGB", (WIDTH * K, height * K), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN * K, 34 * K), "How the answer fills in", font=font(22 * K, "Sans-Bold"), fill=INK, anchor="lm")
    draw.text(((WIDTH - MARGIN) * K, 34 * K), name, font=font(15 * K), fill=FAINT, anchor="rm")
    last, top = steps[-1].forwards, 62
    for number, (panel, image, chips) in enumerate(zip(panels, images, layouts, strict=True)):
        _card(page, top, heights[number], panel, image)
        left = MARGIN + 18 + (0 if image is None else IMAGE + 22)
        area = top + 18 + 30 * len(_lines(panel)) + 16
        for chip, token in zip(chips, step.rows[number], strict=False):
            _draw_token(draw, left + chip.x, area + chip.y, chip.width, token, last)
        top += heights[number] + 14
    _footer(draw, height, step, steps)
    return page.resize((WIDTH, height), Image.Resampling.LANCZOS)


def _card(page: Image.Image, top: int, height: int, panel: Panel, image: Image.Image | None) -> None:
    draw = ImageDraw.Draw(page)
    box = (MARGIN * K, top * K, (WIDTH - MARGIN) * K, (top + height) * K)
    draw.rounded_rectangle(box, 16 * K, fill=CARD, outline=SLOT, width=K)
    left = MARGIN + 18
    if image is not None:
        page.paste(image, (left * K, (top + 18) * K))
        left += IMAGE + 22
    for number, line in enumerate(_lines(panel)):
        draw.text((left * K, (top + 18 + 30 * number) * K), line, font=font(21 * K, "Sans-Bold"), fill=INK)


def _draw_token(draw: ImageDraw.ImageDraw, x: int, y: int, width: int, token: Token, last: int) -> None:
    """Draw one chip: grey while masked, in full color when it has just been filled, tinted afterwards."""
    box = (x * K, y * K, (x + width) * K, (y + CHIP) * K)
    middle = ((x + width / 2) * K, (y + CHIP / 2) * K)
    if token.forward is None:
        draw.rounded_rectangle(box, 8 * K, fill=SLOT)
        return
    color = _shade(token.forward, last)
    light = _mixed(color, CARD, 0.76)
    draw.rounded_rectangle(box, 8 * K, fill=color if token.fresh else light)
    ink = CARD if token.fresh else FAINT if token.text == END else _mixed(color, INK, 0.55)
    face = font(TEXT * K, "Sans-Bold" if token.fresh else "Sans")
    draw.text(middle, token.label, font=face, fill=ink, anchor="mm")


def _shade(forward: int, last: int) -> Color:
    """Return the color of a forward on the scale."""
    place = (forward - 1) / max(last - 1, 1) * (len(SCALE) - 1)
    low = min(int(place), len(SCALE) - 2)
    return _mixed(SCALE[low], SCALE[low + 1], place - low)


def _mixed(a: Color, b: Color, share: float) -> Color:
    r, g, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return r, g, blue


def _footer(draw: ImageDraw.ImageDraw, height: int, step: Step, steps: Sequence[Step]) -> None:
    """Draw a segment for each forward, and the counters."""
    last, y = steps[-1].forwards, height - 64
    room = WIDTH - 2 * MARGIN
    for forward in range(1, last + 1):
        x0, x1 = (MARGIN + room * (forward - 1) / last), (MARGIN + room * forward / last)
        fill = _shade(forward, last) if forward <= step.forwards else SLOT
        draw.rectangle((x0 * K, y * K, (x1 - (2 if last < 100 else 0)) * K, (y + 8) * K), fill=fill)
    words = sum(not token.masked for row in step.rows for token in row)
    left = f"forward {step.forwards} of {last}"
    right = f"{words} tokens"
    if step.forwards:
        right += f" · {words / step.forwards:.2f} per forward · {step.seconds:.2f} s"
    draw.text((MARGIN * K, (y + 32) * K), left, font=font(17 * K, "Sans-Bold"), fill=INK, anchor="lm")
    draw.text(((WIDTH - MARGIN) * K, (y + 32) * K), right, font=font(16 * K), fill=FAINT, anchor="rm")

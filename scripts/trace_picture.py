"""An answer filling in, as an animated image: one chip for each slot, coloured by the forward that filled it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from common.image_grid import font
from common.video import write_gif
from scripts.answer_trace import END, HIDDEN, Step, Word
from training.data.readers import read_image

Colour = tuple[int, int, int]
PAPER, CARD, INK, FAINT, SLOT = (246, 244, 239), (255, 255, 255), (30, 32, 38), (128, 130, 138), (232, 229, 222)
SCALE = ((72, 66, 196), (20, 140, 150), (54, 158, 92), (226, 148, 36))
"""From the first forward to the last."""
WIDTH, MARGIN, IMAGE, WORDS = 980, 24, 190, 19
CHIP, GAP, LINE = 32, 7, 40
K = 2
"""Everything is drawn so much larger and then shrunk: smooth edges."""
SHOWN_ROWS = 4
HOLD = 6
"""How often the last image is repeated."""


@dataclass(frozen=True)
class Panel:
    """What was asked: ``image`` None without one."""

    image: Path | None
    question: str


@dataclass(frozen=True)
class _Chip:
    """Place of one slot inside its panel's text area, in pixels."""

    x: int
    y: int
    width: int


def save_animation(path: Path, panels: Sequence[Panel], steps: Sequence[Step], name: str) -> None:
    """Write ``path`` (GIF). ``name``: how was decoded. Raises ``ValueError`` or ``OSError`` naming what is wrong."""
    if not steps:
        raise ValueError(f"--trace-gif {path}: nothing was said, so there is nothing to draw")
    frames = draw_frames(panels, steps, name)
    pixels = [np.asarray(frame) for frame in frames]
    write_gif(path, [*pixels, *[pixels[-1]] * HOLD], fps=3.0 if len(frames) <= 30 else 6.0, colours=256)


def draw_frames(panels: Sequence[Panel], steps: Sequence[Step], name: str) -> list[Image.Image]:
    """All slots hidden, then one image a forward, then the answer. At most ``SHOWN_ROWS`` answers are shown."""
    panels = panels[:SHOWN_ROWS]
    blank = Step(0, 0.0, [[Word(HIDDEN, None, False) for _ in row] for row in steps[0].rows])
    layouts = [_chips([step.rows[number] for step in steps], _room(panel)) for number, panel in enumerate(panels)]
    images = [None if p.image is None else _rounded(read_image(p.image)) for p in panels]
    settled = [[replace(word, fresh=False) for word in row] for row in steps[-1].rows]
    shown = [blank, *steps, replace(steps[-1], rows=settled)]
    return [_frame(panels, images, layouts, step, steps, name) for step in shown]


def _room(panel: Panel) -> int:
    """Width of the text area."""
    return WIDTH - 2 * MARGIN - 2 * 18 - (0 if panel.image is None else IMAGE + 22)


def _chips(rows: Sequence[Sequence[Word]], room: int) -> list[_Chip]:
    """A place for every slot there ever is, as wide as the word it will hold: nothing moves while it fills in."""
    count = max(len(row) for row in rows)
    words = [next((row[slot] for row in reversed(rows) if slot < len(row) and not row[slot].hidden), None)
             for slot in range(count)]  # fmt: skip
    chips: list[_Chip] = []
    x = y = 0
    for word in words:
        text = HIDDEN if word is None else _said(word)
        width = int(font(WORDS, "bold").getlength(text)) + 16
        gap = GAP if word is None or word.text.startswith(" ") or word.text == END else 2
        if chips and x + gap + width > room:
            x, y = 0, y + LINE
        elif chips:
            x += gap
        chips.append(_Chip(x, y, width))
        x += width
    return chips


def _said(word: Word) -> str:
    return "end" if word.text == END else word.text.strip().replace("\n", "⏎") or "␣"


def _height(panel: Panel, chips: Sequence[_Chip]) -> int:
    """Of a panel's card."""
    text = 30 * len(_lines(panel)) + 16 + chips[-1].y + CHIP
    return 36 + max(text, 0 if panel.image is None else IMAGE)


def _lines(panel: Panel) -> list[str]:
    """The question, broken to the room."""
    lines = [""]
    for word in panel.question.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font(21, "bold").getlength(longer) > _room(panel):
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _rounded(image: Image.Image) -> Image.Image:
    """The middle square, with round corners."""
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
    draw.text((MARGIN * K, 34 * K), "How the answer fills in", font=font(22 * K, "bold"), fill=INK, anchor="lm")
    draw.text(((WIDTH - MARGIN) * K, 34 * K), name, font=font(15 * K), fill=FAINT, anchor="rm")
    last, top = steps[-1].forwards, 62
    for number, (panel, image, chips) in enumerate(zip(panels, images, layouts, strict=True)):
        _card(page, top, heights[number], panel, image)
        left = MARGIN + 18 + (0 if image is None else IMAGE + 22)
        area = top + 18 + 30 * len(_lines(panel)) + 16
        for chip, word in zip(chips, step.rows[number], strict=False):
            _word(draw, left + chip.x, area + chip.y, chip.width, word, last)
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
        draw.text((left * K, (top + 18 + 30 * number) * K), line, font=font(21 * K, "bold"), fill=INK)


def _word(draw: ImageDraw.ImageDraw, x: int, y: int, width: int, word: Word, last: int) -> None:
    """One chip: grey while hidden, in full colour when it has just been filled, tinted afterwards."""
    box = (x * K, y * K, (x + width) * K, (y + CHIP) * K)
    middle = ((x + width / 2) * K, (y + CHIP / 2) * K)
    if word.born is None:
        draw.rounded_rectangle(box, 8 * K, fill=SLOT)
        return
    colour = _shade(word.born, last)
    light = _mixed(colour, CARD, 0.76)
    draw.rounded_rectangle(box, 8 * K, fill=colour if word.fresh else light)
    ink = CARD if word.fresh else FAINT if word.text == END else _mixed(colour, INK, 0.55)
    face = font(WORDS * K, "bold" if word.fresh else "sans")
    draw.text(middle, _said(word), font=face, fill=ink, anchor="mm")


def _shade(forward: int, last: int) -> Colour:
    """The colour of a forward on the scale."""
    place = (forward - 1) / max(last - 1, 1) * (len(SCALE) - 1)
    low = min(int(place), len(SCALE) - 2)
    return _mixed(SCALE[low], SCALE[low + 1], place - low)


def _mixed(a: Colour, b: Colour, share: float) -> Colour:
    r, g, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return r, g, blue


def _footer(draw: ImageDraw.ImageDraw, height: int, step: Step, steps: Sequence[Step]) -> None:
    """A segment for each forward, and the counters."""
    last, y = steps[-1].forwards, height - 64
    room = WIDTH - 2 * MARGIN
    for forward in range(1, last + 1):
        x0, x1 = (MARGIN + room * (forward - 1) / last), (MARGIN + room * forward / last)
        fill = _shade(forward, last) if forward <= step.forwards else SLOT
        draw.rectangle((x0 * K, y * K, (x1 - (2 if last < 100 else 0)) * K, (y + 8) * K), fill=fill)
    words = sum(not word.hidden for row in step.rows for word in row)
    left = f"forward {step.forwards} of {last}"
    right = f"{words} tokens"
    if step.forwards:
        right += f" · {words / step.forwards:.2f} per forward · {step.seconds:.2f} s"
    draw.text((MARGIN * K, (y + 32) * K), left, font=font(17 * K, "bold"), fill=INK, anchor="lm")
    draw.text(((WIDTH - MARGIN) * K, (y + 32) * K), right, font=font(16 * K), fill=FAINT, anchor="rm")

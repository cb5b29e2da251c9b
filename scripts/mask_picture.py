"""The mask of one sequence as an image: a square for every pair (query, key), spans named along both sides."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw

from scripts.mask_layouts import MASK, Layout
from scripts.typeface import font

Colour = tuple[int, int, int]
PAPER, INK, FAINT, HAIR, EMPTY = (252, 251, 248), (34, 36, 42), (128, 130, 138), (226, 224, 218), (242, 240, 235)
SPAN_COLOURS: dict[str, Colour] = {
    "instruction": (92, 107, 130),
    "system": (92, 107, 130),
    "question": (62, 124, 150),
    "picture": (214, 148, 44),
    "image": (214, 148, 44),
    "<|lvg|>": (178, 74, 74),
    "clean answer": (47, 110, 186),
    "clean actions": (47, 110, 186),
    "view 1": (126, 87, 178),
    "view 2": (30, 145, 118),
    "padding": (190, 188, 182),
}
OTHER_VIEWS: Colour = (150, 110, 70)
RULES = {
    "mmu": "Clean slots look back, and everybody sees the image.",
    "robot": "Text, <|lvg|> and clean actions look back; the image span sees all of the robot flow.",
    "view": "A slot of a view sees the clean slots before its block, and its own block in its own view.",
}
LABELS_FROM = 11
"""Pixels of a square from which on slots are named one by one."""
GRID_FROM = 12
"""Pixels of a block from which on a line is drawn around it: a grid of thousands would hide the squares."""


@dataclass(frozen=True)
class _Page:
    """Where things are, in pixels. ``scale``: everything is drawn so much larger and then shrunk (smooth edges)."""

    cell: int
    left: int
    top: int
    count: int
    right: int
    scale: int = 2

    @property
    def size(self) -> tuple[int, int]:
        side = self.cell * self.count
        return self.left + side + self.right, self.top + side

    def at(self, column: int) -> int:
        return (self.left + column * self.cell) * self.scale

    def down(self, row: int) -> int:
        return (self.top + row * self.cell) * self.scale


def page_of(layout: Layout) -> _Page:
    """The page that a layout is drawn on."""
    count = layout.sequence.ids.shape[1]
    cell = max(2, min(24, 1100 // count))
    labelled = cell >= LABELS_FROM
    left, top = (188, 118) if labelled else (124, 104)
    return _Page(cell, left, top, count, right=_right_margin(layout) if labelled else 30)


def draw_mask(layout: Layout, title: str, note: str) -> Image.Image:
    """``title`` above, ``note`` (how to read it) below."""
    sequence, page = layout.sequence, page_of(layout)
    mask = sequence.rule.dense(sequence.slots)[0, 0]  # [L, L], the one mask that training reads
    labelled = page.cell >= LABELS_FROM
    lines = _legend(layout, note)
    width, height = max(page.size[0], 640), page.size[1] + 30 + 24 * len(lines)
    k = page.scale
    image = Image.new("RGB", (width * k, height * k), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((20 * k, 14 * k), title, font=font(19 * k, "bold"), fill=INK)
    _squares(draw, page, mask, layout)
    _blocks(draw, page, layout)
    _headings(image, page, layout)
    if labelled:
        _slot_names(draw, page, layout)
    for number, (colour, text) in enumerate(lines):
        y = (page.size[1] + 22 + 24 * number) * k
        if colour is not None:
            draw.rounded_rectangle((20 * k, y + 2 * k, 34 * k, y + 16 * k), 3 * k, fill=colour)
        draw.text(((42 if colour else 20) * k, y), text, font=font(13 * k), fill=INK if colour else FAINT)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _colour(name: str) -> Colour:
    return SPAN_COLOURS.get(name, OTHER_VIEWS)


def _colours(layout: Layout) -> list[Colour]:
    """Of each slot."""
    return [_colour(name) for name, span in layout.spans for _ in range(len(span))]


def _squares(draw: ImageDraw.ImageDraw, page: _Page, mask: torch.Tensor, layout: Layout) -> None:
    """What a query sees has the colour of the key's span."""
    colours, gap = _colours(layout), page.scale if page.cell >= 5 else 0
    for row, line in enumerate(mask.tolist()):
        y, y1 = page.down(row), page.down(row + 1) - gap
        for column, seen in enumerate(line):
            fill = colours[column] if seen else EMPTY
            draw.rectangle((page.at(column), y, page.at(column + 1) - gap - 1, y1 - 1), fill=fill)


def _blocks(draw: ImageDraw.ImageDraw, page: _Page, layout: Layout) -> None:
    """Lines between spans, and finer ones between the blocks of a view."""
    slots = layout.sequence.slots
    starts, views = slots.block_start[0].tolist(), int(slots.copy_id[0].max())
    ends = {span.start for _, span in layout.spans if span.start}
    k, low, high = page.scale, page.at(0), page.at(page.count)
    for column in range(1, page.count):
        edge = column in ends
        narrow = starts.count(starts[column]) // max(views, 1) * page.cell < GRID_FROM
        if not edge and (narrow or starts[column] == starts[column - 1]):
            continue
        x, y, wide = page.at(column) - k // 2, page.down(column) - k // 2, (2 if edge else 1) * k
        colour = INK if edge else FAINT
        draw.line((x, page.down(0), x, page.down(page.count)), fill=colour, width=wide)
        draw.line((low, y, high, y), fill=colour, width=wide)


def _headings(image: Image.Image, page: _Page, layout: Layout) -> None:
    """A coloured bar over the columns and beside the rows of each span, with its name where it fits."""
    draw = ImageDraw.Draw(image)
    k, labelled = page.scale, page.cell >= LABELS_FROM
    bar_y, bar_x = (page.top - (30 if labelled else 12)) * k, (page.left - (64 if labelled else 12)) * k
    for name, span in layout.spans:
        colour, room = _colour(name), len(span) * page.cell
        draw.rectangle((page.at(span.start) + k, bar_y, page.at(span.stop) - 2 * k, bar_y + 5 * k), fill=colour)
        draw.rectangle((bar_x, page.down(span.start) + k, bar_x + 5 * k, page.down(span.stop) - 2 * k), fill=colour)
        middle = (page.at(span.start) + page.at(span.stop)) // 2
        words = _fitting(name, room, 13)
        if words:
            draw.text((middle, bar_y - 7 * k), words, font=font(13 * k, "bold"), fill=colour, anchor="ms")
        else:  # too narrow: written upwards
            _upwards(image, (middle, bar_y - 4 * k), name, colour, k)
        row = (page.down(span.start) + page.down(span.stop)) // 2
        draw.text((bar_x - 6 * k, row), name, font=font(12 * k, "bold"), fill=colour, anchor="rm")


def _fitting(name: str, room: int, size: int) -> str:
    return name if font(size, "bold").getlength(name) <= room - 2 else ""


def _upwards(image: Image.Image, foot: tuple[int, int], name: str, colour: Colour, k: int) -> None:
    face = font(11 * k, "bold")
    width, height = int(face.getlength(name)) + 4, 16 * k
    strip = Image.new("RGB", (width, height), PAPER)
    ImageDraw.Draw(strip).text((2, height // 2), name, font=face, fill=colour, anchor="lm")
    turned = strip.rotate(38, expand=True, fillcolor=PAPER, resample=Image.Resampling.BICUBIC)
    image.paste(turned, (foot[0] - 6 * k, foot[1] - turned.height + 4 * k))


def _slot_names(draw: ImageDraw.ImageDraw, page: _Page, layout: Layout) -> None:
    k, colours = page.scale, _colours(layout)
    size = min(11, page.cell - 2)
    for slot, name in enumerate(layout.names):
        short = name if len(name) <= 8 else f"{name[:7]}…"
        centre = page.down(slot) + page.cell * k // 2
        draw.text((page.at(0) - 6 * k, centre), short, font=font(size * k, "mono"), fill=colours[slot], anchor="rm")
        bare = name.strip("<|>")
        if len(bare) <= 3:
            x = page.at(slot) + page.cell * k // 2
            small = font((size if len(bare) < 3 else size - 2) * k, "mono")
            draw.text((x, page.down(0) - 7 * k), bare, font=small, fill=colours[slot], anchor="ms")
        told = _told(layout, slot)
        if told:
            draw.text((page.at(page.count) + 8 * k, centre), told, font=font(11 * k, "mono"), fill=INK, anchor="lm")


def _told(layout: Layout, slot: int) -> str:
    return ", ".join(f"→ {r.target} ×{r.weight:.3g}" for r in layout.readings.get(slot, []))


def _right_margin(layout: Layout) -> int:
    longest = max((font(11, "mono").getlength(_told(layout, slot)) for slot in layout.readings), default=0)
    return int(longest) + 30


def _legend(layout: Layout, note: str) -> list[tuple[Colour | None, str]]:
    """(colour, line) of everything under the image."""
    names = dict.fromkeys(name for name, _ in layout.spans)
    lengths = {n: sum(len(s) for name, s in layout.spans if name == n) for n in names}
    lines: list[tuple[Colour | None, str]] = [(_colour(name), f"{name}, {lengths[name]} slots") for name in names]
    lines.append((None, RULES["robot" if layout.sequence.actions else "mmu"]))
    if any(name.startswith("view") for name in names):
        lines.append((None, RULES["view"]))
    lines.append((None, "A row is a query; a coloured square is a key it sees." + (f" {note}" if note else "")))
    if layout.readings:
        lines.append((None, f"{MASK} is a hidden token; → token ×w: what a slot predicts, and its weight in the loss."))
    return lines

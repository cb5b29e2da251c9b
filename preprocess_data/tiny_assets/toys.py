"""Draw toys on a table: small images whose content is known.

Up to four toys lie in the four corners of a table. No two toys of an image share a colour or a shape, so that either
identifies a toy.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"red": (214, 40, 40), "green": (44, 150, 70), "blue": (40, 84, 200), "yellow": (242, 196, 30)}
SHAPES = ("ball", "box", "star", "ring")
CORNERS = ("top left", "top right", "bottom left", "bottom right")
TABLES = ((222, 205, 180), (198, 176, 146), (232, 228, 220), (206, 212, 216))
"""Colours of the table: two woods, cloth, slate."""
SIDE = 112
"""Pixels: the input size of the small CLIP tower, so that images are not resized again."""
OVERSAMPLING = 2
HELD_OUT = 5
"""Every fifth arrangement is never trained on."""


@dataclass(frozen=True)
class Toy:
    """A toy; ``COLOURS`` and ``SHAPES`` list the possible values."""

    colour: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.colour} {self.shape}"


Scene = tuple[Toy | None, ...]
"""The contents of each of `CORNERS`."""


def toys(scene: Scene) -> list[Toy]:
    """Return the toys in reading order."""
    return [toy for toy in scene if toy is not None]


def is_held_out(scene: Scene) -> bool:
    """Return whether an arrangement belongs to the held-out split.

    The arrangement alone decides, so that the two splits share none, with any random numbers.
    """
    return zlib.crc32(",".join(map(str, scene)).encode()) % HELD_OUT == 0


def random_scene(rng: np.random.Generator, count: int, held_out: bool) -> Scene:
    """Draw `count` toys of different colours and shapes; all arrangements of the split are equally likely."""
    while True:
        corners = rng.permutation(len(CORNERS))[:count]
        colours, shapes = rng.permutation(list(COLOURS))[:count], rng.permutation(SHAPES)[:count]
        contents = {int(i): Toy(str(c), str(s)) for i, c, s in zip(corners, colours, shapes, strict=True)}
        scene = tuple(contents.get(corner) for corner in range(len(CORNERS)))
        if is_held_out(scene) == held_out:
            return scene


def random_scenes(count: int, rng: np.random.Generator, held_out: bool) -> list[Scene]:
    """Draw scenes of one, two, three and four toys equally often."""
    return [random_scene(rng, 1 + index % len(CORNERS), held_out) for index in range(count)]


def draw(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Draw the table from above, RGB, `SIDE` pixels, with random table, sizes, angles and positions in the corners."""
    side = SIDE * OVERSAMPLING
    image = Image.new("RGB", (side, side), TABLES[int(rng.integers(len(TABLES)))])
    brush = ImageDraw.Draw(image)
    for corner, toy in enumerate(scene):
        if toy is None:
            continue
        x, y = (side * (0.25 + 0.5 * half + rng.uniform(-0.05, 0.05)) for half in (corner % 2, corner // 2))
        _draw_toy(brush, toy, x, y, radius=side * rng.uniform(0.13, 0.18), angle=rng.uniform(-0.3, 0.3))
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)


def _draw_toy(brush: ImageDraw.ImageDraw, toy: Toy, x: float, y: float, radius: float, angle: float) -> None:
    colour = COLOURS[toy.colour]
    box = (x - radius, y - radius, x + radius, y + radius)
    if toy.shape == "ball":
        brush.ellipse(box, fill=colour)
    elif toy.shape == "ring":
        brush.ellipse(box, outline=colour, width=round(0.42 * radius))
    elif toy.shape == "box":
        brush.polygon(_polygon(x, y, [1.2 * radius] * 4, angle + math.pi / 4), fill=colour)
    else:
        brush.polygon(_polygon(x, y, [1.25 * radius, 0.5 * radius] * 5, angle - math.pi / 2), fill=colour)


def _polygon(x: float, y: float, radii: list[float], angle: float) -> list[tuple[float, float]]:
    """Return the corners of a polygon at these distances from its centre, at equal angles."""
    angles = [angle + 2 * math.pi * i / len(radii) for i in range(len(radii))]
    return [(x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]

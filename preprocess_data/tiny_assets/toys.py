"""Toys on a table: small generated images of which everything is known.

Up to four toys lie in the four corners of a table. No two of an image share a colour or a shape, so that a colour or a
shape alone names a toy.
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
"""What the toys lie on: two woods, cloth, slate."""
SIDE = 112
"""Pixels: what the small CLIP tower reads, so that nothing is resized twice."""
OVERSAMPLING = 2
HELD_OUT = 5
"""One arrangement in so many is never trained on."""


@dataclass(frozen=True)
class Toy:
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.colour} {self.shape}"


Scene = tuple[Toy | None, ...]
"""What lies in each of `CORNERS`."""


def toys(scene: Scene) -> list[Toy]:
    """In reading order."""
    return [toy for toy in scene if toy is not None]


def is_held_out(scene: Scene) -> bool:
    """Does this arrangement belong to the held-out split? Decided by what lies where, so that the two splits share no
    arrangement, whoever draws them."""
    return zlib.crc32(",".join(map(str, scene)).encode()) % HELD_OUT == 0


def random_scene(rng: np.random.Generator, count: int, held_out: bool) -> Scene:
    """`count` toys of different colours and shapes; every arrangement of the split equally likely."""
    while True:
        corners = rng.permutation(len(CORNERS))[:count]
        colours, shapes = rng.permutation(list(COLOURS))[:count], rng.permutation(SHAPES)[:count]
        lying = {int(at): Toy(str(c), str(s)) for at, c, s in zip(corners, colours, shapes, strict=True)}
        scene = tuple(lying.get(corner) for corner in range(len(CORNERS)))
        if is_held_out(scene) == held_out:
            return scene


def random_scenes(count: int, rng: np.random.Generator, held_out: bool) -> list[Scene]:
    """One, two, three and four toys equally often."""
    return [random_scene(rng, 1 + index % len(CORNERS), held_out) for index in range(count)]


def draw(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """The table from above, RGB, `SIDE` pixels. Table, sizes, turns and places within the corners are drawn."""
    side = SIDE * OVERSAMPLING
    image = Image.new("RGB", (side, side), TABLES[int(rng.integers(len(TABLES)))])
    brush = ImageDraw.Draw(image)
    for corner, toy in enumerate(scene):
        if toy is None:
            continue
        x, y = (side * (0.25 + 0.5 * at + rng.uniform(-0.05, 0.05)) for at in (corner % 2, corner // 2))
        _draw_toy(brush, toy, x, y, radius=side * rng.uniform(0.13, 0.18), turn=rng.uniform(-0.3, 0.3))
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)


def _draw_toy(brush: ImageDraw.ImageDraw, toy: Toy, x: float, y: float, radius: float, turn: float) -> None:
    colour = COLOURS[toy.colour]
    around = (x - radius, y - radius, x + radius, y + radius)
    if toy.shape == "ball":
        brush.ellipse(around, fill=colour)
    elif toy.shape == "ring":
        brush.ellipse(around, outline=colour, width=round(0.42 * radius))
    elif toy.shape == "box":
        brush.polygon(_around(x, y, [1.2 * radius] * 4, turn + math.pi / 4), fill=colour)
    else:
        brush.polygon(_around(x, y, [1.25 * radius, 0.5 * radius] * 5, turn - math.pi / 2), fill=colour)


def _around(x: float, y: float, reach: list[float], turn: float) -> list[tuple[float, float]]:
    """Corners of a polygon, at these distances from its middle, in equal angles."""
    angles = [turn + 2 * math.pi * i / len(reach) for i in range(len(reach))]
    return [(x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(reach, angles, strict=True)]

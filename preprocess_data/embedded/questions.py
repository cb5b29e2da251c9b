"""Questions about pictures of the desk whose answers are in the picture and nowhere else.

Answers come from the simulator's state; every kind of question has its answers in equal shares, so that a model that
does not look can do no better than guess.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

COLOURS = ("red", "blue", "pink")
SLIDER, DRAWER, BULB, LED = 0, 1, 4, 5
"""Where `scene_obs` keeps the doors and lights."""
FIRST_BLOCK, PER_BLOCK = 6, 6
DRAWER_OPEN_M, SLIDER_LEFT_M = 0.10, 0.14
TABLE_Z_M = 0.44
CLEAR_GAP_M = 0.05
"""Blocks closer than this in x are not asked which is further left: a person would hesitate too."""

Scene = np.ndarray
Answer = str | None


@dataclass(frozen=True)
class Kind:
    """One kind of question: phrasings, the answers it can have, and how to read the answer off `scene_obs` (24);
    None where this scene has no clear answer."""

    name: str
    phrasings: tuple[str, ...]
    answers: tuple[str, ...]
    read: Callable[[Scene], Answer]


def block_position(scene: Scene, colour: str) -> np.ndarray:
    """x, y, z in metres of a block."""
    start = FIRST_BLOCK + PER_BLOCK * COLOURS.index(colour)
    return np.asarray(scene[start : start + 3])


def _lies_on_table(scene: Scene, colour: str) -> bool:
    _, y, z = block_position(scene, colour)
    return bool(y < 0.0 and z > TABLE_Z_M)


def _extreme(scene: Scene, sign: int) -> Answer:
    seen = [colour for colour in COLOURS if _lies_on_table(scene, colour)]
    ordered = sorted((sign * float(block_position(scene, colour)[0]), colour) for colour in seen)
    if len(ordered) < 2 or ordered[1][0] - ordered[0][0] < CLEAR_GAP_M:
        return None
    return ordered[0][1]


def _place(scene: Scene, colour: str) -> Answer:
    x, y, z = block_position(scene, colour)
    if y > 0.0:
        return "in the cabinet"
    if abs(x) < CLEAR_GAP_M or z < TABLE_Z_M:  # near the middle, or inside the drawer
        return None
    return "on the left of the table" if x < 0 else "on the right of the table"


def _on_table(scene: Scene) -> Answer:
    return ("none", "one", "two", "three")[sum(_lies_on_table(scene, colour) for colour in COLOURS)]


KINDS: tuple[Kind, ...] = (
    Kind(
        "drawer",
        ("Is the drawer open or closed?", "What state is the drawer in, open or closed?"),
        ("open", "closed"),
        lambda scene: "open" if scene[DRAWER] > DRAWER_OPEN_M else "closed",
    ),
    Kind(
        "slider",
        ("Is the sliding door on the left or on the right?", "Where is the sliding door?"),
        ("on the left", "on the right"),
        lambda scene: "on the left" if scene[SLIDER] > SLIDER_LEFT_M else "on the right",
    ),
    Kind(
        "bulb",
        ("Is the light bulb on or off?", "Does the light bulb shine?"),
        ("the bulb is on", "the bulb is off"),
        lambda scene: "the bulb is on" if scene[BULB] > 0.5 else "the bulb is off",
    ),
    Kind(
        "led",
        ("Is the green LED on or off?", "Does the LED shine?"),
        ("the LED is on", "the LED is off"),
        lambda scene: "the LED is on" if scene[LED] > 0.5 else "the LED is off",
    ),
    Kind(
        "leftmost",
        ("Which block on the table is furthest to the left?", "Name the colour of the leftmost block on the table."),
        COLOURS,
        lambda scene: _extreme(scene, 1),
    ),
    Kind(
        "rightmost",
        ("Which block on the table is furthest to the right?", "Name the colour of the rightmost block on the table."),
        COLOURS,
        lambda scene: _extreme(scene, -1),
    ),
    *(
        Kind(
            f"where_{colour}",
            (f"Where is the {colour} block?", f"Where do you see the {colour} block?"),
            ("in the cabinet", "on the left of the table", "on the right of the table"),
            lambda scene, colour=colour: _place(scene, colour),  # type: ignore[misc]
        )
        for colour in COLOURS
    ),
    Kind("count", ("How many blocks are on the table?",), ("one", "two"), _on_table),
)


def sentences() -> Iterator[tuple[str, str]]:
    """Every question with every answer it can have: the tokenizer's text."""
    for kind in KINDS:
        for phrasing in kind.phrasings:
            for answer in kind.answers:
                yield phrasing, answer


def balanced(scenes: Sequence[Scene], per_kind: int, rng: np.random.Generator) -> list[tuple[int, Kind, str]]:
    """(scene, kind, answer) triples with each answer of a kind equally often, as far as the scenes have it."""
    chosen: list[tuple[int, Kind, str]] = []
    for kind in KINDS:
        by_answer: dict[str, list[int]] = {answer: [] for answer in kind.answers}
        for index, scene in enumerate(scenes):
            answer = kind.read(scene)
            if answer is not None and answer in by_answer:
                by_answer[answer].append(index)
        share = min([per_kind // len(kind.answers), *(len(found) for found in by_answer.values())])
        for answer, found in by_answer.items():
            for index in rng.permutation(found)[:share]:
                chosen.append((int(index), kind, answer))
    return chosen

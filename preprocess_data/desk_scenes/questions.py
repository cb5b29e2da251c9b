"""Questions about places on the desk, with answers that only the image determines.

Kinds: where a block is (surface and cell), where a handle, the button or the switch is (cell), which block is on a
surface, which block is next to an object, and which of two blocks is further left. Of all questions about a scene those
are taken whose answers were given least often, so that the answers of a question occur about equally often.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from policy_rollout.calvin.scene_state import KEYS, Regions, symbolic_state
from policy_rollout.calvin.tasks import COLOURS
from policy_rollout.desk.layout import SLIDE_RANGE, Layout
from preprocess_data.desk_scenes.grid import SURFACES, cell_words
from preprocess_data.desk_scenes.objects import BLOCKS, OBJECTS, block_positions, object_positions

Array = npt.NDArray[np.float64]

FURNITURE = {
    "drawer handle": "the handle of the drawer",
    "door handle": "the handle of the sliding door",
    "button": "the button",
    "switch": "the switch",
}
KINDS = ("where is the block", "where is the furniture", "which is there", "what is beside", "which is further left")
NONE = "none of them"
APART = 0.03
"""Metres along x by which an object has to be left or right of another."""


@dataclass(frozen=True)
class PlaceQuestion:
    """A question about a scene, its answer, and the true position (x, y, z) if the answer names a cell.

    ``answer_class``: what has to occur equally often.
    """

    kind: str
    text: str
    answer: str
    answer_class: str
    position: tuple[float, ...] | None = None


def all_questions(layout: Layout | None, scene_obs: Array, robot_obs: Array) -> Iterator[PlaceQuestion]:
    """Yield every question about a state that has one answer.

    ``layout``: None for the real CALVIN, where only blocks have a known position.
    """
    if layout is None:
        regions, names, table = Regions(), BLOCKS, block_positions(scene_obs)
    else:
        regions = Regions(shelf_split_x=layout.door_x - SLIDE_RANGE[1] / 2)
        names, table = OBJECTS, object_positions(layout, scene_obs)
    state = symbolic_state(scene_obs, robot_obs, regions=regions)
    positions = dict(zip(names, table.tolist(), strict=True))
    places = {colour: str(state[key]) for colour, key in zip(COLOURS, KEYS, strict=True)}
    yield from _where_blocks(places, positions)
    for name, words in FURNITURE.items():
        if name not in positions:
            continue
        cell = cell_words(positions[name])
        yield PlaceQuestion(KINDS[1], f"Where is {words}?", f"{cell}.".capitalize(), cell, tuple(positions[name]))
    if "elsewhere" not in places.values():
        yield from _which(places)
    yield from _neighbours(positions)
    yield from _further_left(positions)


def _where_blocks(places: Mapping[str, str], positions: Mapping[str, Sequence[float]]) -> Iterator[PlaceQuestion]:
    below = [colour for colour, place in places.items() if place == "stacked_bottom"]
    for colour, place in places.items():
        position = positions[f"{colour} block"]
        if place == "stacked_top" and below:
            words = f"on the {below[0]} block"
        elif place in SURFACES:
            words = SURFACES[place]
        else:  # in motion, or under another block
            continue
        text = f"{words}, {cell_words(position)}."
        yield PlaceQuestion(
            KINDS[0], f"Where is the {colour} block?", text[0].upper() + text[1:], words, tuple(position)
        )


def _which(places: Mapping[str, str]) -> Iterator[PlaceQuestion]:
    for place, words in SURFACES.items():
        found = [f"the {colour} block" for colour, of in places.items() if of == place]
        answer = " and ".join(found) if found else NONE
        yield PlaceQuestion(KINDS[2], f"Which block is {words}?", f"{answer}.".capitalize(), answer)


def _neighbours(positions: Mapping[str, Sequence[float]]) -> Iterator[PlaceQuestion]:
    blocks = {f"{colour} block": f"the {colour} block" for colour in COLOURS}
    for name, words in {**FURNITURE, **blocks}.items():
        for side, sign in (("left", -1.0), ("right", 1.0)):
            if name not in positions:
                continue
            at = np.asarray(positions[name])
            found = []
            for colour in COLOURS:
                other = np.asarray(positions[f"{colour} block"])
                if name != f"{colour} block" and sign * (other[0] - at[0]) > APART:
                    found.append((float(np.linalg.norm(other[:2] - at[:2])), colour))
            answer = f"the {min(found)[1]} block" if found else NONE
            text = f"Which block is nearest to the {side} of {words}?"
            yield PlaceQuestion(KINDS[3], text, f"{answer}.".capitalize(), answer)


def _further_left(positions: Mapping[str, Sequence[float]]) -> Iterator[PlaceQuestion]:
    for number, first in enumerate(COLOURS):
        for second in COLOURS[number + 1 :]:
            distance = positions[f"{first} block"][0] - positions[f"{second} block"][0]
            if abs(distance) > APART:
                answer = f"the {first if distance < 0 else second} block"
                text = f"Which is further left, the {first} block or the {second} block?"
                yield PlaceQuestion(KINDS[4], text, f"{answer}.".capitalize(), answer)


class Balance:
    """Chooses questions so that kinds, questions and their answers occur about equally often."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._kinds: Counter[str] = Counter()
        self._texts: Counter[str] = Counter()
        self._answers: Counter[tuple[str, str]] = Counter()

    def choose(self, questions: Sequence[PlaceQuestion], count: int) -> list[PlaceQuestion]:
        """Return at most ``count`` questions, of different kinds as far as possible, rare answers first."""
        left = [questions[i] for i in self._rng.permutation(len(questions))]
        chosen: list[PlaceQuestion] = []
        while left and len(chosen) < count:
            kinds = {question.kind for question in chosen}
            best = min(left, key=lambda q: (q.kind in kinds, self._kinds[q.kind], *self._rarity(q)))
            left = [question for question in left if question.text != best.text]
            chosen.append(best)
            self._kinds[best.kind] += 1
            self._texts[best.text] += 1
            self._answers[best.text, best.answer_class] += 1
        return chosen

    def _rarity(self, question: PlaceQuestion) -> tuple[int, int]:
        return self._answers[question.text, question.answer_class], self._texts[question.text]

"""Questions about toys on a table whose answers are in the image and nowhere else.

Every question has its answers in equal shares, so that a model that does not look is right exactly as often as its one
guess is true (`blind_floor`), however well it knows the language. Answers have 5 to 12 words
and signs; where a list ends has to be seen, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from preprocess_data.tiny_assets.toys import COLOURS, CORNERS, SHAPES, Scene, Toy, toys

NUMBERS = ("one", "two", "three", "four")
PAIRS = tuple(str(Toy(colour, shape)) for colour in COLOURS for shape in SHAPES)


@dataclass(frozen=True)
class Kind:
    """One kind of question: `subjects` it is asked about, `answers` it can have, `read(scene, subject)` (None where it
    cannot be asked), and the words of both; `{s}` stands for the subject, `{a}` for the answer."""

    name: str
    subjects: tuple[str, ...]
    answers: tuple[str, ...]
    read: Callable[[Scene, str], str | None]
    question: str
    sentence: str

    def ask(self, subject: str) -> str:
        return self.question.format(s=subject)

    def say(self, subject: str, answer: str) -> str:
        text = self.sentence.format(s=subject, a=answer)
        return text[0].upper() + text[1:]


@dataclass(frozen=True)
class Asked:
    """One question about the scene of this number."""

    scene: int
    kind: str
    question: str
    answer: str


def _found(scene: Scene, word: str) -> tuple[str, Toy] | None:
    """Corner and toy that this colour or shape names."""
    for corner, toy in zip(CORNERS, scene, strict=True):
        if toy is not None and word in (toy.colour, toy.shape):
            return corner, toy
    return None


def _colour(scene: Scene, shape: str) -> str | None:
    found = _found(scene, shape)
    return found and found[1].colour


def _shape(scene: Scene, colour: str) -> str | None:
    found = _found(scene, colour)
    return found and found[1].shape


def _place(scene: Scene, colour: str) -> str | None:
    found = _found(scene, colour)
    return found and found[0]


def _corner(scene: Scene, corner: str) -> str | None:
    toy = scene[CORNERS.index(corner)]
    return None if toy is None else str(toy)


def listing(scene: Scene) -> str:
    """All toys in reading order."""
    return ", ".join(f"{toy.colour} {toy.shape}" for toy in toys(scene))


TABLE = ("table",)
KINDS: tuple[Kind, ...] = (
    Kind("colour", SHAPES, tuple(COLOURS), _colour, "What colour is the {s}?", "The {s} is {a}."),
    Kind("shape", tuple(COLOURS), SHAPES, _shape, "Which toy is {s}?", "The {a} is {s}."),
    Kind("place", tuple(COLOURS), CORNERS, _place, "Where is the {s} toy?", "The {s} toy is in the {a} corner."),
    Kind("corner", CORNERS, PAIRS, _corner, "What is in the {s} corner?", "In the {s} corner is {a}."),
    Kind(
        "count",
        TABLE,
        NUMBERS,
        lambda scene, _: NUMBERS[len(toys(scene)) - 1],
        "How many toys are on the {s}?",
        "I count {a} on the {s}.",
    ),
)
LIST = Kind("list", TABLE, (), lambda scene, _: listing(scene), "Name the toys on the {s}.", "{a}.")
"""Too many answers to balance one by one; scenes are listed once each."""
NAMES = (*(kind.name for kind in KINDS), LIST.name)


def balanced(scenes: Sequence[Scene], per_kind: int, rng: np.random.Generator) -> list[Asked]:
    """About `per_kind` questions of each kind; each subject of a kind is asked about equally often, with each of its
    answers equally often. Raises `ValueError` where the scenes do not have them."""
    asked: list[Asked] = []
    for kind in KINDS:
        share = per_kind // (len(kind.subjects) * len(kind.answers))
        for subject in kind.subjects:
            read = [kind.read(scene, subject) for scene in scenes]
            for answer in kind.answers:
                found = [index for index, here in enumerate(read) if here == answer]
                if len(found) < share or share == 0:
                    raise ValueError(
                        f"{len(scenes)} scenes hold {len(found)} for {kind.ask(subject)!r} {answer!r}, "
                        f"and {per_kind} questions a kind ask {share} of them; give more scenes"
                    )
                words = kind.ask(subject), kind.say(subject, answer)
                asked += [Asked(int(index), kind.name, *words) for index in rng.permutation(found)[:share]]
    for index in rng.permutation(len(scenes))[:per_kind]:
        words = LIST.ask(TABLE[0]), LIST.say(TABLE[0], listing(scenes[index]))
        asked.append(Asked(int(index), LIST.name, *words))
    return asked


def kind_of(question: str) -> str:
    """Name of the kind that a question is of. Raises `ValueError` for a question that nobody here asks."""
    for kind in (*KINDS, LIST):
        if question in map(kind.ask, kind.subjects):
            return kind.name
    raise ValueError(f"{question!r} is no question about toys")


def blind_floor(pairs: Sequence[tuple[str, str]]) -> float:
    """Share of (question, answer) pairs that the best fixed answer to each question gets right."""
    if not pairs:
        raise ValueError("there is no floor of no questions")
    by_question: dict[str, Counter[str]] = {}
    for question, answer in pairs:
        by_question.setdefault(question, Counter())[answer] += 1
    return sum(max(counts.values()) for counts in by_question.values()) / len(pairs)


def sentences() -> Iterator[tuple[str, str]]:
    """Every question with every answer it can have (of the lists: a pair in each place): the tokenizer's text."""
    for kind in KINDS:
        for subject in kind.subjects:
            for answer in kind.answers:
                yield kind.ask(subject), kind.say(subject, answer)
    for first, last in zip(PAIRS, reversed(PAIRS), strict=True):
        yield LIST.ask(TABLE[0]), LIST.say(TABLE[0], ", ".join((first, last, first)).replace("a ", ""))

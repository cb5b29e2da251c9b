"""Generate questions about toys on a table whose answers only the image determines.

The answers of each question occur equally often, so that a model without the image is right as often as its best guess
(`blind_floor`), however well it knows the language. Answers have 5 to 12 words and punctuation marks; the end of a list
depends on the image too.
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
    """A kind of question.

    ``subjects``: what it can be about; ``answers``: all possible ones; ``read(scene, subject)``: the answer, None if
    the question does not apply; ``question``, ``sentence``: templates with `{s}` for the subject, `{a}` for the answer.
    """

    name: str
    subjects: tuple[str, ...]
    answers: tuple[str, ...]
    read: Callable[[Scene, str], str | None]
    question: str
    sentence: str

    def question_about(self, subject: str) -> str:
        """Return the question about a subject."""
        return self.question.format(s=subject)

    def answer_sentence(self, subject: str, answer: str) -> str:
        """Return an answer as a sentence."""
        text = self.sentence.format(s=subject, a=answer)
        return text[0].upper() + text[1:]


@dataclass(frozen=True)
class SceneQuestion:
    """A question and its answer about the scene of this number."""

    scene: int
    kind: str
    question: str
    answer: str


def _found(scene: Scene, word: str) -> tuple[str, Toy] | None:
    """Return corner and toy that a colour or a shape identifies."""
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
    """Return all toys in reading order."""
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
"""Answers are not balanced, because there are too many; each scene is listed at most once."""
NAMES = (*(kind.name for kind in KINDS), LIST.name)


def balanced(scenes: Sequence[Scene], per_kind: int, rng: np.random.Generator) -> list[SceneQuestion]:
    """Draw about `per_kind` questions of each kind: subjects equally often, and each subject's answers equally often.

    Raises `ValueError` if the scenes are too few.
    """
    questions: list[SceneQuestion] = []
    for kind in KINDS:
        share = per_kind // (len(kind.subjects) * len(kind.answers))
        for subject in kind.subjects:
            answers = [kind.read(scene, subject) for scene in scenes]
            for answer in kind.answers:
                found = [index for index, other in enumerate(answers) if other == answer]
                question = kind.question_about(subject)
                if len(found) < share or share == 0:
                    raise ValueError(
                        f"{len(scenes)} scenes hold {len(found)} for {question!r} {answer!r}, "
                        f"and {per_kind} questions a kind need {share} of them; give more scenes"
                    )
                texts = question, kind.answer_sentence(subject, answer)
                questions += [SceneQuestion(int(i), kind.name, *texts) for i in rng.permutation(found)[:share]]
    for index in rng.permutation(len(scenes))[:per_kind]:
        texts = LIST.question_about(TABLE[0]), LIST.answer_sentence(TABLE[0], listing(scenes[index]))
        questions.append(SceneQuestion(int(index), LIST.name, *texts))
    return questions


def kind_of(question: str) -> str:
    """Return the name of the kind that a question is of. Raise `ValueError` for other questions."""
    for kind in (*KINDS, LIST):
        if question in map(kind.question_about, kind.subjects):
            return kind.name
    raise ValueError(f"{question!r} is no question about toys")


def blind_floor(pairs: Sequence[tuple[str, str]]) -> float:
    """Return the fraction of (question, answer) pairs that the best fixed answer to each question gets right."""
    if not pairs:
        raise ValueError("there are no questions to compute a floor of")
    by_question: dict[str, Counter[str]] = {}
    for question, answer in pairs:
        by_question.setdefault(question, Counter())[answer] += 1
    return sum(max(counts.values()) for counts in by_question.values()) / len(pairs)


def sentences() -> Iterator[tuple[str, str]]:
    """Yield every question with every possible answer (of lists: each pair once), to train the tokenizer on."""
    for kind in KINDS:
        for subject in kind.subjects:
            for answer in kind.answers:
                yield kind.question_about(subject), kind.answer_sentence(subject, answer)
    for first, last in zip(PAIRS, reversed(PAIRS), strict=True):
        yield (
            LIST.question_about(TABLE[0]),
            LIST.answer_sentence(TABLE[0], f"{first}, {last}, {first}".replace("a ", "")),
        )

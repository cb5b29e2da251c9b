"""Answer all questions in batches; the answers of a batch are on disk before the next batch starts.

A batch that a kill interrupted is answered again as a whole, so that a killed and continued evaluation gives the same
answers. Questions about one image are neighbours, and CLIP encodes each image once.

Shape letters: B questions of a batch, P patches, C channels.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.decoding import Generation
from policy_rollout.benchmarks.vqa.questions import Question

FILE = "answers.jsonl"
EncodeImages = Callable[[Sequence[str]], Tensor]
"""Names of images -> their features [n, P, C]."""
Generate = Callable[[Sequence[str], Tensor, int], Generation]
"""(questions, features [B, P, C], number of the batch) -> answers."""


@dataclass(frozen=True)
class ShownQuestion:
    """A question, its index among all of them, and the image that is shown with it."""

    index: int
    question: Question
    image: str


@dataclass(frozen=True)
class Answer:
    """An answer. ``index``: that of the question; ``tokens``: its length; ``cut``: it ended at ``max_new_tokens``."""

    index: int
    text: str
    tokens: int
    cut: bool = False


@dataclass(frozen=True)
class Batch:
    """Answers and cost of a batch: forwards of the backbone, seconds in total and to the first word, and seconds
    (``look_seconds``) of CLIP for ``looked`` new images. The fields are keys of the answers file."""

    number: int
    answers: tuple[Answer, ...]
    forwards: int
    seconds: float
    first_word_seconds: float
    looked: int
    look_seconds: float


def order_by_image(questions: Sequence[Question], shuffle: bool) -> list[ShownQuestion]:
    """Return the questions sorted by image, images in the order of their first question. ``shuffle``: show another
    image with each question. Raises ``ValueError`` if there is no other."""
    images = list(dict.fromkeys(question.image for question in questions))
    shown = dict(zip(images, _others(images) if shuffle else images, strict=True))
    position = {image: number for number, image in enumerate(images)}
    rows = [ShownQuestion(i, question, shown[question.image]) for i, question in enumerate(questions)]
    return sorted(rows, key=lambda row: position[row.question.image])  # stable: an image's questions keep their order


def _others(images: Sequence[str]) -> list[str]:
    """Return a fixed cyclic permutation of the images without a fixed point."""
    if len(images) < 2:
        raise ValueError("--shuffle-pictures: there is only one image")
    order = np.random.default_rng(0).permutation(len(images))
    others = list(images)
    for target, source in zip(order, np.roll(order, 1), strict=True):
        others[target] = images[source]
    return others


def answer_questions(
    questions: Sequence[ShownQuestion],
    size: int,
    encode: EncodeImages,
    generate: Generate,
    file: Path,
    progress: Callable[[int], object],
) -> list[Batch]:
    """Return all batches: those in ``file``, and new ones, which are appended to it.

    ``progress`` is called with the number of questions of each batch. Raises ``ValueError`` if the file has answers to
    other questions.
    """
    done = read_batches(file)
    features = _Features(encode)
    found = []
    for number, rows in _batches(questions, size):
        batch = done.get(number)
        if batch is not None and [a.index for a in batch.answers] != [row.index for row in rows]:
            raise ValueError(f"{file}: batch {number} answers other questions; choose another folder")
        if batch is None:
            batch = _answer_batch(number, rows, features, generate)
            append(file, batch)
        found.append(batch)
        progress(len(rows))
    return found


def _batches(questions: Sequence[ShownQuestion], size: int) -> Iterator[tuple[int, Sequence[ShownQuestion]]]:
    for number, start in enumerate(range(0, len(questions), size)):
        yield number, questions[start : start + size]


def _answer_batch(number: int, rows: Sequence[ShownQuestion], features: _Features, generate: Generate) -> Batch:
    patches, encoded, encode_seconds = features.of([row.image for row in rows])
    found = generate([row.question.text for row in rows], patches, number)
    parts = zip(rows, found.texts, found.ids, found.cut or [False] * len(rows), strict=True)
    answers = tuple(Answer(row.index, text, len(ids), is_cut) for row, text, ids, is_cut in parts)
    stats = found.stats
    return Batch(number, answers, stats.forwards, stats.seconds, stats.first_token_seconds, encoded, encode_seconds)


class _Features:
    """Encodes images; caches the features of the last batch, as the next one may start with the same image."""

    def __init__(self, encode: EncodeImages) -> None:
        self._encode = encode
        self._cache: dict[str, Tensor] = {}

    def of(self, images: Sequence[str]) -> tuple[Tensor, int, float]:
        """Return (features [B, P, C], number of newly encoded images, seconds)."""
        started = time.perf_counter()
        new = [name for name in dict.fromkeys(images) if name not in self._cache]
        found = dict(zip(new, self._encode(new), strict=True)) if new else {}
        self._cache = {name: found[name] if name in found else self._cache[name] for name in dict.fromkeys(images)}
        return torch.stack([self._cache[name] for name in images]), len(new), time.perf_counter() - started


# --- the file --------------------------------------------------------------------------------------------------------


def append(file: Path, batch: Batch) -> None:
    """Append a batch as one line; it is on disk when this returns."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(asdict(batch), ensure_ascii=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def read_batches(file: Path) -> dict[int, Batch]:
    """Return the batches of a file by number. A last line that a kill truncated is removed from the file.

    Raises ``ValueError`` naming file and line for any other line that cannot be read."""
    if not file.is_file():
        return {}
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(file, len(whole))
    found: dict[int, Batch] = {}
    for line_number, line in enumerate(whole.split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line)
            answers = tuple(Answer(**answer) for answer in row.pop("answers"))
            batch = Batch(answers=answers, **row)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{file}, line {line_number} is no batch of answers ({error})") from None
        found[batch.number] = batch
    return found

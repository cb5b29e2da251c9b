"""Asking a model all questions, in batches whose answers are on the disk before the next batch begins.

A batch is the unit of everything that is kept: one that a kill cut off is asked again whole, so that an evaluation that
was killed says what an undisturbed one says. Questions about one image stand beside each other and CLIP looks at each
image once.

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
NeedsChunk = Callable[[Sequence[str]], Tensor]
"""Names of images -> their features [n, P, C]."""
Say = Callable[[Sequence[str], Tensor, int], Generation]
"""(questions, features [B, P, C], number of the batch) -> answers."""


@dataclass(frozen=True)
class Asked:
    """A question, its place among all of them, and the image that is shown with it."""

    index: int
    question: Question
    image: str


@dataclass(frozen=True)
class Answer:
    """``index``: of the question; ``tokens`` said; ``cut``: it ended at ``max_new_tokens``, not by itself."""

    index: int
    text: str
    tokens: int
    cut: bool = False


@dataclass(frozen=True)
class Batch:
    """What one batch said and cost: forwards of the backbone, seconds in all and to the first word, seconds that CLIP
    took for ``looked`` new images."""

    number: int
    answers: tuple[Answer, ...]
    forwards: int
    seconds: float
    first_word_seconds: float
    looked: int
    look_seconds: float


def in_order(questions: Sequence[Question], shuffle: bool) -> list[Asked]:
    """Questions by image, images in the order of their first question. ``shuffle``: every image's questions are
    asked about another one. Raises ``ValueError`` where there is no other."""
    images = list(dict.fromkeys(question.image for question in questions))
    shown = dict(zip(images, _others(images) if shuffle else images, strict=True))
    place = {image: number for number, image in enumerate(images)}
    asked = [Asked(i, question, shown[question.image]) for i, question in enumerate(questions)]
    return sorted(asked, key=lambda row: place[row.question.image])  # stable: an image's questions keep their order


def _others(images: Sequence[str]) -> list[str]:
    """The images in one big circle, each in the place of another: always the same one."""
    if len(images) < 2:
        raise ValueError("--shuffle-pictures: there is only one image, and no other to show")
    order = np.random.default_rng(0).permutation(len(images))
    others = list(images)
    for here, there in zip(order, np.roll(order, 1), strict=True):
        others[here] = images[there]
    return others


def ask(
    asked: Sequence[Asked], size: int, look: NeedsChunk, say: Say, file: Path, progress: Callable[[int], object]
) -> list[Batch]:
    """All batches, those in ``file`` and new ones, which are appended to it. ``progress`` hears of questions done.

    Raises ``ValueError`` where the file holds something else than answers to these questions.
    """
    done = read_batches(file)
    features = _Features(look)
    found = []
    for number, rows in _batches(asked, size):
        batch = done.get(number)
        if batch is not None and [a.index for a in batch.answers] != [row.index for row in rows]:
            raise ValueError(f"{file}: batch {number} answers other questions; choose another folder")
        if batch is None:
            batch = _ask_batch(number, rows, features, say)
            append(file, batch)
        found.append(batch)
        progress(len(rows))
    return found


def _batches(asked: Sequence[Asked], size: int) -> Iterator[tuple[int, Sequence[Asked]]]:
    for number, start in enumerate(range(0, len(asked), size)):
        yield number, asked[start : start + size]


def _ask_batch(number: int, rows: Sequence[Asked], features: _Features, say: Say) -> Batch:
    shown, looked, look_seconds = features.of([row.image for row in rows])
    said = say([row.question.text for row in rows], shown, number)
    cut = said.cut or [False] * len(rows)
    told = zip(rows, said.texts, said.ids, cut, strict=True)
    answers = [Answer(row.index, text, len(ids), is_cut) for row, text, ids, is_cut in told]
    stats = said.stats
    return Batch(number, tuple(answers), stats.forwards, stats.seconds, stats.first_token_seconds, looked, look_seconds)


class _Features:
    """Keeps the features of the last batch's images: the next one may begin with the same."""

    def __init__(self, look: NeedsChunk) -> None:
        self._look = look
        self._kept: dict[str, Tensor] = {}

    def of(self, images: Sequence[str]) -> tuple[Tensor, int, float]:
        """([B, P, C], how many were looked at anew, the seconds that took)."""
        started = time.perf_counter()
        new = [name for name in dict.fromkeys(images) if name not in self._kept]
        found = dict(zip(new, self._look(new), strict=True)) if new else {}
        self._kept = {name: found[name] if name in found else self._kept[name] for name in dict.fromkeys(images)}
        return torch.stack([self._kept[name] for name in images]), len(new), time.perf_counter() - started


# --- the file --------------------------------------------------------------------------------------------------------


def append(file: Path, batch: Batch) -> None:
    """One more line, on the disk when this returns."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(asdict(batch), ensure_ascii=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def read_batches(file: Path) -> dict[int, Batch]:
    """By their number. A last line without its end, which a kill cut off, is taken off the file.

    Raises ``ValueError`` naming file and line where anything else cannot be read."""
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

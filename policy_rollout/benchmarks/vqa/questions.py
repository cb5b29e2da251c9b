"""Read the question files of public benchmarks, and our own format of conversations.

pope           jsonl {question_id, image, text, label yes|no}; the category is in the file's name
textvqa        the official json {data: [{question_id, image_id, question, answers: [ten]}]}
gqa            jsonl {question, image, answer}, or the official json {id: {question, imageId, answer}}
llava          jsonl {question_id, image, text}; without answers, so not scored
conversations  the json of conversations that training reads; the first question of each, and its answer
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.files import read_json, read_object
from common.text import check_text
from models.processing.text import ASSISTANT, HUMAN, IMAGE_MARK

SHORT = "Answer the question using a single word or phrase."
"""Suffix of questions in LLaVA's evaluations of benchmarks with short answers."""


@dataclass(frozen=True)
class Question:
    """One question. ``image``: name of a file in the image root; ``truths``: every annotator's answer (none: not
    scored); ``kind``: its category."""

    id: str
    image: str
    text: str
    truths: tuple[str, ...]
    kind: str


@dataclass(frozen=True)
class Format:
    """Format of a benchmark: reader of its files, suffix of each question, limit of answer tokens."""

    read: Callable[[Path], Iterator[Question]]
    suffix: str
    max_new_tokens: int


def read_questions(benchmark: str, files: Sequence[Path], limit: int = 0) -> list[Question]:
    """Read all files in order and return the first ``limit`` questions (0: all).

    Raises ``ValueError`` or ``FileNotFoundError`` naming the file and the position in it.
    """
    repeated = [file for i, file in enumerate(files) if file.resolve() in [other.resolve() for other in files[:i]]]
    if repeated:
        raise ValueError(f"--questions {repeated[0]} is given twice: its questions would count double")
    found = [question for file in files for question in FORMATS[benchmark].read(file)]
    if not found:
        raise ValueError(f"--questions {', '.join(map(str, files))}: there is no question in it")
    for question in found:
        try:
            for text in (question.id, question.image, question.text, *question.truths):
                check_text(text)
        except ValueError as error:
            raise ValueError(f"--questions: question {question.id!a}: {error}") from None
    return found[:limit] if limit else found


def require_images(questions: Sequence[Question], root: Path) -> None:
    """Raise ``FileNotFoundError`` naming the first missing images."""
    names = list(dict.fromkeys(question.image for question in questions))
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise FileNotFoundError(f"--image-root {root}: {len(missing)} of {len(names)} images are missing: {shown}")


def digest(questions: Sequence[Question]) -> str:
    """Return the SHA-256 of all questions.

    The key ``picture`` keeps digests of earlier results valid.
    """
    rows = [{"picture" if k == "image" else k: v for k, v in asdict(question).items()} for question in questions]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


# --- formats ---------------------------------------------------------------------------------------------------------


def _field(row: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    """Return the first present field as text."""
    for name in names:
        value = row.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool):
            return str(value)
    raise ValueError(f"{where}: {' or '.join(names)} is missing, or no text")


def _lines(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (position, object) of every line of a jsonl file."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"--questions {file} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--questions {file} cannot be read ({error})") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON ({error})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where} is a {type(row).__name__}, not an object")
        yield where, row


def _pope(file: Path) -> Iterator[Question]:
    category = file.stem.rpartition("_")[2]
    for where, row in _lines(file):
        label = _field(row, ("label",), where).strip().lower()
        if label not in ("yes", "no"):
            raise ValueError(f"{where}: label is {label!r}; allowed: yes, no")
        kind = row.get("category") or category
        yield Question(
            f"{kind}/{_field(row, ('question_id', 'id'), where)}",
            _field(row, ("image",), where),
            _field(row, ("text", "question"), where),
            (label,),
            str(kind),
        )


def _textvqa(file: Path) -> Iterator[Question]:
    rows = read_object(file, "--questions of textvqa is the official json").get("data")
    if not isinstance(rows, list):
        raise ValueError(f"{file}: data is missing, or no list; the official json of TextVQA has it")
    for number, row in enumerate(rows):
        where = f"{file}, data[{number}]"
        if not isinstance(row, dict):
            raise ValueError(f"{where} is a {type(row).__name__}, not an object")
        answers = row.get("answers")
        if not isinstance(answers, list) or len(answers) < 2 or not all(isinstance(a, str) for a in answers):
            raise ValueError(f"{where}: answers has to be a list of texts, two or more (the test split has none)")
        yield Question(
            _field(row, ("question_id",), where),
            _field(row, ("image_id",), where) + ".jpg",
            _field(row, ("question",), where),
            tuple(answers),
            "all",
        )


def _gqa(file: Path) -> Iterator[Question]:
    if file.suffix == ".json":
        rows: Iterator[tuple[str, Any]] = iter(read_object(file, "--questions of gqa is a json or jsonl").items())
        named = ((f"{file}, {name}", {"id": name, **(row if isinstance(row, dict) else {})}) for name, row in rows)
    else:
        named = ((where, {"id": where.rpartition(" ")[2], **row}) for where, row in _lines(file))
    for where, row in named:
        image = row.get("image") or f"{_field(row, ('imageId', 'image'), where)}.jpg"
        types = row.get("types")
        kind = types.get("structural") if isinstance(types, dict) else None
        yield Question(
            _field(row, ("question_id", "id"), where),
            str(image),
            _field(row, ("question", "text"), where),
            (_field(row, ("answer", "label"), where),),
            str(kind or row.get("type") or "all"),
        )


def _llava(file: Path) -> Iterator[Question]:
    for where, row in _lines(file):
        truth = (str(row["answer"]),) if isinstance(row.get("answer"), str) else ()
        yield Question(
            _field(row, ("question_id", "id"), where),
            _field(row, ("image",), where),
            _field(row, ("text", "question"), where).replace(IMAGE_MARK, "").strip(),
            truth,
            str(row.get("category") or "all"),
        )


def _conversations(file: Path) -> Iterator[Question]:
    rows = read_json(file, "questions of conversations are a json, as training reads it")
    if not isinstance(rows, list):
        raise ValueError(f"{file} must be a list of conversations")
    for number, row in enumerate(rows):
        where = f"{file}, [{number}]"
        try:
            turns = [(turn["from"], turn["value"]) for turn in row["conversations"]]
            texts = [(role, text.replace(IMAGE_MARK, "").strip()) for role, text in turns if role in (HUMAN, ASSISTANT)]
            (first, text), (second, truth) = texts[:2]
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ValueError(f"{where} does not begin with a question and its answer") from None
        if (first, second) != (HUMAN, ASSISTANT):
            raise ValueError(f"{where} does not begin with a question and its answer")
        image = row.get("image")
        one = image[0] if isinstance(image, list) and len(image) == 1 else image  # as in training
        path = _field({"image": one}, ("image",), where)
        yield Question(str(row.get("id", number)), path, text, (truth,), "all")


FORMATS = {
    "pope": Format(_pope, SHORT, 16),
    "textvqa": Format(_textvqa, SHORT, 16),
    "gqa": Format(_gqa, SHORT, 16),
    "llava": Format(_llava, "", 256),
    "conversations": Format(_conversations, "", 64),
}

"""Results of a question benchmark: as JSON, as Markdown, and as a comparison of two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.files import read_object
from common.statistics import Interval, Pair, pairs_of
from common.tables import interval_json, markdown_table, percent, points, probability
from policy_rollout.benchmarks.vqa.inference import Batch, ShownQuestion
from policy_rollout.benchmarks.vqa.questions import Question
from policy_rollout.benchmarks.vqa.scores import (
    MEANS,
    accuracy,
    blind_guess,
    by_image,
    by_kind,
    pope_figures,
    score_of,
)
from policy_rollout.reports.results import dotted

FILE = "results.json"
WHAT = ("benchmark", "questions_sha256", "suffix", "max_new_tokens")
"""Settings that must agree in a comparison; all others describe the model and its decoding."""
SHUFFLED = "shuffle_pictures"


def figures(
    benchmark: str, questions: Sequence[Question], shown_questions: Sequence[ShownQuestion], batches: Sequence[Batch]
) -> dict[str, Any]:
    """Return the results without settings. ``records`` are in the order of the questions' files."""
    answers = {answer.index: answer.text for batch in batches for answer in batch.answers}
    texts = [answers[i] for i in range(len(questions))]
    shown = {row.index: row.image for row in shown_questions}
    scores = [score_of(benchmark, question, text) for question, text in zip(questions, texts, strict=True)]
    known = [score for score in scores if score is not None]
    content: dict[str, Any] = {
        "benchmark": benchmark,
        "questions": len(questions),
        "pictures": len(set(shown.values())),
    }
    if len(known) == len(questions):
        values = np.array(known)
        interval, how = accuracy(values, [question.image for question in questions])
        content["accuracy"] = {**interval_json(interval), "interval": how, "means": MEANS[benchmark]}
        content["best_blind_guess"] = blind_guess(benchmark, questions)
        content["by_kind"] = by_kind(values, questions)
        if benchmark == "pope":
            content["pope"] = pope_figures(questions, texts)
    cut = {answer.index for batch in batches for answer in batch.answers if answer.cut}
    content["cut_answers"] = len(cut)
    content["cost"] = cost(batches)
    content["records"] = [
        {"id": q.id, "picture": q.image, "shown": shown[i], "question": q.text, "answer": text, "score": score}
        | ({"cut": True} if i in cut else {})
        for i, (q, text, score) in enumerate(zip(questions, texts, scores, strict=True))
    ]
    return content


def cost(batches: Sequence[Batch]) -> dict[str, float]:
    """Return the cost of all batches; ``tokens_per_forward`` counts all rows of a batch, seconds exclude CLIP."""
    answers = sum(len(batch.answers) for batch in batches)
    tokens = sum(answer.tokens for batch in batches for answer in batch.answers)
    forwards, seconds = sum(b.forwards for b in batches), sum(b.seconds for b in batches)
    images = sum(batch.looked for batch in batches)
    return {
        "answers": answers,
        "tokens": tokens,
        "forwards": forwards,
        "tokens_per_forward": tokens / max(forwards, 1),
        "tokens_per_second": tokens / max(seconds, 1e-9),
        "seconds_per_answer": seconds / answers,
        "seconds_per_batch_median": float(np.median([batch.seconds for batch in batches])),
        "first_word_seconds_median": float(np.median([batch.first_word_seconds for batch in batches])),
        "seconds_per_picture": sum(batch.look_seconds for batch in batches) / max(images, 1),
    }


# --- text ------------------------------------------------------------------------------------------------------------


def _interval(row: Mapping[str, float]) -> Interval:
    return Interval(row["value"], row["low"], row["high"])


def markdown(name: str, content: Mapping[str, Any]) -> str:
    """Return one row, and tables of the benchmark's own metrics and kinds."""
    spent, settings = content["cost"], content["settings"]
    score = content.get("accuracy")
    head = ["", "benchmark", "decoded", "questions", "accuracy", "best blind guess", "tokens per forward"]
    head += ["ms per answer", "batch"]
    benchmark = str(content["benchmark"]) + (", shuffled images" if settings[SHUFFLED] else "")
    row = [
        name,
        benchmark,
        str(settings["objective"]),
        str(content["questions"]),
        percent(_interval(score)) if score else "not scored",
        f"{100 * content['best_blind_guess']:.0f} %" if score else "–",
        f"{spent['tokens_per_forward']:.2f}",
        f"{1000 * spent['seconds_per_answer']:.0f}",
        str(settings["batch_size"]),
    ]
    parts = [markdown_table(head, [row])]
    if "pope" in content:
        pope = content["pope"]
        names = ("precision", "recall", "f1", "yes_ratio")
        cells = [*(percent(_interval(pope[key])) for key in names), f"{100 * pope['neither']:.0f} %"]
        parts.append(markdown_table(["", "precision", "recall", "F1", "says yes", "neither"], [["all", *cells]]))
    if content.get("by_kind"):
        rows = [[kind, str(of["questions"]), percent(_interval(of))] for kind, of in content["by_kind"].items()]
        parts.append(markdown_table(["kind", "questions", "accuracy"], rows))
    if cut := content.get("cut_answers", 0):
        parts.append(f"{cut} answers were cut at {settings['max_new_tokens']} tokens (--max-new-tokens).")
    return "\n\n".join(parts) + "\n"


def last_line(content: Mapping[str, Any]) -> str:
    """Return a summary in one line."""
    score = content.get("accuracy")
    counts = f"{content['questions']} questions about {content['pictures']} images"
    if cut := content.get("cut_answers", 0):
        counts += f" ({cut} answers were cut at max_new_tokens={content['settings']['max_new_tokens']})"
    if score is None:
        return f"{counts} answered; the questions have no known answers and are not scored"
    blind = content["best_blind_guess"]
    line = f"accuracy {percent(_interval(score))} over {counts} (best blind guess {100 * blind:.0f} %)"
    if content["settings"][SHUFFLED]:
        return f"{line}; with another image each"
    if score["low"] <= blind:
        return f"{line}: not clearly above a guess without the image"
    return line


# --- compared --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """A results file whose questions have answers."""

    name: str
    file: Path
    content: Mapping[str, Any]

    @property
    def scores(self) -> list[float]:
        return [record["score"] for record in self.content["records"]]


def read_scored(path: Path, name: str) -> Scored:
    """Read ``results.json`` or that of a folder. Raises ``ValueError`` or ``FileNotFoundError`` in one line."""
    file = path / FILE if path.is_dir() else path
    content = read_object(file, "give a results.json of eval_vqa.py, or its folder")
    records = content.get("records")
    if not isinstance(records, list) or not isinstance(content.get("cost"), dict):
        raise ValueError(f"{file} is no result of eval_vqa.py")
    if "accuracy" not in content:
        raise ValueError(f"{file} is not scored: its questions have no known answers")
    return Scored(name, file, content)


def compare(found: Sequence[Scored], anyway: bool = False) -> tuple[list[Pair], list[str]]:
    """Return (comparisons of accuracy of every pair; notes).

    Raises ``ValueError`` for other questions, and for other settings unless ``anyway``.
    """
    first, *others = found
    notes = []
    for other in others:
        mine, theirs = (dotted(one.content["settings"]) for one in (first, other))
        if mine["questions_sha256"] != theirs["questions_sha256"] or len(first.scores) != len(other.scores):
            raise ValueError(f"{other.file} has answers to other questions than {first.file}")
        for key in WHAT:
            if mine.get(key) != theirs.get(key):
                note = f"{key} is {mine.get(key)!r} in {first.file} and {theirs.get(key)!r} in {other.file}"
                if not anyway:
                    raise ValueError(f"{note} (--anyway compares them nevertheless)")
                notes.append(note)
        if mine.get(SHUFFLED) != theirs.get(SHUFFLED):
            notes.append(f"{(first if mine.get(SHUFFLED) else other).name} was shown other images")
    images = [record["picture"] for record in first.content["records"]]
    count = by_image(first.scores, images)[1]
    values = {one.name: by_image(one.scores, images)[0] for one in found}
    return pairs_of(values, count), notes


def verdict(pair: Pair) -> str:
    """Return one line that names the better result, if there is one."""
    likely = probability(pair.difference.probability)
    text = f"{pair.first} − {pair.second} is {points(pair.difference.interval)} points over {pair.items} images"
    text += f", P({pair.first} better) {likely if likely[0] in '<>' else '= ' + likely}"
    if pair.better is None:
        return f"these questions cannot distinguish {pair.first} from {pair.second}: {text}"
    return f"{pair.better} is better: {text}"


def comparison(found: Sequence[Scored], pairs: Sequence[Pair], notes: Sequence[str]) -> str:
    """Return a comparison as Markdown."""
    rows = []
    for one in found:
        spent = one.content["cost"]
        cells = [percent(_interval(one.content["accuracy"])), f"{spent['tokens_per_forward']:.2f}"]
        rows.append([one.name, *cells, f"{1000 * spent['seconds_per_answer']:.0f}"])
    apart = [
        [f"{p.first} − {p.second}", points(p.difference.interval), probability(p.difference.probability)] for p in pairs
    ]
    parts = [
        markdown_table(["", "accuracy", "tokens per forward", "ms per answer"], rows),
        markdown_table(["", "difference in points", "P(first is better)"], apart),
        *(f"Note: {note}." for note in notes),
    ]
    return "\n\n".join(parts) + "\n"

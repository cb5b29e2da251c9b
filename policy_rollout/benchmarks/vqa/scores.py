"""Scores of answers, by each benchmark's own definition, and their means.

TextVQA: the accuracy of its challenge (Singh et al. 2019, arXiv 1904.08920; the answer normalisation is that of the
VQA challenge, Antol et al. 2015). POPE: Li et al. 2023, arXiv 2305.10355. GQA: exact match (Hudson and Manning 2019).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.statistics import Interval, bootstrap_sums, clustered_rate, mean_of_runs
from common.tables import interval_json
from policy_rollout.benchmarks.vqa.questions import Question

ENOUGH = 3
"""Number of agreeing other annotators for a full score in TextVQA."""

# --- one answer ------------------------------------------------------------------------------------------------------

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS = 32
"""Largest number of removed full stops: the official program passes a flag (re.UNICODE) as the count."""
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(number) for number, word in enumerate(_DIGITS)}
_NUMBERS["none"] = "0"
_ARTICLES = ("a", "an", "the")
_CONTRACTED = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've "
    "we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's "
    "who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've "
    "you'll you're you've "
)


def _contractions() -> dict[str, str]:
    """Return a map from contractions without one of their apostrophes to the contractions."""
    found = {}
    for word in _CONTRACTED.split():
        for i, letter in enumerate(word):
            if letter == "'":
                found[word[:i] + word[i + 1 :]] = word
    return {**found, "somebody'd": "somebodyd"}  # reversed in the official table


_CONTRACTIONS = _contractions()


@lru_cache(maxsize=1 << 16)
def vqa_form(answer: str) -> str:
    """Normalise an answer as the VQA challenges do: lower case, no marks and articles, numbers as digits."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    before = text = text.replace("\n", " ").replace("\t", " ").strip()
    for mark in _MARKS:
        at_space = f"{mark} " in before or f" {mark}" in before
        text = text.replace(mark, "" if at_space else " ")
    text = _PERIOD.sub("", text, count=_PERIODS)
    words = [_NUMBERS.get(word, word) for word in text.split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def textvqa_score(answer: str, truths: Sequence[str]) -> float:
    """Return the mean over annotators, each left out once, of min(agreeing others / 3, 1)."""
    forms = [vqa_form(truth) for truth in truths]
    agreeing = Counter(forms)[vqa_form(answer)]
    # Without an agreeing annotator there is one fewer; without another one there are all of them.
    without_one, with_all = (min(max(n, 0) / ENOUGH, 1.0) for n in (agreeing - 1, agreeing))
    return (agreeing * without_one + (len(forms) - agreeing) * with_all) / len(forms)


def yes_or_no(answer: str) -> str:
    """Return POPE's reading of an answer: "no" if its first sentence has no or not, else "yes"."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if any(word in words for word in ("No", "no", "not")) else "yes"


def has_yes_or_no(answer: str) -> bool:
    """Return whether the first sentence has a yes, no or not at all."""
    words = set(re.findall(r"[a-z]+", answer.split(".")[0].lower()))
    return bool(words & {"yes", "no", "not"})


def plain_form(answer: str) -> str:
    """Return an answer in lower case, with single spaces and without a full stop at the end."""
    return " ".join(answer.lower().split()).rstrip(".").rstrip()


def pope_score(answer: str, truths: Sequence[str]) -> float:
    return float(yes_or_no(answer) == truths[0])


def exact_score(answer: str, truths: Sequence[str]) -> float:
    return float(plain_form(answer) in map(plain_form, truths))


def verbatim_score(answer: str, truths: Sequence[str]) -> float:
    return float(answer in truths)


SCORES: Mapping[str, Callable[[str, Sequence[str]], float]] = {
    "pope": pope_score,
    "textvqa": textvqa_score,
    "gqa": exact_score,
    "llava": exact_score,
    "conversations": verbatim_score,
}
MEANS = {
    "pope": "yes or no, as POPE reads it",
    "textvqa": "soft accuracy of the TextVQA challenge",
    "gqa": "exact match but for case, spaces and a full stop",
    "llava": "exact match but for case, spaces and a full stop",
    "conversations": "exact match",
}


def score_of(benchmark: str, question: Question, answer: str) -> float | None:
    """Return the score in 0..1; None for a question without a known answer."""
    return SCORES[benchmark](answer, question.truths) if question.truths else None


# --- all of them -----------------------------------------------------------------------------------------------------


def by_image(
    scores: Sequence[float] | NDArray[np.float64], images: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return ([images] mean score of the questions about each, [images] their number)."""
    owner = np.unique(np.array(images), return_inverse=True)[1]
    count = np.bincount(owner)
    return np.bincount(owner, weights=np.asarray(scores)) / count, count


def accuracy(scores: NDArray[np.float64], images: Sequence[str]) -> tuple[Interval, str]:
    """Return (mean score with its interval, method). Questions about one image are one cluster."""
    means, count = by_image(scores, images)
    if set(np.unique(scores)) <= {0.0, 1.0}:
        together = f", {len(means)} images as groups" if len(means) < len(scores) else ""
        return clustered_rate(np.round(means * count), count), f"Wilson{together}"
    return mean_of_runs(means, count), f"bootstrap over {len(means)} images"


def by_kind(scores: NDArray[np.float64], questions: Sequence[Question]) -> dict[str, dict[str, Any]]:
    """Return the accuracy of each kind; empty if there is only one."""
    kinds = list(dict.fromkeys(question.kind for question in questions))
    if len(kinds) < 2:
        return {}
    found = {}
    for kind in kinds:
        of_kind = [i for i, question in enumerate(questions) if question.kind == kind]
        interval, _ = accuracy(scores[of_kind], [questions[i].image for i in of_kind])
        found[kind] = {"questions": len(of_kind), **interval_json(interval)}
    return found


def pope_figures(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, Any]:
    """Return precision, recall and F1 of "yes", and the fractions of answers that are yes and neither."""
    names, owner = np.unique(np.array([question.image for question in questions]), return_inverse=True)
    yes = np.array([yes_or_no(text) == "yes" for text in answers])
    true = np.array([question.truths[0] == "yes" for question in questions])
    cells = (yes & true, yes & ~true, ~yes & true, ~yes & ~true)
    by_cell = [np.bincount(owner, weights=cell, minlength=len(names)) for cell in cells]
    counts: NDArray[np.float64] = np.stack(by_cell, axis=1).astype(np.float64)
    hits, false_alarms, misses = counts[:, 0], counts[:, 1], counts[:, 2]
    content: dict[str, Any] = {
        "precision": interval_json(_rate(hits, hits + false_alarms)),
        "recall": interval_json(_rate(hits, hits + misses)),
        "f1": interval_json(bootstrap_sums(counts, lambda n: _ratio(2 * n[:, 0], 2 * n[:, 0] + n[:, 1] + n[:, 2]))),
        "yes_ratio": interval_json(_rate(hits + false_alarms, counts.sum(axis=1))),
    }
    content["neither"] = sum(not has_yes_or_no(text) for text in answers) / len(answers)
    return content


def _rate(part: NDArray[np.float64], whole: NDArray[np.float64]) -> Interval:
    """Return the rate; 0 if the total is 0, as in the benchmark's program."""
    found = clustered_rate(part, whole)
    return found if whole.sum() else Interval(0.0, found.low, found.high)


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros_like(part, dtype=np.float64), where=whole > 0)


def blind_guess(benchmark: str, questions: Sequence[Question]) -> float:
    """Return the mean score of the best fixed answer to each question text, which needs no image."""
    by_text: dict[str, list[Question]] = {}
    for question in questions:
        by_text.setdefault(question.text, []).append(question)
    best = 0.0
    for same in by_text.values():
        guesses = {truth for question in same for truth in question.truths}
        best += max(sum(SCORES[benchmark](guess, q.truths) for q in same) for guess in guesses)
    return best / len(questions)

"""What an answer is worth, by each benchmark's own definition, and what all of them are worth together.

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

from common.tables import interval_json
from policy_rollout.benchmarks.vqa.questions import Question
from policy_rollout.intervals import Interval, bootstrap_runs, bootstrap_sums, clustered_rate

ENOUGH = 3
"""So many other annotators who agree make an answer of TextVQA wholly right."""

# --- one answer ------------------------------------------------------------------------------------------------------

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS = 32
"""Most full stops that are taken out: the official program hands a flag (re.UNICODE) where the count belongs."""
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
    """A contraction with one of its apostrophes left out -> the contraction."""
    found = {}
    for word in _CONTRACTED.split():
        for place, letter in enumerate(word):
            if letter == "'":
                found[word[:place] + word[place + 1 :]] = word
    return {**found, "somebody'd": "somebodyd"}  # the official table has this one the wrong way round


_CONTRACTIONS = _contractions()


@lru_cache(maxsize=1 << 16)
def vqa_form(answer: str) -> str:
    """An answer as the VQA challenges compare it: small letters, marks and articles gone, numbers as digits."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    before = text = text.replace("\n", " ").replace("\t", " ").strip()
    for mark in _MARKS:
        beside_a_space = f"{mark} " in before or f" {mark}" in before
        text = text.replace(mark, "" if beside_a_space else " ")
    text = _PERIOD.sub("", text, count=_PERIODS)
    words = [_NUMBERS.get(word, word) for word in text.split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def textvqa_score(said: str, truths: Sequence[str]) -> float:
    """Mean over the annotators left out, one by one, of min(agreeing others / 3, 1)."""
    forms = [vqa_form(truth) for truth in truths]
    agreeing = Counter(forms)[vqa_form(said)]
    # Leaving out one who agrees leaves one fewer; leaving out another leaves all of them.
    without_one, with_all = (min(max(n, 0) / ENOUGH, 1.0) for n in (agreeing - 1, agreeing))
    return (agreeing * without_one + (len(forms) - agreeing) * with_all) / len(forms)


def yes_or_no(said: str) -> str:
    """How POPE reads an answer: its first sentence says no, or else it is a yes."""
    words = said.split(".")[0].replace(",", "").split(" ")
    return "no" if any(word in words for word in ("No", "no", "not")) else "yes"


def says_yes_or_no(said: str) -> bool:
    """Is there a yes or a no at all in what POPE reads as one of them?"""
    words = set(re.findall(r"[a-z]+", said.split(".")[0].lower()))
    return bool(words & {"yes", "no", "not"})


def plain_form(answer: str) -> str:
    """Small letters, single spaces, no full stop at the end."""
    return " ".join(answer.lower().split()).rstrip(".").rstrip()


def pope_score(said: str, truths: Sequence[str]) -> float:
    return float(yes_or_no(said) == truths[0])


def exact_score(said: str, truths: Sequence[str]) -> float:
    return float(plain_form(said) in map(plain_form, truths))


def letter_score(said: str, truths: Sequence[str]) -> float:
    return float(said in truths)


SCORES: Mapping[str, Callable[[str, Sequence[str]], float]] = {
    "pope": pope_score,
    "textvqa": textvqa_score,
    "gqa": exact_score,
    "llava": exact_score,
    "conversations": letter_score,
}
MEANS = {
    "pope": "yes or no, as POPE reads it",
    "textvqa": "soft accuracy of the TextVQA challenge",
    "gqa": "exact match but for case, spaces and a full stop",
    "llava": "exact match but for case, spaces and a full stop",
    "conversations": "right to the letter",
}


def score_of(benchmark: str, question: Question, said: str) -> float | None:
    """In 0..1; None for a question without a known answer."""
    return SCORES[benchmark](said, question.truths) if question.truths else None


# --- all of them -----------------------------------------------------------------------------------------------------


def by_image(
    scores: Sequence[float] | NDArray[np.float64], images: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """([images] mean score of the questions about each, [images] how many they are)."""
    owner = np.unique(np.array(images), return_inverse=True)[1]
    count = np.bincount(owner)
    return np.bincount(owner, weights=np.asarray(scores)) / count, count


def accuracy(scores: NDArray[np.float64], images: Sequence[str]) -> tuple[Interval, str]:
    """(mean score with its interval, how that was taken). Questions about one image stand or fall together."""
    means, count = by_image(scores, images)
    if set(np.unique(scores)) <= {0.0, 1.0}:
        together = f", {len(means)} images as groups" if len(means) < len(scores) else ""
        return clustered_rate(np.round(means * count), count), f"Wilson{together}"
    return bootstrap_runs(means, count), f"bootstrap over {len(means)} images"


def by_kind(scores: NDArray[np.float64], questions: Sequence[Question]) -> dict[str, dict[str, Any]]:
    """Accuracy of each kind, where there is more than one."""
    kinds = list(dict.fromkeys(question.kind for question in questions))
    if len(kinds) < 2:
        return {}
    found = {}
    for kind in kinds:
        of_kind = [i for i, question in enumerate(questions) if question.kind == kind]
        interval, _ = accuracy(scores[of_kind], [questions[i].image for i in of_kind])
        found[kind] = {"questions": len(of_kind), **interval_json(interval)}
    return found


def pope_figures(questions: Sequence[Question], said: Sequence[str]) -> dict[str, Any]:
    """Precision, recall and F1 of "yes", the share of answers that are yes, and of those that are neither."""
    names, owner = np.unique(np.array([question.image for question in questions]), return_inverse=True)
    yes = np.array([yes_or_no(text) == "yes" for text in said])
    true = np.array([question.truths[0] == "yes" for question in questions])
    cells = (yes & true, yes & ~true, ~yes & true, ~yes & ~true)
    by_cell = [np.bincount(owner, weights=cell, minlength=len(names)) for cell in cells]
    counts: NDArray[np.float64] = np.stack(by_cell, axis=1).astype(np.float64)
    hits, false_alarms, misses = counts[:, 0], counts[:, 1], counts[:, 2]
    told: dict[str, Any] = {
        "precision": interval_json(_rate(hits, hits + false_alarms)),
        "recall": interval_json(_rate(hits, hits + misses)),
        "f1": interval_json(bootstrap_sums(counts, lambda n: _ratio(2 * n[:, 0], 2 * n[:, 0] + n[:, 1] + n[:, 2]))),
        "yes_ratio": interval_json(_rate(hits + false_alarms, counts.sum(axis=1))),
    }
    told["neither"] = sum(not says_yes_or_no(text) for text in said) / len(said)
    return told


def _rate(part: NDArray[np.float64], whole: NDArray[np.float64]) -> Interval:
    """0 where there is nothing to be a part of, as the benchmark's program has it."""
    found = clustered_rate(part, whole)
    return found if whole.sum() else Interval(0.0, found.low, found.high)


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros_like(part, dtype=np.float64), where=whole > 0)


def blind_guess(benchmark: str, questions: Sequence[Question]) -> float:
    """The mean score of whoever knows the best fixed answer to each question's words and does not look."""
    asked: dict[str, list[Question]] = {}
    for question in questions:
        asked.setdefault(question.text, []).append(question)
    best = 0.0
    for same in asked.values():
        guesses = {truth for question in same for truth in question.truths}
        best += max(sum(SCORES[benchmark](guess, q.truths) for q in same) for guess in guesses)
    return best / len(questions)

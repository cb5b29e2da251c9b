"""Ways to decode a model's answers, and what each costs: exact matches, tokens per forward, tokens per second.

The upper bound of tokens per forward assumes that every proposed token is accepted: an answer of n tokens in blocks of
b takes ceil(n / b) forwards, and a draft of b tokens that the clean stream confirms gives b + 1 tokens in two forwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from models.decoding import Decoding, Generation, Threshold, generate
from models.pretrained.model_io import Built

BATCH = 48
"""Answers that are decoded at once to measure quality, which does not depend on it."""


@dataclass(frozen=True)
class Way:
    """A way to decode.

    ``objective``: decoder; ``block``: tokens of a block, None: the whole answer at once (not used by ``ar``);
    ``threshold``: confidence above which tokens are accepted; ``speculative``: blocks are drafts that ``ar`` verifies.
    """

    objective: str
    block: int | None = None
    threshold: float | None = None
    speculative: bool = False

    @property
    def name(self) -> str:
        if self.objective == "ar":
            return "next token"
        block = "whole answer" if self.block is None else f"blocks of {self.block}"
        return f"speculative, {block}" if self.speculative else f"{block}, threshold {self.threshold:g}"

    def decoding(self, longest: int) -> Decoding:
        """Return the settings of ``generate`` for answers of at most ``longest`` tokens."""
        if self.objective == "ar":
            return Decoding()
        if self.speculative:
            return Decoding(block_size=self.block or longest, speculative=True)
        assert self.threshold is not None
        accept = Threshold(self.threshold)
        if self.objective == "mdm":
            return Decoding(accept, self.block, whole_canvas=self.block is None)
        return Decoding(accept, self.block or longest)

    def fewest_forwards(self, tokens: int) -> int:
        """Return the forwards that an answer of this many tokens needs if every proposal is accepted."""
        if self.objective == "ar":
            return tokens
        if self.speculative:
            return 2 * -(-tokens // ((self.block or tokens) + 1))
        return -(-tokens // (self.block or tokens))


def ways_of(objective: str, blocks: Sequence[int | None], thresholds: Sequence[float]) -> list[Way]:
    """Return the ways to decode a model that was trained with ``objective``.

    Next-token decoding for all of them. A model of ``ar`` has never read a mask, so it has no other. Drafts are those
    of ``bd``, in the block sizes above 1.
    """
    found = [Way("ar")]
    if objective == "ar":
        return found
    found += [Way(objective, block, threshold) for block in blocks for threshold in thresholds]
    if objective == "bd":
        found += [Way("bd", block, speculative=True) for block in blocks if block != 1]
    return found


@dataclass(frozen=True)
class Items:
    """Questions with the patches [N, P, C] of their images, and the true answers."""

    questions: Sequence[str]
    patches: Tensor
    answers: Sequence[str]

    def __len__(self) -> int:
        return len(self.questions)


@dataclass(frozen=True)
class Decoded:
    """What one way gives, by question.

    ``exact``: whether the answer matches; of the first ones, answered one at a time: ``tokens``, ``forwards``,
    ``fewest`` (with perfect acceptance) and ``seconds``.
    """

    exact: list[bool]
    tokens: list[int] = field(default_factory=list)
    forwards: list[int] = field(default_factory=list)
    fewest: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def exact_match(self) -> float:
        return float(np.mean(self.exact))

    @property
    def tokens_per_forward(self) -> float:
        return sum(self.tokens) / max(sum(self.forwards), 1)

    @property
    def bound(self) -> float:
        """Tokens per forward with perfect acceptance, for answers of the same lengths."""
        return sum(self.tokens) / max(sum(self.fewest), 1)

    @property
    def tokens_per_second(self) -> float:
        return sum(self.tokens) / max(sum(self.seconds), 1e-9)


def answer(built: Built, way: Way, items: Items, rows: Sequence[int], longest: int) -> Generation:
    """Return the greedy answers to some of the questions, decoded in one batch."""
    patches = items.patches[list(rows)].to(built.model.device)
    texts = [items.questions[row] for row in rows]
    how = way.decoding(longest)
    return generate(built.model, built.prompter, texts, patches, longest, objective=way.objective, decoding=how)


def measure(
    models: Mapping[str, tuple[Built, Sequence[Way]]],
    items: Items,
    longest: int,
    timed: int,
    progress: Callable[[int], object] = lambda done: None,
) -> dict[str, dict[Way, Decoded]]:
    """Decode all questions in every way; then the first ``timed`` ones, one at a time, for cost.

    All models and ways alternate at each timed question, so that other load on the machine slows all of them alike. On
    a CPU seconds are CPU time. ``progress`` receives the number of answers.
    """
    found: dict[str, dict[Way, Decoded]] = {}
    for name, (built, ways) in models.items():
        found[name] = {}
        for way in ways:
            exact: list[bool] = []
            for start in range(0, len(items), BATCH):
                rows = range(start, min(start + BATCH, len(items)))
                texts = answer(built, way, items, rows, longest).texts
                exact += [text == items.answers[row] for text, row in zip(texts, rows, strict=True)]
                progress(len(rows))
            found[name][way] = Decoded(exact)
    for number in range(min(timed, len(items))):
        for name, (built, ways) in models.items():
            for way in ways:
                _time(found[name][way], built, way, items, number, longest, warm=number == 0)
                progress(1)
    return found


def _time(decoded: Decoded, built: Built, way: Way, items: Items, row: int, longest: int, warm: bool) -> None:
    """Add the cost of one answer."""
    if warm:  # not counted
        answer(built, way, items, [row], longest)
    clock = time.process_time if built.model.device.type == "cpu" else time.perf_counter
    started = clock()
    done = answer(built, way, items, [row], longest)
    decoded.seconds.append(clock() - started)
    decoded.tokens.append(done.stats.tokens)
    decoded.forwards.append(done.stats.forwards)
    decoded.fewest.append(way.fewest_forwards(done.stats.tokens))


def best_of(results: Mapping[Way, Decoded]) -> list[Way]:
    """Return the ways that no other one beats in both exact matches and tokens per second, slowest first."""
    ranked = sorted(results, key=lambda way: results[way].tokens_per_second)
    return [
        way
        for number, way in enumerate(ranked)
        if all(results[faster].exact_match < results[way].exact_match for faster in ranked[number + 1 :])
    ]


def merged(runs: Sequence[Mapping[Way, Decoded]]) -> dict[Way, Decoded]:
    """Return the results of several runs of one objective, decoded in the same ways, as those of one."""
    names = ("exact", "tokens", "forwards", "fewest", "seconds")
    return {way: Decoded(*([v for run in runs for v in getattr(run[way], name)] for name in names)) for way in runs[0]}


def rows_of(results: Mapping[str, Sequence[Mapping[Way, Decoded]]]) -> Iterator[dict[str, str | int | float | None]]:
    """Yield a row for every question, way and run of every name, in the columns of the table ``decoding/1``."""
    for name, runs in results.items():
        for run, ways in enumerate(runs):
            for way, one in ways.items():
                for item, exact in enumerate(one.exact):
                    timed = item < len(one.tokens)
                    yield {
                        "model": name,
                        "run": run,
                        "decoder": way.objective,
                        "block": way.block,
                        "threshold": way.threshold,
                        "speculative": int(way.speculative),
                        "item": item,
                        "exact": int(exact),
                        "tokens": one.tokens[item] if timed else None,
                        "forwards": one.forwards[item] if timed else None,
                        "fewest_forwards": one.fewest[item] if timed else None,
                        "seconds": one.seconds[item] if timed else None,
                    }

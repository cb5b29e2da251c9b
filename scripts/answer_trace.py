"""How an answer fills in: what became visible in which forward, recorded once, told as lines or drawn as an animation.

Legend: B answers asked for at once.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.text import Text

from models.decoding import Progress
from models.processing.text import Prompter

HIDDEN, END = "▁", "⏹"
FRESH, SETTLED, DIM = "bold black on green3", "default", "dim"


@dataclass(frozen=True)
class Word:
    """One slot of an answer after a forward.

    ``text`` has its leading space; ``born`` is the forward that filled the slot (None: still masked); ``fresh``: it was
    this forward."""

    text: str
    born: int | None
    fresh: bool

    @property
    def hidden(self) -> bool:
        return self.born is None


@dataclass(frozen=True)
class Step:
    """The answers after ``forwards`` of the backbone and ``seconds``, masked slots included.

    ``said`` is the text before the first masked slot of each, decoded as a whole: a letter may be several tokens."""

    forwards: int
    seconds: float
    rows: list[list[Word]]
    said: tuple[str, ...] = ()


@dataclass
class Recorder:
    """Takes what decoding tells after every forward (it is an ``on_step``); ``watch`` is told each step as it comes."""

    prompter: Prompter
    rows: int
    watch: Callable[[Step], None] | None = None
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.steps: list[Step] = []
        self._born: list[dict[int, int]] = [{} for _ in range(self.rows)]

    def __call__(self, progress: Progress) -> None:
        rows = []
        for born, ids, fresh in zip(self._born, progress.rows, progress.fresh, strict=True):
            words = []
            for slot, (id_, new) in enumerate(zip(ids, fresh, strict=True)):
                if id_ == progress.mask:
                    words.append(Word(HIDDEN, None, False))
                    continue
                first = born.setdefault(slot, progress.forwards)
                words.append(Word(self.said(id_), first, new or first == progress.forwards))
            rows.append(_until_end(words))
        said = tuple(self.begun(ids, progress.mask) for ids in progress.rows)
        step = Step(progress.forwards, time.perf_counter() - self.started, rows, said)
        self.steps.append(step)
        if self.watch is not None:
            self.watch(step)

    def begun(self, ids: list[int], mask: int) -> str:
        """An answer up to its first hidden slot or its end."""
        stop = next((slot for slot, id_ in enumerate(ids) if id_ in (mask, self.prompter.vocab.eos)), len(ids))
        return printable(self.prompter.decode(ids[:stop]))

    def said(self, id_: int) -> str:
        """One token as text."""
        if id_ == self.prompter.vocab.eos:
            return END
        return printable(str(self.prompter.tokenizer.decode([id_], clean_up_tokenization_spaces=False)))


def printable(text: str) -> str:
    """Without what a terminal would obey instead of show: a model can say any byte."""
    return "".join(letter for letter in text if letter == "\n" or unicodedata.category(letter) != "Cc")


def _until_end(words: list[Word]) -> list[Word]:
    """Nothing behind an end that stands with no hidden slot before it: nobody will read it."""
    for slot, word in enumerate(words):
        if word.hidden:
            return words
        if word.text == END:
            return words[: slot + 1]
    return words


def styled(words: list[Word], coloured: bool) -> Text:
    """One answer on one line. Without colours, what is new stands in square brackets."""
    line = Text()
    for word in words:
        if word.hidden:
            line.append(f" {HIDDEN}", style=DIM)
            continue
        bare = word.text.lstrip(" ").replace("\n", "⏎")
        line.append(" " * (len(word.text) - len(word.text.lstrip(" "))))
        if word.fresh:
            line.append(bare if coloured else f"[{bare}]", style=FRESH)
        else:
            line.append(bare, style=SETTLED)
    return line


def lines_of(step: Step, coloured: bool, before: Step | None = None) -> list[Text]:
    """A line for each answer that this forward changed."""
    lines = []
    for number, words in enumerate(step.rows):
        if before is not None and before.rows[number] and not any(word.fresh for word in words):
            continue
        head = Text().append(f"forward {step.forwards:>3}  ", style=DIM)
        if len(step.rows) > 1:
            head.append(f"#{number + 1} ", style="bold")
        lines.append(head + styled(words, coloured))
    return lines

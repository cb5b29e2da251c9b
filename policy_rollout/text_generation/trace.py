"""Record which tokens of an answer each forward fills in, and format them as lines.

Legend: B answers generated at once.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.text import Text

from models.decoding import Progress
from models.processing.text import Prompter

MASKED, END = "▁", "⏹"
FRESH, SETTLED, DIM = "bold black on green3", "default", "dim"


@dataclass(frozen=True)
class Token:
    """One slot of an answer after a forward. ``text``: with its leading space; ``forward``: the forward that filled it
    (None: still masked); ``fresh``: whether that was the last forward."""

    text: str
    forward: int | None
    fresh: bool

    @property
    def masked(self) -> bool:
        return self.forward is None

    @property
    def label(self) -> str:
        """The text of a chip in a drawing."""
        return "end" if self.text == END else self.text.strip().replace("\n", "⏎") or "␣"


@dataclass(frozen=True)
class Step:
    """The answers after ``forwards`` of the backbone and ``seconds``, masked slots included. ``prefixes``: the text
    before the first masked slot of each answer, decoded as a whole (a letter may consist of several tokens)."""

    forwards: int
    seconds: float
    rows: list[list[Token]]
    prefixes: tuple[str, ...] = ()


@dataclass
class Recorder:
    """Record the progress of decoding after every forward (an ``on_step`` callback); ``watch`` receives each step."""

    prompter: Prompter
    rows: int
    watch: Callable[[Step], None] | None = None
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.steps: list[Step] = []
        self._filled: list[dict[int, int]] = [{} for _ in range(self.rows)]

    def __call__(self, progress: Progress) -> None:
        rows = []
        for filled, ids, fresh in zip(self._filled, progress.rows, progress.fresh, strict=True):
            tokens = []
            for slot, (id_, new) in enumerate(zip(ids, fresh, strict=True)):
                if id_ == progress.mask:
                    tokens.append(Token(MASKED, None, False))
                    continue
                first = filled.setdefault(slot, progress.forwards)
                tokens.append(Token(self.text_of(id_), first, new or first == progress.forwards))
            rows.append(_until_end(tokens))
        prefixes = tuple(self.prefix(ids, progress.mask) for ids in progress.rows)
        step = Step(progress.forwards, time.perf_counter() - self.started, rows, prefixes)
        self.steps.append(step)
        if self.watch is not None:
            self.watch(step)

    def prefix(self, ids: list[int], mask: int) -> str:
        """Return an answer up to its first masked slot or its end."""
        stop = next((slot for slot, id_ in enumerate(ids) if id_ in (mask, self.prompter.vocab.eos)), len(ids))
        return printable(self.prompter.decode(ids[:stop]))

    def text_of(self, id_: int) -> str:
        """Return one token as text."""
        if id_ == self.prompter.vocab.eos:
            return END
        return printable(str(self.prompter.tokenizer.decode([id_], clean_up_tokenization_spaces=False)))


def printable(text: str) -> str:
    """Remove control characters, which a terminal would execute: a model can generate any byte."""
    return "".join(letter for letter in text if letter == "\n" or unicodedata.category(letter) != "Cc")


def _until_end(tokens: list[Token]) -> list[Token]:
    """Drop everything after an end that has no masked slot before it."""
    for slot, token in enumerate(tokens):
        if token.masked:
            return tokens
        if token.text == END:
            return tokens[: slot + 1]
    return tokens


def styled(tokens: list[Token], colored: bool) -> Text:
    """Return one answer on one line. Without colors, new tokens are in square brackets."""
    line = Text()
    for token in tokens:
        if token.masked:
            line.append(f" {MASKED}", style=DIM)
            continue
        bare = token.text.lstrip(" ").replace("\n", "⏎")
        line.append(" " * (len(token.text) - len(token.text.lstrip(" "))))
        if token.fresh:
            line.append(bare if colored else f"[{bare}]", style=FRESH)
        else:
            line.append(bare, style=SETTLED)
    return line


def lines_of(step: Step, colored: bool, previous: Step | None = None) -> list[Text]:
    """Return a line for each answer that this forward changed."""
    lines = []
    for number, tokens in enumerate(step.rows):
        if previous is not None and previous.rows[number] and not any(token.fresh for token in tokens):
            continue
        head = Text().append(f"forward {step.forwards:>3}  ", style=DIM)
        if len(step.rows) > 1:
            head.append(f"#{number + 1} ", style="bold")
        lines.append(head + styled(tokens, colored))
    return lines

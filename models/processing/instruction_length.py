"""Instructions that are longer than a model reads: counted, and refused where the cut makes two of them one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from common.text import shortened
from models.processing.text import Prompter

KEY = "dataset.preprocessing.max_seq_length"


def cut_instructions(prompter: Prompter, texts: Iterable[str]) -> dict[str, int]:
    """Return the distinct instructions that are cut, and how many ids each would need. Raise ``ValueError`` for a text
    that is not valid Unicode."""
    lengths = {text: prompter.instruction_length(text) for text in dict.fromkeys(texts)}
    return {text: length for text, length in lengths.items() if length > prompter.max_seq_length}


def require_distinct(prompter: Prompter, texts: Iterable[str], cut: Mapping[str, int], where: str) -> None:
    """Raise ``ValueError`` if one of the ``cut`` among these instructions has the ids of another, cut or whole."""
    first: dict[tuple[int, ...], str] = {}
    for text in sorted(
        texts, key=cut.__contains__
    ):  # the whole ones first: two of those may be one text to a tokenizer
        other = first.setdefault(tuple(prompter.instruction(text)), text)
        if other != text and text in cut:
            needed = max(map(prompter.instruction_length, (other, text)))
            raise ValueError(
                f"{where}: the instructions {other!a} and {text!a} are the same after the cut to "
                f"{KEY}={prompter.max_seq_length} ids; set {KEY}={needed} or more, or shorten them"
            )


def describe_cut(prompter: Prompter, cut: Mapping[str, int], total: int) -> str:
    """Return a line about the ``cut`` ones among ``total`` distinct instructions."""
    text, length = next(iter(cut.items()))
    return (
        f"{len(cut)} of {total} instructions are longer than {KEY}={prompter.max_seq_length} ids and are cut, such as "
        f"{shortened(text)} ({length} ids); {max(cut.values())} ids hold all of them"
    )

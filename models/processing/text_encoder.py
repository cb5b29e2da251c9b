"""Encode text as words only: control tokens in a text are spelled out.

A tokenizer looks for its added tokens (``<|endoftext|>``, ``[PAD]``, ``<|im_start|>``, ...) in a text before it splits
the text into words. ``TextEncoder`` works on a copy in which those tokens have names that no text contains. The ids of
all other text stay what they are.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from common.text import check_text, shortened

CONTROL_SHAPE = re.compile(r"[<\[{|].*[>\]}|]", re.DOTALL)
"""How control tokens are written that a tokenizer does not declare as special, such as ``<think>``."""


@dataclass(frozen=True)
class Encoded:
    """Ids of a text and, for each, the characters [start, stop) that it stands for."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class TextEncoder:
    """Encodes texts with the words of ``tokenizer`` (a fast tokenizer of transformers).

    Control tokens are the special tokens, and the added tokens in brackets. Added tokens that are plain text, such as
    the runs of spaces of Phi, are words. ``end``: text that stands for end-of-text; only our code can write it.
    """

    def __init__(self, tokenizer: Any) -> None:
        description = json.loads(tokenizer.backend_tokenizer.to_str())
        self._mark = secrets.token_hex(8)
        names = self._rename(description, set(tokenizer.all_special_tokens))
        description["truncation"] = description["padding"] = None
        self._encoder = Tokenizer.from_str(json.dumps(description))
        self._real = {
            self._encoder.token_to_id(names.get(content, content)): number
            for number, content in ((number, token.content) for number, token in tokenizer.added_tokens_decoder.items())
        }
        self.end = names[str(tokenizer.eos_token)]

    def _rename(self, description: dict[str, Any], special: set[str]) -> dict[str, str]:
        """Give every control token in a tokenizer's ``description`` another name. Returns content -> name."""
        names: dict[str, str] = {}
        for number, token in enumerate(description["added_tokens"]):
            content = token["content"]
            if token["special"] or content in special or CONTROL_SHAPE.fullmatch(content):
                names[content] = token["content"] = f"<{self._mark}-{number}>"
        _rename_in_model(description["model"], names)
        return names

    def encode(self, text: str) -> Encoded:
        """Raise ``ValueError`` for a text that cannot be encoded."""
        check_text(text)
        try:
            found = self._encoder.encode(text, add_special_tokens=False)
        except Exception as error:  # the tokenizers library raises nothing more special, e.g. for an unknown word
            raise ValueError(f"the tokenizer cannot encode the text {shortened(text)}: {error}") from error
        return Encoded([self._real.get(i, i) for i in found.ids], found.offsets)


def _rename_in_model(model: dict[str, Any], names: dict[str, str]) -> None:
    """Rename control tokens in the vocabulary too, where a plain text could be matched with them.

    A token that BPE makes by merging stays: it is an ordinary word that also serves as a control token.
    """
    vocab = model["vocab"]
    if isinstance(vocab, list):  # Unigram: [piece, score] in the order of ids
        for entry in vocab:
            entry[0] = names.get(entry[0], entry[0])
        return
    merged: set[str] = set()
    for merge in model.get("merges", ()):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        merged |= {left, right, left + right}
    for content, name in names.items():
        if content in vocab and content not in merged and len(content) > 1:
            vocab[name] = vocab.pop(content)
            if model.get("unk_token") == content:
                model["unk_token"] = name

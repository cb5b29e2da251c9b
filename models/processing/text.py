"""Tokenizer with special tokens, robot instructions, and conversations with their answer mask.

Answer masks are made by construction: the character span of each answer is known when the prompt is written, and the
tokenizer's offsets say which ids lie in it. Nothing is re-tokenised to find out. A text that spells a control token,
such as ``<|endoftext|>``, gives the ids of its letters (``models.processing.text_encoder``).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from common.constants import CODEBOOK_SIZE
from models.pretrained.weights_io import resolve_model_dir
from models.processing.text_encoder import TextEncoder
from models.vocabulary import SPECIAL_TOKENS, SYSTEM_PROMPT, Vocabulary

HUMAN, ASSISTANT = "human", "gpt"
"""Who speaks, in LLaVA's json."""

IMAGE_MARK = "<image>"


@dataclass(frozen=True)
class Conversation:
    """Ids of a rendered conversation and, for each, whether it is a target of the text objective."""

    ids: list[int]
    answer: list[bool]


def load_tokenizer(name_or_path: str | Path, *, trust_remote_code: bool = False) -> tuple[Any, int]:
    """Return a fast tokenizer with the ten special tokens added, and its number of words without them.

    Raises ``ValueError`` when the tokenizer is missing, is not a fast one, or already uses one of our names for a
    word of its own.
    """
    folder = resolve_model_dir(str(name_or_path), key="model.showo.llm_model_path", weights=False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except Exception as error:  # the tokenizers library raises nothing more special for a damaged tokenizer.json
        if any(folder.glob("*.model")) and importlib.util.find_spec("sentencepiece") is None:
            raise ValueError(
                f"{folder}: its tokenizer is a sentencepiece model, which needs the package sentencepiece "
                "(pip install sentencepiece); a tokenizer.json beside it does without"
            ) from error
        lines = str(error).splitlines() or [type(error).__name__]
        reason = lines[0] if (folder / "tokenizer.json").is_file() else "it has none"
        raise ValueError(f"{folder}: no usable tokenizer.json there ({reason})") from error
    if not tokenizer.is_fast:
        raise ValueError(f"{folder}: a fast tokenizer (tokenizer.json) is needed; this one has no character offsets")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{folder}: the tokenizer names no eos token; set eos_token in tokenizer_config.json")
    present = [token for token in SPECIAL_TOKENS if token in tokenizer.get_vocab()]
    if not present:
        words = len(tokenizer)
        tokenizer.add_special_tokens({"pad_token": SPECIAL_TOKENS[0]})
        tokenizer.add_tokens(list(SPECIAL_TOKENS[1:]), special_tokens=True)
    else:  # saved by us before
        words = len(tokenizer) - len(SPECIAL_TOKENS)
    ids = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    if ids != list(range(words, words + len(SPECIAL_TOKENS))):
        raise ValueError(
            f"{folder}: the tokenizer already has {', '.join(present)} at other ids; "
            f"the special tokens must be the last {len(SPECIAL_TOKENS)} ids"
        )
    return tokenizer, words


def vocabulary_of(tokenizer: Any, words: int, codebook_size: int = CODEBOOK_SIZE) -> Vocabulary:
    """The id space over a tokenizer. A tokenizer without bos (Qwen3) opens its texts with its eos instead."""
    eos = int(tokenizer.eos_token_id)
    bos = eos if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id)
    return Vocabulary(words=words, bos=bos, eos=eos, codebook_size=codebook_size)


class Prompter:
    """Builds prompts for one tokenizer, in training, evaluation and serving.

    ``max_seq_length``: most ids an instruction may have before its closing eos (the original's M).
    """

    def __init__(
        self, tokenizer: Any, vocab: Vocabulary, max_seq_length: int, system_prompt: str = SYSTEM_PROMPT
    ) -> None:
        self.tokenizer = tokenizer
        self.vocab = vocab
        self.max_seq_length = max_seq_length
        self.system_prompt = system_prompt
        self._encoder = TextEncoder(tokenizer)
        self._opening = str(tokenizer.bos_token or tokenizer.eos_token)
        self.system_ids: list[int] = self.words(system_prompt) if system_prompt else []

    def words(self, text: str) -> list[int]:
        """Return the ids of a text, all of them words. Raises ``ValueError`` for a text that is not valid Unicode."""
        return self._encoder.encode(text).ids

    def instruction(self, text: str) -> list[int]:
        """``[<|t2i|>, bos, words, eos]``; an instruction over ``max_seq_length + 1`` ids is cut, its eos kept.

        The text is words, but for a bos that is written out at its very start: that is the one that opens it anyway,
        as in the original. Raises ``ValueError`` for a text that is not valid Unicode.
        """
        ids = [self.vocab.t2i, self.vocab.bos, *self.words(text.removeprefix(self._opening))]
        return [*ids[: self.max_seq_length], self.vocab.eos]

    def instruction_length(self, text: str) -> int:
        """Return how many ids ``instruction`` needs before its closing eos, so that nothing is cut."""
        return 2 + len(self.words(text.removeprefix(self._opening)))

    def no_instruction(self) -> list[int]:
        """Return the row for a dropped text condition (classifier-free guidance)."""
        return [self.vocab.t2i, self.vocab.bos, self.vocab.eos]

    def conversation(self, turns: Sequence[tuple[str, str]]) -> Conversation:
        """``USER: q ASSISTANT: a<eos>USER: ...`` with the answers and their eos marked.

        ``turns``: (speaker, text) with speakers ``human`` and ``gpt`` in turn; a first turn that is not the human's
        is left out, as in LLaVA. Raises ``ValueError`` where the speakers do not alternate or nobody answers.
        """
        if turns and turns[0][0] != HUMAN:
            turns = turns[1:]
        if len(turns) < 2:
            raise ValueError("a conversation needs a question and an answer")
        text, spans = "", []
        for index, (speaker, words) in enumerate(turns):
            expected = (HUMAN, ASSISTANT)[index % 2]
            if speaker != expected:
                raise ValueError(f"turn {index} is spoken by {speaker!r}, expected {expected!r}")
            words = words.replace(IMAGE_MARK, "").strip()
            if speaker == HUMAN:
                text += f"USER: {words} ASSISTANT:"
            else:
                start = len(text)
                text += f" {words}{self._encoder.end}"
                spans.append((start, len(text)))
        encoded = self._encoder.encode(text)
        answer = [any(start < end_ <= stop for start, stop in spans) for _, end_ in encoded.offsets]
        return Conversation(ids=encoded.ids, answer=answer)

    def question(self, text: str) -> list[int]:
        """Return the prompt ``USER: q ASSISTANT:``; ``q`` may contain several rounds."""
        return self.words(f"USER: {text.replace(IMAGE_MARK, '').strip()} ASSISTANT:")

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids into text, without special tokens, image codes and the mask."""
        words = [i for i in ids if i < self.vocab.words]
        return str(self.tokenizer.decode(words, skip_special_tokens=True, clean_up_tokenization_spaces=False)).strip()


def questions_in(text: str) -> list[str]:
    """Split a text into questions at `` *** ``."""
    return [question.strip() for question in text.split("***") if question.strip()]

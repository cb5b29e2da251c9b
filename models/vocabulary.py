"""The one id space of the model: words, special tokens, image codes, mask.

    words (llm_vocab_size) | special tokens (10) | image codes (codebook_size) | mask

With Phi-1.5: 50295 + 10 + 8192 + 1 = 58498 ids. Source: Show-o's vocabulary, as UP-VLA extends it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.constants import CODEBOOK_SIZE

SPECIAL_TOKENS: tuple[str, ...] = (
    "[PAD]",
    "<|soi|>",
    "<|eoi|>",
    "<|sov|>",
    "<|eov|>",
    "<|t2i|>",
    "<|mmu|>",
    "<|t2v|>",
    "<|v2v|>",
    "<|lvg|>",
)
"""Added to the tokenizer in this order, so that the first one takes the id ``words``."""
SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""LLaVA's system prompt, which Show-o and UP-VLA train with (28 ids of Phi-1.5's tokenizer)."""


@dataclass(frozen=True)
class Vocabulary:
    """Sizes of the id space and the id of everything that is not a word.

    ``words``: size of the base tokenizer (``len(tokenizer)`` before anything is added).
    ``codebook_size``: number of image codes. ``bos``, ``eos``: word ids that open and close a text; they are the
    same id for Phi-1.5, and ``bos`` may stand in for a tokenizer that has none (Qwen3).
    """

    words: int
    bos: int
    eos: int
    codebook_size: int = CODEBOOK_SIZE

    def __post_init__(self) -> None:
        if self.words < 1 or self.codebook_size < 1:
            raise ValueError(f"a vocabulary needs words and codes, got words={self.words}, codes={self.codebook_size}")
        for name, value in (("bos", self.bos), ("eos", self.eos)):
            if not 0 <= value < self.words:
                raise ValueError(f"{name} id {value} is not a word id (0..{self.words - 1})")

    def special(self, token: str) -> int:
        """Return the id of one of ``SPECIAL_TOKENS``."""
        return self.words + SPECIAL_TOKENS.index(token)

    @property
    def pad(self) -> int:
        return self.special("[PAD]")

    @property
    def soi(self) -> int:
        return self.special("<|soi|>")

    @property
    def eoi(self) -> int:
        return self.special("<|eoi|>")

    @property
    def t2i(self) -> int:
        return self.special("<|t2i|>")

    @property
    def mmu(self) -> int:
        return self.special("<|mmu|>")

    @property
    def lvg(self) -> int:
        return self.special("<|lvg|>")

    @property
    def first_code(self) -> int:
        return self.words + len(SPECIAL_TOKENS)

    @property
    def mask(self) -> int:
        """The last id: an input (a masked token), never predicted."""
        return self.first_code + self.codebook_size

    @property
    def size(self) -> int:
        return self.mask + 1

    def code_ids(self, codes: Tensor) -> Tensor:
        """Return the ids of image codes 0..codebook_size-1."""
        return codes + self.first_code

    def codes(self, ids: Tensor) -> Tensor:
        """Return the image codes 0..codebook_size-1 of ids."""
        return ids - self.first_code

    @property
    def code_bit_count(self) -> int:
        """Bits of an image code. Raises ``ValueError`` if the size of the codebook is not a power of two."""
        if self.codebook_size & (self.codebook_size - 1):
            raise ValueError(f"image codes are bits only in a codebook of 2, 4, 8, ... codes, not {self.codebook_size}")
        return self.codebook_size.bit_length() - 1

    def code_bits(self, ids: Tensor) -> Tensor:
        """Return the bits of image codes as float32 +1/-1, the most significant first: ids [...] to [..., bits]."""
        shifts = torch.arange(self.code_bit_count - 1, -1, -1, device=ids.device)
        return (self.codes(ids)[..., None] >> shifts & 1).float() * 2 - 1

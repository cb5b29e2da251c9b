"""A model small enough for a test to build in a blink: real architectures, random weights, a tokenizer trained here."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PhiConfig, PreTrainedTokenizerFast, Qwen3Config

from models.pretrained.model_config import ModelConfig
from models.processing.text import Prompter, load_tokenizer, vocabulary_of
from models.upvla import UPVLA

SENTENCES = (
    "open the drawer and put the red block inside",
    "push the blue block to the left, then turn on the light",
    "USER: which colour is the block? ASSISTANT: The block is pink.",
    "A chat between a curious user and an artificial intelligence assistant.",
)


@cache
def _bpe() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return str(tokenizer.to_str())


def write_tokenizer(folder: Path, *, bos: bool = True) -> None:
    """A byte-level BPE; without bos it is like Qwen3's."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_bpe()),
        eos_token="<|endoftext|>",
        **({"bos_token": "<|endoftext|>"} if bos else {}),
    )
    fast.save_pretrained(str(folder))


def llm_config(kind: str = "phi", hidden: int = 32, layers: int = 2) -> Any:
    """A language model config of the named kind, with dropout off."""
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": 4, "vocab_size": 300}
    if kind == "phi":
        return PhiConfig(**sizes, intermediate_size=2 * hidden, partial_rotary_factor=0.5)
    if kind == "qwen3":
        return Qwen3Config(
            **sizes, intermediate_size=2 * hidden, num_key_value_heads=2, head_dim=hidden // 4, tie_word_embeddings=True
        )
    raise ValueError(kind)


def write_language_model(folder: Path, kind: str = "phi", *, hidden: int = 32, bos: bool = True) -> Path:
    """A directory with config.json and tokenizer, no weights: `llm_model_path` of a test."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, bos=bos)
    llm_config(kind, hidden).save_pretrained(str(folder))
    return folder


def tiny_model(
    folder: Path,
    kind: str = "phi",
    *,
    act_step: int = 4,
    num_view: int = 1,
    num_vq_tokens: int = 4,
    clip_width: int | None = 8,
    hidden: int = 32,
    seed: int = 0,
    **spec: Any,
) -> tuple[UPVLA, Prompter]:
    """Model and prompter over a tokenizer written into `folder`."""
    tokenizer, words = load_tokenizer(write_language_model(folder, kind, hidden=hidden))
    vocab = vocabulary_of(tokenizer, words, codebook_size=spec.pop("codebook_size", 64))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = UPVLA(
            ModelConfig(
                llm=llm_config(kind, hidden).to_dict(),
                words=words,
                bos=vocab.bos,
                eos=vocab.eos,
                codebook_size=vocab.codebook_size,
                act_step=act_step,
                num_view=num_view,
                num_vq_tokens=num_vq_tokens,
                clip_width=clip_width,
                max_seq_length=24,
                resolution=32,
            ).updated(**spec)
        )
    return model.eval(), Prompter(tokenizer, vocab, max_seq_length=24)

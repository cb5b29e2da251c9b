"""Write a tokenizer and language model configurations that can be trained on two CPU cores.

The tokenizer is a byte-level BPE trained on sentences of this project: instructions, questions, prompts. The language
models are transformers' Phi and Qwen3 at toy size. No weights are written: they are random at the start of training.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PhiConfig, PreTrainedTokenizerFast, Qwen3Config

from models.vocabulary import SYSTEM_PROMPT
from policy_rollout.calvin.instructions import HELD_OUT, TRAINING
from preprocess_data.tiny_assets.questions import sentences

VOCABULARY = 1024
END_OF_TEXT = "<|endoftext|>"


def corpus() -> Iterator[str]:
    """Yield every sentence that the embedded models receive or generate, each once."""
    yield SYSTEM_PROMPT
    for phrases in (TRAINING, HELD_OUT):
        for task in sorted(phrases):
            yield from phrases[task]
    for question, answer in sentences():
        yield f"USER: {question} ASSISTANT: {answer}"


def train_bpe() -> Tokenizer:
    """Train the tokenizer. The result is deterministic, because BPE merges are counted, not drawn."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())  # a set in the library: its order is not fixed
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def write_phi(folder: Path, hidden: int = 192, layers: int = 4) -> None:
    """Write a Phi with Phi-1.5's tokenizer convention (one token is both bos and eos) and heads of 32 channels."""
    _write_tokenizer(folder, bos=True)
    PhiConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        partial_rotary_factor=0.5,
        max_position_embeddings=2048,
    ).save_pretrained(str(folder))


def write_qwen3(folder: Path) -> None:
    """Write a Qwen3 with Qwen3's convention: a tokenizer without bos, grouped keys and values, tied embeddings."""
    _write_tokenizer(folder, bos=False)
    Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    ).save_pretrained(str(folder))


def _write_tokenizer(folder: Path, *, bos: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    named = {"eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
    if bos:
        named["bos_token"] = END_OF_TEXT
    PreTrainedTokenizerFast(tokenizer_object=train_bpe(), model_max_length=2048, **named).save_pretrained(str(folder))

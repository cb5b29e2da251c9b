"""Language models whose tokenizer is a sentencepiece model, without tokenizer.json (Llama, T5)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from models.pretrained.folders import TOKENIZER_FOLDER
from models.pretrained.model_io import load_folder, save_folder
from models.processing.text import Prompter, load_tokenizer, vocabulary_of
from tests.tiny import SENTENCES, tiny_model

sentencepiece = pytest.importorskip("sentencepiece")
LLAMA = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
T5 = {"tokenizer_class": "T5Tokenizer", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "extra_ids": 0}


def write_sentencepiece(folder: Path, kind: str) -> Path:
    """A language model directory with a tokenizer of the kind; returns the sentencepiece model."""
    folder.mkdir()
    t5 = kind == "t5"
    special = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1} if t5 else {"byte_fallback": True}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3),
        model_prefix=str(folder / ("spiece" if t5 else "tokenizer")),
        model_type="unigram" if t5 else "bpe",
        vocab_size=90 if t5 else 360,
        hard_vocab_limit=False,
        character_coverage=1.0,
        minloglevel=2,
        **special,
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(T5 if t5 else LLAMA), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "t5" if t5 else "llama"}), encoding="utf-8")
    return next(folder.glob("*.model"))


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_words_become_the_ids_that_sentencepiece_gives_and_come_back(tmp_path: Path, kind: str) -> None:
    file = write_sentencepiece(tmp_path / "llm", kind)
    tokenizer, words = load_tokenizer(tmp_path / "llm")
    reference = sentencepiece.SentencePieceProcessor(model_file=str(file))
    assert words == reference.get_piece_size()
    prompter = Prompter(tokenizer, vocabulary_of(tokenizer, words), max_seq_length=64)
    for text in (*SENTENCES, *(["jetzt öffnen 抽屉"] if kind == "llama" else [])):
        ids = prompter.instruction(text)
        assert ids[2:-1] == reference.encode(text)
        assert (ids[0], ids[-1]) == (prompter.vocab.t2i, prompter.vocab.eos)
        assert prompter.decode(ids) == text


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_answers_are_marked_from_their_first_word_to_their_end(tmp_path: Path, kind: str) -> None:
    write_sentencepiece(tmp_path / "llm", kind)
    tokenizer, words = load_tokenizer(tmp_path / "llm")
    prompter = Prompter(tokenizer, vocabulary_of(tokenizer, words), max_seq_length=64)
    turns = [("human", "which colour"), ("gpt", "The block is pink."), ("human", "the light"), ("gpt", "on")]
    said = prompter.conversation(turns)
    answers = prompter.decode([id_ for id_, learned in zip(said.ids, said.answer, strict=True) if learned])
    assert answers.split() == ["The", "block", "is", "pink.", "on"]
    ends = [learned for id_, learned in zip(said.ids, said.answer, strict=True) if id_ == prompter.vocab.eos]
    assert ends == [True, True]
    assert prompter.decode(prompter.question("which colour")) == "USER: which colour ASSISTANT:"


def test_a_model_saved_with_it_needs_no_sentencepiece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sentencepiece(tmp_path / "llm", "llama")
    tokenizer, words = load_tokenizer(tmp_path / "llm")
    model, _ = tiny_model(tmp_path / "tiny")
    vocab = vocabulary_of(tokenizer, words, codebook_size=64)
    prompter = Prompter(tokenizer, vocab, max_seq_length=24)
    save_folder(model, prompter, tmp_path / "saved")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    again, found = load_tokenizer(tmp_path / "saved" / TOKENIZER_FOLDER)
    assert found == words
    text = SENTENCES[0]
    assert Prompter(again, vocab, 24).instruction(text) == prompter.instruction(text)
    with pytest.raises(ValueError, match=rf"has {words} words, but config\.json says"):
        load_folder(tmp_path / "saved")


def test_without_the_package_the_line_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sentencepiece(tmp_path / "llm", "llama")
    for module in [name for name in sys.modules if name.partition(".")[0] == "sentencepiece"]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=r"llm: its tokenizer is a sentencepiece model.*pip install sentencepiece"):
        load_tokenizer(tmp_path / "llm")

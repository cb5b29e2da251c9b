"""Instructions, conversations and their answer masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from models.processing.text import Prompter, load_tokenizer, vocabulary_of
from tests.tiny import write_language_model


@pytest.fixture(scope="module", params=[True, False], ids=["bos", "no_bos"])
def prompter(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Prompter:
    folder = write_language_model(tmp_path_factory.mktemp("llm"), bos=request.param)
    tokenizer, words = load_tokenizer(folder)
    return Prompter(tokenizer, vocabulary_of(tokenizer, words), max_seq_length=16)


def answered(prompter: Prompter, turns: list[tuple[str, str]]) -> list[str]:
    row = prompter.conversation(turns)
    pieces: list[list[int]] = []
    inside = False
    for token, answer in zip(row.ids, row.answer, strict=True):
        if answer and not inside:
            pieces.append([])
        if answer:
            pieces[-1].append(token)
        inside = answer
    return [prompter.tokenizer.decode(piece) for piece in pieces]


def test_an_instruction_opens_with_the_task_and_bos_and_closes_with_eos(prompter: Prompter) -> None:
    vocab = prompter.vocab
    ids = prompter.instruction("open the drawer")
    assert ids[:2] == [vocab.t2i, vocab.bos]
    assert ids[-1] == vocab.eos
    assert prompter.decode(ids) == "open the drawer"


def test_a_long_instruction_is_cut_and_keeps_its_end(prompter: Prompter) -> None:
    ids = prompter.instruction("push the blue block " * 20)
    assert len(ids) == prompter.max_seq_length + 1
    assert ids[-1] == prompter.vocab.eos


def test_a_bos_that_is_written_out_is_not_doubled(prompter: Prompter) -> None:
    text = prompter.tokenizer.eos_token + "open"
    assert prompter.instruction(text).count(prompter.vocab.bos) == 2  # the one written, and the closing eos


def test_no_words_still_make_an_instruction(prompter: Prompter) -> None:
    assert prompter.instruction("") == prompter.no_instruction()


def test_every_answer_of_a_conversation_is_learned_with_its_end_and_nothing_else(prompter: Prompter) -> None:
    end = prompter.tokenizer.eos_token
    turns = [("human", "<image>\nwhich block?"), ("gpt", "the red one"), ("human", "where?"), ("gpt", "left")]
    assert answered(prompter, turns) == [f" the red one{end}", f" left{end}"]
    text = prompter.tokenizer.decode(prompter.conversation(turns).ids)
    assert text == f"USER: which block? ASSISTANT: the red one{end}USER: where? ASSISTANT: left{end}"


def test_a_question_that_quotes_the_assistant_does_not_confuse_the_mask(prompter: Prompter) -> None:
    turns = [("human", "what does ASSISTANT: mean"), ("gpt", "that is me")]
    assert answered(prompter, turns) == [f" that is me{prompter.tokenizer.eos_token}"]


def test_a_first_turn_of_the_assistant_is_left_out(prompter: Prompter) -> None:
    turns = [("human", "hi"), ("gpt", "ok")]
    assert prompter.conversation([("gpt", "ignored"), *turns]) == prompter.conversation(turns)


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "question and an answer"),
        ([("human", "hi")], "question and an answer"),
        ([("human", "hi"), ("human", "hello")], "spoken by 'human'"),
    ],
)
def test_a_broken_conversation_is_refused(prompter: Prompter, turns: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prompter.conversation(turns)


def test_a_question_is_the_prefix_of_its_conversation(prompter: Prompter) -> None:
    row = prompter.conversation([("human", "which colour?"), ("gpt", "pink")])
    question = prompter.question("which colour?")
    assert row.ids[: len(question)] == question
    assert not any(row.answer[: len(question)])
    assert row.answer[len(question)]


def test_ids_that_are_not_words_are_never_decoded(prompter: Prompter) -> None:
    words = prompter.question("red")
    assert prompter.decode([*words, prompter.vocab.mask, prompter.vocab.first_code]) == prompter.decode(words)


def test_a_folder_without_tokenizer_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no usable tokenizer"):
        load_tokenizer(tmp_path)

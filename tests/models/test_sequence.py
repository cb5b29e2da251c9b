"""Layouts of the two flows, and what must not matter: padding, row order, company."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.attention_mask import Kind
from models.sequence import TextTurn, clean_text_sequence, future_targets, pad_right, robot_sequence
from models.vocabulary import SPECIAL_TOKENS, Vocabulary

VOCAB = Vocabulary(words=100, bos=1, eos=2, codebook_size=64)

lengths = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def test_the_id_space_of_phi_is_the_documented_one() -> None:
    phi = Vocabulary(words=50295, bos=50256, eos=50256)
    assert (phi.pad, phi.soi, phi.lvg) == (50295, 50296, 50304)
    assert (phi.first_code, phi.mask, phi.size) == (50305, 58497, 58498)
    assert len(SPECIAL_TOKENS) == 10


@pytest.mark.parametrize("arguments", [{"words": 0}, {"bos": 100}, {"eos": -1}, {"codebook_size": 0}])
def test_an_impossible_vocabulary_is_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"vocabulary|word id"):
        Vocabulary(**{"words": 100, "bos": 1, "eos": 2, **arguments})


@given(lengths=lengths, codes=st.integers(1, 8), chunk=st.integers(1, 5), extra=st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_robot_rows_end_together_and_count_positions_from_their_first_word(
    lengths: list[int], codes: int, chunk: int, extra: int
) -> None:
    rows = [[VOCAB.t2i] + [3] * (n - 1) for n in lengths]
    images = torch.arange(len(rows) * codes).view(len(rows), codes) % VOCAB.codebook_size
    width = max(lengths) + extra
    sequence = robot_sequence(VOCAB, rows, images, chunk, pad_to=width)
    assert sequence.ids.shape == (len(rows), width + codes + 2 + chunk)
    assert sequence.image is not None
    assert sequence.actions is not None
    assert torch.equal(VOCAB.codes(sequence.ids[:, sequence.image.columns][:, 1:-1]), images)
    assert (sequence.ids[:, sequence.actions.columns] == VOCAB.lvg).all()
    for row, n in enumerate(lengths):
        valid = sequence.slots.valid[row]
        assert int(valid.sum()) == n + codes + 2 + chunk
        assert sequence.slots.pos[row][valid].tolist() == list(range(int(valid.sum())))
        assert (sequence.ids[row][~valid] == VOCAB.pad).all()
    trimmed = robot_sequence(VOCAB, rows, images, chunk)
    assert trimmed.ids.shape[1] == sequence.ids.shape[1] - extra
    assert torch.equal(trimmed.ids, sequence.ids[:, extra:])
    assert torch.equal(trimmed.rule.dense(trimmed.slots), sequence.rule.dense(sequence.slots)[:, :, extra:, extra:])


def test_the_future_is_learned_in_place_with_its_edges() -> None:
    targets = future_targets(VOCAB, torch.tensor([[5, 6]]))
    assert targets.tolist() == [[VOCAB.soi, VOCAB.first_code + 5, VOCAB.first_code + 6, VOCAB.eoi]]


@given(lengths=lengths, patches=st.integers(1, 4), system=st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_a_conversation_is_laid_out_after_system_prompt_and_image(
    lengths: list[int], patches: int, system: int
) -> None:
    answers = [[at >= 2 for at in range(n)] for n in lengths]
    turn = TextTurn.of_rows([[7] * n for n in lengths], answers, VOCAB.pad, torch.zeros(len(lengths), patches, 3))
    ids, answer = turn.ids, turn.answer
    sequence = clean_text_sequence(VOCAB, [9] * system, turn)
    head = 1 + system + 1 + patches + 1
    assert sequence.ids.shape[1] == head + ids.shape[1]
    assert sequence.ids[0, : 2 + system].tolist() == [VOCAB.mmu, *[9] * system, VOCAB.soi]
    assert sequence.ids[0, head - 1] == VOCAB.eoi
    kinds = sequence.slots.kind
    assert torch.equal(kinds[:, head:] == Kind.ANSWER, answer)
    assert torch.equal(kinds[:, head:] == Kind.PAD, ids == VOCAB.pad)
    assert int((kinds == Kind.PATCH).sum()) == patches * len(lengths)


def test_a_row_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="3 ids, but only 2 fit"):
        pad_right([[1, 2, 3]], 0, 2)


def test_instructions_and_codes_must_agree_in_number() -> None:
    with pytest.raises(ValueError, match="1 instructions for 2 rows"):
        robot_sequence(VOCAB, [[1]], torch.zeros(2, 4, dtype=torch.long), 2)


def test_saved_tokenizers_come_back_with_the_same_ids(tmp_path: Path) -> None:
    from models.processing.text import load_tokenizer
    from tests.tiny import write_language_model

    tokenizer, words = load_tokenizer(write_language_model(tmp_path / "llm"))
    tokenizer.save_pretrained(str(tmp_path / "again"))
    again, words_again = load_tokenizer(tmp_path / "again")
    assert words == words_again
    assert again.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(words, words + 10))

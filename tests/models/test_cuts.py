"""What is cut is counted and named, and a cut that makes two tasks one is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from models.decoding import generate
from models.language_model.positions import beyond_positions
from models.processing.instruction_length import cut_instructions, describe_cut, require_distinct
from models.processing.text import Prompter
from models.upvla import UPVLA
from tests.data.builders import edit_index, processed_split
from tests.tiny import tiny_model
from training.build.summary import instruction_notes
from training.data.episode_index import read_index

LEFT, RIGHT = (f"push the red block to the far {side} side of the table" for side in ("left", "right"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[UPVLA, Prompter]:
    return tiny_model(tmp_path_factory.mktemp("lm"))


@pytest.fixture
def short(built: tuple[UPVLA, Prompter]) -> Prompter:
    prompter = built[1]
    return Prompter(prompter.tokenizer, prompter.vocab, max_seq_length=8)


def test_cut_instructions_are_found_with_the_length_that_holds_them(short: Prompter) -> None:
    cut = cut_instructions(short, ["open", LEFT, "open", LEFT])
    assert list(cut) == [LEFT]
    whole = Prompter(short.tokenizer, short.vocab, cut[LEFT])
    assert whole.decode(whole.instruction(LEFT)) == LEFT
    assert cut_instructions(whole, [LEFT]) == {}
    one_less = Prompter(short.tokenizer, short.vocab, cut[LEFT] - 1)
    assert cut_instructions(one_less, [LEFT]) == cut
    line = describe_cut(short, cut, 2)
    assert line.startswith("1 of 2 instructions")
    assert f"max_seq_length={short.max_seq_length}" in line
    assert f"{cut[LEFT]} ids hold all" in line


def test_two_instructions_that_the_cut_makes_one_are_refused(short: Prompter) -> None:
    other = "open the drawer and wait for me"
    require_distinct(short, [other, LEFT], cut_instructions(short, [other, LEFT]), "here")
    with pytest.raises(ValueError, match="are the same after the cut") as caught:
        require_distinct(short, [LEFT, RIGHT], cut_instructions(short, [LEFT, RIGHT]), "here")
    needed = max(map(short.instruction_length, (LEFT, RIGHT)))
    assert f"dataset.preprocessing.max_seq_length={needed} or more" in str(caught.value)


@pytest.mark.parametrize("order", [1, -1])
def test_an_instruction_that_the_cut_makes_another_whole_one_is_refused(short: Prompter, order: int) -> None:
    whole = "push the red block"
    exact = Prompter(short.tokenizer, short.vocab, short.instruction_length(whole))
    texts = [whole, f"{whole} to the left"][::order]
    cut = cut_instructions(exact, texts)
    assert list(cut) == [f"{whole} to the left"]
    with pytest.raises(ValueError, match="are the same after the cut"):
        require_distinct(exact, texts, cut, "here")


def test_the_instructions_of_a_split_are_checked_at_the_start_of_a_run(tmp_path: Path, short: Prompter) -> None:
    short = Prompter(short.tokenizer, short.vocab, short.instruction_length("do thing 0"))
    processed_split(tmp_path / "split", [2, 2, 3])
    assert instruction_notes(short, read_index(tmp_path / "split")) == []
    edit_index(tmp_path / "split", lambda episodes: episodes[0].update(instruction=LEFT))
    (line,) = instruction_notes(short, read_index(tmp_path / "split"))
    assert "1 of 3 instructions" in line
    edit_index(tmp_path / "split", lambda episodes: episodes[2].update(instruction=RIGHT))
    with pytest.raises(ValueError, match=r"dataset_info\.json: the instructions .*max_seq_length"):
        instruction_notes(short, read_index(tmp_path / "split"))


def test_answers_that_end_at_the_limit_are_marked(built: tuple[UPVLA, Prompter]) -> None:
    model, prompter = built
    made = generate(model, prompter, ["which block?"] * 2, max_new_tokens=3)
    assert made.cut == [row[-1] != model.vocab.eos for row in made.ids]
    first = made.ids[0][0]
    assert generate(model, prompter, ["which block?"], max_new_tokens=3, stop=first).cut == [False]
    assert generate(model, prompter, ["which block?"], max_new_tokens=1, stop=model.vocab.pad).cut == [True]


def config(**fields: Any) -> SimpleNamespace:
    return SimpleNamespace(model_type="any", max_position_embeddings=100, **fields)


def test_positions_beyond_the_backbone_are_named_and_refused_where_it_has_none() -> None:
    rotary = config(rope_parameters={"rope_theta": 1e4})
    assert beyond_positions(rotary, 100, "rows", "shorten them") is None
    line = beyond_positions(rotary, 101, "rows", "shorten them")
    assert line is not None
    assert "max_position_embeddings=100" in line
    with pytest.raises(ValueError, match="max_position_embeddings=100"):
        beyond_positions(config(), 101, "rows", "shorten them")
    assert beyond_positions(SimpleNamespace(model_type="any"), 10**6, "rows", "") is None


def test_a_generation_beyond_the_positions_is_logged_once(
    built: tuple[UPVLA, Prompter], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompter = built
    monkeypatch.setattr(model.backbone.config, "max_position_embeddings", 5)
    for _ in range(2):
        generate(model, prompter, ["which block is it?"], max_new_tokens=1)
    assert [record.message for record in caplog.records if "max_position_embeddings=5" in record.message] != []
    assert len([record for record in caplog.records if "max_position_embeddings=5" in record.message]) == 1

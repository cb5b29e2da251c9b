"""Conversations: answers are marked, images are real, and what is left out is counted and named."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models.processing.image import ClipImageSpec, clip_pixels
from models.processing.text import Conversation
from training.data.batch import collate_text
from training.data.llava import INDEX_NAME, NO_IMAGE, NOT_AN_OBJECT, LeftOut, LlavaDataset

SPEC = ClipImageSpec(resize=8, crop=(8, 8), resample=3, scale=1 / 255, mean=(0.5,) * 3, std=(0.5,) * 3)


class LetterPrompter:
    """One id a letter; answers are marked."""

    def conversation(self, turns: list[tuple[str, str]]) -> Conversation:
        ids = [ord(letter) for _, text in turns for letter in text]
        return Conversation(ids, [speaker == "gpt" for speaker, text in turns for _ in text])


def record(image: str | None, *texts: str, first: str = "human") -> dict[str, Any]:
    speakers = ["human", "gpt"] if first == "human" else ["gpt", "human"]
    turns = [{"from": speakers[i % 2], "value": text} for i, text in enumerate(texts)]
    return {"id": "x", "conversations": turns} | ({} if image is None else {"image": image})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "coco").mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 256, (10, 14, 3), dtype=np.uint8)).save(tmp_path / f"coco/{number}.png")
    return tmp_path


def dataset(root: Path, records: list[Any], max_ids: int = 100, **options: Any) -> LlavaDataset:
    (root / INDEX_NAME).write_text(json.dumps(records))
    prompter: Any = LetterPrompter()
    return LlavaDataset(root, prompter, options.pop("image_spec", SPEC), max_ids, **options)


def test_a_record_becomes_ids_with_marked_answers_and_clip_pixels(root: Path) -> None:
    data = dataset(root, [record("coco/0.png", "qq", "aaa", "q", "a"), record("coco/1.png", "q", "a")])
    assert len(data) == 2
    sample = data[0]
    assert "".join(map(chr, sample.ids)) == "qqaaaqa"
    assert sample.answer == [False, False, True, True, True, False, True]
    expected = clip_pixels(Image.open(root / "coco/0.png"), SPEC)
    assert torch.equal(sample.pixels, expected)
    batch = collate_text([data[0], data[1]])
    assert batch.pixels.shape == (2, 3, 8, 8)
    assert [len(ids) for ids in batch.ids] == [7, 2]
    assert batch.indices.tolist() == [0, 1]


def test_what_cannot_be_used_is_counted_by_reason_and_folder_and_named(root: Path) -> None:
    records = [
        record(None, "q", "a"),
        record("coco/9.png", "q", "a"),
        record("nowhere/0.png", "q", "a"),
        record("coco/0.png", "q"),
        record("coco/0.png", "q", "a", first="gpt"),
        {"image": "coco/0.png", "conversations": [{"from": "human", "value": "q"}, {"from": "human", "value": "q"}]},
        {"image": "coco/0.png", "conversations": "text"},
        {"image": "coco/0.png"},
        {"image": 3, "conversations": []},
        {"image": "coco/0.png", "conversations": [{"from": "human", "value": None}]},
        record("coco/1.png", "q", "right"),
        record("coco/2.png", "left out", "q", "right", first="gpt"),
        {**record(None, "q", "a"), "image": ["coco/0.png", "coco/1.png"]},
        record(None, "<image>\nq", "a"),
        {**record(None, "q <image>", "a"), "image": ""},
    ]
    data = dataset(root, records)
    assert len(data) == 2
    assert data.skipped.counts == {
        NO_IMAGE: 1,
        "whose image does not exist": 2,
        "without a question and answer in turn": 7,
        "with several images": 1,
        "with an <image> mark but no image": 2,
    }
    said = data.summary()
    assert said[0].endswith("mix665k.json: 15 records, 2 usable [coco 2]")
    lost = "left out: 2 whose image does not exist [coco 1, nowhere 1]: record 1 'coco/9.png', record 2 'nowhere/0.png'"
    assert lost in said[2]
    assert "record 0" in said[1]
    assert "7 without a question and answer in turn [coco 6, ? 1]" in said[3]
    assert said[3].endswith(", ...")  # five of them are named
    assert said[5].endswith("[no image 2]: record 13, record 14")


UNUSABLE = {
    "with several images": {**record(None, "q", "a"), "image": ["coco/0.png", "coco/1.png"]},
    "whose image is not named by a path": {**record(None, "q", "a"), "image": {"path": "coco/0.png"}},
    "with more <image> marks than images": record("coco/0.png", "<image> and <image>: which?", "a"),
    "with an <image> mark but no image": {**record(None, "<image> q", "a"), "image": []},
    "with an empty answer": record("coco/0.png", "q", " \n"),
    "with text that is not valid Unicode (half of a surrogate pair, such as half an emoji)": record(
        "coco/0.png", "q", "it is \ud83d red"
    ),
    "whose image does not exist": record("coco/\0.png", "q", "a"),
}


@pytest.mark.parametrize("reason", UNUSABLE)
def test_a_record_that_cannot_be_learned_obeys_on_bad_record(root: Path, reason: str) -> None:
    records = [record("coco/1.png", "q", "a"), UNUSABLE[reason]]
    data = dataset(root, records)
    assert (len(data), data.skipped.counts) == (1, {reason: 1})
    "".join(data.summary()).encode()  # can be printed
    with pytest.raises(ValueError, match=r"mix665k\.json: record 1 ") as caught:
        dataset(root, records, on_bad_record="error")
    assert reason in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize("where", ["question", "image"])
def test_half_an_emoji_is_found_wherever_it_stands(root: Path, where: str) -> None:
    bad = record("coco/0.png", "\ud83d?", "a") if where == "question" else record("\ud83d/0.png", "q", "a")
    data = dataset(root, [record("coco/1.png", "q", "a"), bad], image_spec=None)
    assert list(data.skipped.counts) == [
        "with text that is not valid Unicode (half of a surrogate pair, such as half an emoji)"
    ]


def test_one_image_in_a_list_is_that_image(root: Path) -> None:
    listed = {**record(None, "<image>q", "a"), "image": ["coco/1.png"]}
    data = dataset(root, [listed, record("coco/1.png", "<image>q", "a")])
    assert len(data) == 2
    assert torch.equal(data[0].pixels, data[1].pixels)
    assert data.summary()[0].endswith("[coco 2]")


def test_an_error_while_a_record_is_read_names_file_and_record(root: Path) -> None:
    (root / "coco/3.png").write_bytes(b"no image")
    records = [record(None, "q", "a"), record("coco/3.png", "q", "a"), record("coco/1.png", "q", "a")]
    assert "mix665k.json: record 1: " in dataset(root, records)[0].left_out[0][1]
    with pytest.raises(ValueError, match=r"mix665k\.json: record 1: .*3\.png cannot be decoded"):
        dataset(root, records, on_bad_record="error")[0]


def test_a_conversation_that_is_cut_is_counted_and_logged_once(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = dataset(root, [record("coco/0.png", "qq", "aaaaaa"), record("coco/1.png", "q", "a" * 9)], max_ids=5)
    counted = LeftOut()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            counted.report_cut(collate_text([data[0], data[1]]).cut)
    assert counted.cut == 2
    assert [(s.cut, len(s.ids)) for s in (data[0], data[1])] == [(3, 5), (5, 5)]
    assert len(caplog.records) == 1
    assert "conversation 0 is cut by 3 ids" in caplog.text
    assert "dataset.preprocessing.max_seq_length" in caplog.text


@pytest.mark.parametrize(
    "bad", [record(None, "<image>q", "a"), record("coco/9.png", "q", "a"), record("coco/0.png", "q")]
)
def test_the_error_policy_refuses_the_file_and_names_the_record(root: Path, bad: Any) -> None:
    with pytest.raises(ValueError, match=r"mix665k\.json: record 1.* is unusable"):
        dataset(root, [record("coco/0.png", "q", "a"), bad], on_bad_record="error")


def test_conversations_without_an_image_are_used_as_what_they_are_when_asked(root: Path) -> None:
    records = [record("coco/0.png", "q", "a"), record(None, "qq", "bb"), {**record(None, "q", "c"), "image": None}]
    left_out = dataset(root, records, on_bad_record="error")  # they are no error
    assert (len(left_out), left_out.skipped.counts) == (1, {NO_IMAGE: 2})
    data = dataset(root, records, text_only="use")
    assert (len(data), len(data.skipped)) == (3, 0)
    assert data.summary()[0].endswith("3 records, 3 usable [no image 2, coco 1]")
    sample = data[1]
    assert sample.pixels is None
    assert "".join(map(chr, sample.ids)) == "qqbb"
    mixed = collate_text([data[1], data[0], data[2]])
    assert mixed.pictured.tolist() == [False, True, False]
    assert mixed.pixels.shape == (1, 3, 8, 8)
    assert torch.equal(mixed.pixels[0], clip_pixels(Image.open(root / "coco/0.png"), SPEC))
    words = collate_text([data[1], data[2]])
    assert len(words.pixels) == 0
    assert not words.pictured.any()


def test_an_image_that_does_not_decode_is_replaced_by_the_next_record_and_said_once(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "coco/3.png").write_bytes(b"no image")
    records = [record(f"coco/{number}.png", "q", f"a{number}") for number in (2, 3, 1)]
    data = dataset(root, records)
    samples, told = [data[1], data[1]], LeftOut()
    with caplog.at_level(logging.WARNING):
        told.report(collate_text(samples).left_out)
    assert len(told) == 1
    assert [index for index, _ in samples[0].left_out] == [1]
    assert data[0].left_out == ()
    assert [sample.index for sample in samples] == [2, 2]
    assert samples[0].ids == data[2].ids
    assert torch.equal(samples[0].pixels, data[2].pixels)
    assert len(caplog.records) == 1
    assert "3.png cannot be decoded" in caplog.text
    assert "coco/3.png" in caplog.text
    with pytest.raises(ValueError, match=r"3\.png cannot be decoded"):
        dataset(root, records, on_bad_record="error")[1]


def test_a_data_set_in_which_nothing_decodes_ends_with_an_error(root: Path) -> None:
    (root / "coco/3.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"3 records in a row.* cannot be used; the first: .*3\.png cannot be decoded"):
        dataset(root, [record("coco/3.png", "q", "a")] * 3)[0]


def test_where_nothing_can_be_read_any_more_not_every_record_is_tried(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.data.llava.MAX_SKIPPED", 2)
    (root / "coco/3.png").write_bytes(b"no image")
    data = dataset(root, [record("coco/3.png", "q", "a")] * 3 + [record("coco/0.png", "q", "a")])
    with pytest.raises(ValueError, match="2 records in a row"):
        data[0]
    assert data[2].index == 3


def test_a_long_conversation_is_cut_from_the_front_and_one_cut_before_its_answer_is_replaced(root: Path) -> None:
    data = dataset(root, [record("coco/0.png", "qqqqqq", "a"), record("coco/1.png", "q", "aaaaaaa")], max_ids=4)
    assert data[1].answer == [False, True, True, True]
    assert data[0].index == 1


def test_without_an_image_tower_no_image_is_opened(root: Path) -> None:
    data = dataset(root, [record("not/there.png", "q", "a")], image_spec=None)
    assert data[0].pixels.shape == (3, 0, 0)


def test_images_may_lie_elsewhere_and_the_json_may_have_any_name(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "elsewhere.json"
    path.write_text(json.dumps([record("0.png", "q", "a")]))
    prompter: Any = LetterPrompter()
    data = LlavaDataset(path, prompter, SPEC, 10, image_root=root / "coco")
    assert data[0].pixels.shape == (3, 8, 8)


def test_an_empty_file_a_missing_one_and_one_with_nothing_usable_are_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="no usable record: it is empty"):
        dataset(root, [])
    with pytest.raises(ValueError, match=r"no usable record: 1 without an image \(dataset\.params\.text_only=use"):
        dataset(root, [record(None, "q", "a")])
    (root / INDEX_NAME).unlink()
    prompter: Any = LetterPrompter()
    with pytest.raises(FileNotFoundError, match="mix665k"):
        LlavaDataset(root, prompter, SPEC, 10)
    data = dataset(root, [record("coco/0.png", "q", "a")])
    with pytest.raises(IndexError):
        data[1]


STRAYS = [None, 17, 1.5, "text", ["a", "b"], True]


def test_elements_that_are_no_objects_obey_on_bad_record(root: Path) -> None:
    records = [record("coco/0.png", "q", "a"), *STRAYS, record("coco/1.png", "q", "b")]
    data = dataset(root, records)
    assert len(data) == 2
    assert data.skipped.counts == {NOT_AN_OBJECT: len(STRAYS)}
    assert data.skipped.names[NOT_AN_OBJECT][0] == "record 1"
    with pytest.raises(ValueError, match="record 1 is unusable"):
        dataset(root, records, on_bad_record="error")


def test_a_number_of_ten_thousand_digits_in_a_record_is_no_error(root: Path) -> None:
    (root / INDEX_NAME).write_text(json.dumps([record("coco/0.png", "q", "a")]).replace('"x"', "1" * 10_000))
    prompter: Any = LetterPrompter()
    assert len(LlavaDataset(root, prompter, SPEC, 100)) == 1

"""Benchmarks of questions: what is read, what an answer is worth, and asking that survives a kill."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common.statistics import clustered_rate, wilson
from models.decoding import DecodingStats, Generation
from policy_rollout.benchmarks.vqa.inference import Answer, Batch, answer_questions, order_by_image
from policy_rollout.benchmarks.vqa.questions import Question, digest, read_questions, require_images
from policy_rollout.benchmarks.vqa.results import Scored, compare, figures, verdict
from policy_rollout.benchmarks.vqa.scores import (
    accuracy,
    blind_guess,
    pope_figures,
    score_of,
    textvqa_score,
    vqa_form,
    yes_or_no,
)


def question(number: int, image: str, *truths: str, text: str = "", kind: str = "all") -> Question:
    return Question(str(number), image, text or f"question {number}?", truths, kind)


# --- what an answer is worth -----------------------------------------------------------------------------------------


def official_soft_accuracy(said: str, truths: Sequence[str]) -> float:
    """As the challenge defines it: of every annotator left out, min(others who agree with the answer / 3, 1)."""
    of_each = []
    for left_out in range(len(truths)):
        others = [truth for i, truth in enumerate(truths) if i != left_out]
        of_each.append(min(1.0, sum(other == said for other in others) / 3))
    return sum(of_each) / len(of_each)


@pytest.mark.parametrize("agreeing", range(11))
def test_textvqa_is_the_mean_over_annotators_left_out(agreeing: int) -> None:
    truths = ["cola"] * agreeing + [f"other{i}" for i in range(10 - agreeing)]
    assert textvqa_score("cola", truths) == pytest.approx(official_soft_accuracy("cola", truths))


def test_textvqa_scores_of_every_mixture_are_the_definitions() -> None:
    for truths in product(("x", "y", "z"), repeat=5):
        for said in ("x", "y", "nothing"):
            assert textvqa_score(said, truths) == pytest.approx(official_soft_accuracy(said, truths))


@pytest.mark.parametrize(
    ("said", "form"),
    [
        ("The Coca-Cola", "coca cola"),
        ("two", "2"),
        ("None", "0"),
        ("an  apple,", "apple"),
        ("dont walk", "don't walk"),
        ("couldnt've", "couldn't've"),
        ("Joe's", "joe 's"),
        ("3.5 a.m.", "3.5 am"),
        ("1,000", "1000"),
        ("7/11", "7 11"),
        ("what? a / b", "what b"),
        ("(stop)", "stop"),
        ("line\none", "line 1"),
    ],
)
def test_answers_are_normalised_as_the_challenge_does(said: str, form: str) -> None:
    """Worked out by hand from the rules: marks beside a space vanish, others become one; full stops stay before digits;
    number words are digits; articles go; contractions get their apostrophe back."""
    assert vqa_form(said) == form


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("Yes, there is.", "yes"),
        ("No", "no"),
        ("no, there is none", "no"),
        ("There is not a dog. Yes.", "no"),
        ("I see one. No doubt.", "yes"),  # the first sentence counts
        ("nothing", "yes"),  # a word, not its beginning
        ("", "yes"),
    ],
)
def test_pope_reads_the_first_sentence_for_a_no(said: str, read: str) -> None:
    assert yes_or_no(said) == read


def test_pope_figures_are_those_of_the_confusion_matrix() -> None:
    said = ["yes", "yes", "no", "yes", "no", "what", "no", "yes"]
    true = ["yes", "no", "no", "yes", "yes", "no", "no", "yes"]
    asked = [question(i, f"{i // 2}.jpg", label) for i, label in enumerate(true)]
    told = pope_figures(asked, said)
    hits, false_alarms, misses = 3, 2, 1  # "what" counts as yes
    precision, recall = hits / (hits + false_alarms), hits / (hits + misses)
    assert told["precision"]["value"] == pytest.approx(precision)
    assert told["recall"]["value"] == pytest.approx(recall)
    assert told["f1"]["value"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert told["yes_ratio"]["value"] == pytest.approx(5 / 8)
    assert told["neither"] == 1 / 8
    assert told["f1"]["low"] < told["f1"]["value"] < told["f1"]["high"]
    assert pope_figures(asked, ["no"] * 8)["precision"]["value"] == 0  # never said yes: nothing to divide by


def test_exact_matches_look_past_case_and_full_stop_and_the_embedded_ones_past_nothing() -> None:
    row = question(0, "a.png", "Left side")
    assert score_of("gqa", row, " left  side.") == 1
    assert score_of("gqa", row, "the left side") == 0
    assert score_of("conversations", row, "left side") == 0
    assert score_of("conversations", row, "Left side") == 1
    assert score_of("llava", question(0, "a.png"), "anything") is None


def test_questions_about_one_image_are_not_counted_as_independent() -> None:
    """Six questions of each image that stand and fall together are worth one, not six."""
    scores = np.repeat((np.arange(50) % 2).astype(float), 6)
    names = [str(i // 6) for i in range(300)]
    together, how = accuracy(scores, names)
    apart, alone = accuracy(scores, [str(i) for i in range(300)])
    assert (how, alone) == ("Wilson, 50 images as groups", "Wilson")
    assert together.point == apart.point == 0.5
    assert apart == wilson(150, 300)
    assert together.high - together.low == pytest.approx((apart.high - apart.low) * 6**0.5, rel=0.1)


def test_a_model_that_is_always_wrong_has_an_interval_too() -> None:
    found, _ = accuracy(np.zeros(60), [str(i // 6) for i in range(60)])
    assert found == wilson(0, 10)  # ten images, not sixty questions
    sure = pope_figures([question(i, f"{i // 2}.jpg", ("yes", "no")[i % 2]) for i in range(40)], ["yes"] * 40)
    assert sure["recall"]["value"] == 1.0
    assert 0.8 < sure["recall"]["low"] < 0.9  # twenty images


def test_a_rate_of_groups_covers_the_truth_as_often_as_it_says() -> None:
    """Groups with rates of their own around 0.3, six trials in each."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        own = rng.beta(0.6, 1.4, size=80)
        found = clustered_rate(rng.binomial(6, own), np.full(80, 6))
        held += found.low <= 0.3 <= found.high
    assert 0.92 <= held / 400 <= 0.98


def test_the_best_blind_guess_knows_the_commonest_answer_of_each_question() -> None:
    rows = [question(i, f"{i}.png", truth, text="what?") for i, truth in enumerate(("a", "a", "b"))]
    rows += [question(9, "9.png", "c", text="else?")]
    assert blind_guess("gqa", rows) == pytest.approx(3 / 4)


# --- what is read ----------------------------------------------------------------------------------------------------


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_every_benchmarks_files_are_read(tmp_path: Path) -> None:
    pope = {"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": "no"}
    random, popular = (lines(tmp_path / f"coco_pope_{name}.json", pope) for name in ("random", "popular"))
    assert read_questions("pope", [random, popular]) == [
        Question(f"{kind}/1", "a.jpg", "Is there a dog?", ("no",), kind) for kind in ("random", "popular")
    ]
    answers = ["cola"] * 9 + ["pepsi"]
    (tmp_path / "val.json").write_text(
        json.dumps({"data": [{"question_id": 5, "image_id": "0f", "question": "brand?", "answers": answers}]})
    )
    assert read_questions("textvqa", [tmp_path / "val.json"]) == [
        Question("5", "0f.jpg", "brand?", tuple(answers), "all")
    ]
    gqa = lines(tmp_path / "gqa.jsonl", {"question": "left?", "image": "n1.jpg", "answer": "yes"})
    assert read_questions("gqa", [gqa])[0] == Question("1", "n1.jpg", "left?", ("yes",), "all")
    official = {"07": {"question": "left?", "imageId": "n1", "answer": "yes", "types": {"structural": "verify"}}}
    (tmp_path / "testdev.json").write_text(json.dumps(official))
    assert read_questions("gqa", [tmp_path / "testdev.json"])[0] == Question(
        "07", "n1.jpg", "left?", ("yes",), "verify"
    )
    llava = lines(tmp_path / "llava.jsonl", {"question_id": 3, "image": "b.png", "text": "<image>\nDescribe."})
    assert read_questions("llava", [llava])[0] == Question("3", "b.png", "Describe.", (), "all")
    assert len(read_questions("pope", [random, popular], limit=1)) == 1


@pytest.mark.parametrize(
    ("benchmark", "content", "words"),
    [
        ("pope", '{"question_id": 1, "image": "a", "text": "t", "label": "maybe"}\n', ("line 1", "maybe", "yes, no")),
        ("pope", '{"image": "a"}\n{', ("line 1", "label")),
        ("pope", "\n", ("no question",)),
        ("pope", '{"a": 1}\nnot json\n', ("line 1",)),
        ("gqa", "[1]\n", ("line 1", "list")),
        ("textvqa", "[]", ("object",)),
        ("textvqa", '{"data": [{"question_id": 1, "image_id": "a", "question": "t"}]}', ("data[0]", "answers")),
        ("conversations", '[{"image": "a", "conversations": []}]', ("[0]", "question and its answer")),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_place(
    benchmark: str, content: str, words: Sequence[str], tmp_path: Path
) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(content)
    with pytest.raises(ValueError) as error:
        read_questions(benchmark, [file])
    assert all(word in str(error.value) for word in (str(file), *words))
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl does not exist"):
        read_questions(benchmark, [tmp_path / "none.jsonl"])


def test_missing_images_are_counted_and_named_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "0.png").touch()
    rows = [question(i, f"{i % 5}.png", "x") for i in range(10)]
    with pytest.raises(FileNotFoundError, match=r"4 of 5 images are missing: 1\.png, 2\.png, 3\.png, \.\.\."):
        require_images(rows, tmp_path)
    require_images(rows[:1], tmp_path)


def test_the_digest_hangs_on_every_part_of_every_question() -> None:
    rows = [question(0, "a", "x"), question(1, "b", "y")]
    others = [rows[::-1], rows[:1], [rows[0], question(1, "c", "y")], [rows[0], question(1, "b", "z")]]
    assert len({digest(some) for some in (rows, *others)}) == 5


# --- asking ----------------------------------------------------------------------------------------------------------


class Model:
    """Says what it was shown and asked; counts what it looks at; dies when told to."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.seen: list[str] = []
        self.asked = 0
        self.dies_at = dies_at

    def look(self, images: Sequence[str]) -> Tensor:
        self.seen += images
        return torch.tensor([[[float(name.split(".")[0])]] for name in images])

    def say(self, texts: Sequence[str], patches: Tensor, number: int) -> Generation:
        if self.dies_at is not None and self.asked >= self.dies_at:
            raise KeyboardInterrupt
        self.asked += len(texts)
        said = [f"{text} of {int(p)}" for text, p in zip(texts, patches[:, 0, 0], strict=True)]
        return Generation(said, [[1, 2]] * len(said), DecodingStats(3, 2 * len(said), 0.5, 0.1))


ROWS = [question(i, f"{(i * 7) % 5}.png", "x") for i in range(23)]


def play(file: Path, model: Model, size: int = 4, shuffle: bool = False) -> list[Batch]:
    return answer_questions(order_by_image(ROWS, shuffle), size, model.look, model.say, file, lambda count: None)


def texts(batches: Sequence[Batch]) -> dict[int, str]:
    return {answer.index: answer.text for batch in batches for answer in batch.answers}


def test_every_question_is_asked_about_its_own_image_which_is_looked_at_once(tmp_path: Path) -> None:
    model = Model()
    said = texts(play(tmp_path / "a", model))
    assert said == {i: f"question {i}? of {(i * 7) % 5}" for i in range(23)}
    assert sorted(model.seen) == [f"{i}.png" for i in range(5)]


def test_shuffled_every_image_is_another_one_and_all_are_shown(tmp_path: Path) -> None:
    said = texts(play(tmp_path / "a", Model(), shuffle=True))
    shown = {i: text.rpartition(" ")[2] for i, text in said.items()}
    assert all(shown[i] != str((i * 7) % 5) for i in shown)
    assert set(shown.values()) == set("01234")
    assert len({(row.image, shown[i]) for i, row in enumerate(ROWS)}) == 5  # one other for all of an image
    with pytest.raises(ValueError, match="only one image"):
        order_by_image(ROWS[:1], shuffle=True)


@pytest.mark.parametrize("dies_at", [0, 4, 12, 20])
def test_killed_and_started_again_it_gives_the_results_of_an_undisturbed_one(dies_at: int, tmp_path: Path) -> None:
    whole = play(tmp_path / "whole", Model())
    with pytest.raises(KeyboardInterrupt):
        play(tmp_path / "cut", Model(dies_at))
    again = Model()
    resumed = play(tmp_path / "cut", again)
    assert texts(resumed) == texts(whole)
    assert again.asked == 23 - dies_at
    assert [batch.forwards for batch in resumed] == [batch.forwards for batch in whole]


def test_a_last_line_that_was_cut_off_is_asked_again(tmp_path: Path) -> None:
    file = tmp_path / "a"
    whole = texts(play(file, Model()))
    content = file.read_bytes()
    for cut in (1, 40, len(content.splitlines()[-1])):
        file.write_bytes(content[:-cut])
        model = Model()
        assert texts(play(file, model)) == whole
        assert model.asked == 3  # the last batch
        assert texts(play(file, Model(dies_at=0))) == whole  # and its line does not begin behind the cut one
        assert len(file.read_text().splitlines()) == 6


def test_a_broken_line_in_the_midst_and_other_questions_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a"
    play(file, Model())
    good = file.read_text()
    with pytest.raises(ValueError, match="other questions"):
        play(file, Model(), size=5)
    file.write_text(good.replace('"forwards"', '"backwards"', 1))
    with pytest.raises(ValueError, match="line 1 is no batch"):
        play(file, Model())


# --- results ---------------------------------------------------------------------------------------------------------


def scored(name: str, say: Callable[[int], str], **settings: Any) -> Scored:
    asked = order_by_image(ROWS, False)
    batches = [Batch(0, tuple(Answer(row.index, say(row.index), 2) for row in asked), 23, 1.0, 0.1, 5, 0.2)]
    told = {"benchmark": "gqa", "questions_sha256": "q", "suffix": "", "max_new_tokens": 16, "batch_size": 23}
    told |= {"objective": "ar", "shuffle_pictures": False, **settings}
    return Scored(name, Path(name), {**figures("gqa", ROWS, asked, batches), "settings": told})


def test_cut_answers_are_counted_and_marked() -> None:
    asked = order_by_image(ROWS, False)
    answers = tuple(Answer(row.index, "x", 16, cut=row.index in (2, 5)) for row in asked)
    found = figures("gqa", ROWS, asked, [Batch(0, answers, 23, 1.0, 0.1, 5, 0.2)])
    assert found["cut_answers"] == 2
    assert [i for i, record in enumerate(found["records"]) if record.get("cut")] == [2, 5]
    assert scored("a", lambda i: "x").content["cut_answers"] == 0


def test_two_results_are_compared_question_by_question() -> None:
    right, wrong = scored("a", lambda i: "x"), scored("b", lambda i: "x" if i % 2 else "y")
    (pair,), notes = compare([right, wrong])
    assert pair.difference.interval.point == pytest.approx(12 / 23)
    assert notes == []
    same, _ = compare([right, scored("c", lambda i: "X.")])
    assert verdict(same[0]).startswith("these questions cannot distinguish a from c")


def test_results_of_other_questions_are_refused_and_shuffled_images_told() -> None:
    one = scored("a", lambda i: "x")
    with pytest.raises(ValueError, match="other questions"):
        compare([one, scored("b", lambda i: "x", questions_sha256="other")], anyway=True)
    with pytest.raises(ValueError, match="max_new_tokens is 16"):
        compare([one, scored("b", lambda i: "x", max_new_tokens=8)])
    assert compare([one, scored("b", lambda i: "x", max_new_tokens=8)], anyway=True)[1]
    assert compare([one, scored("b", lambda i: "y", shuffle_pictures=True)])[1] == ["b was shown other images"]


def test_records_stand_in_the_order_of_the_files_whatever_the_order_of_asking() -> None:
    content = scored("a", lambda i: f"answer {i}").content
    assert [record["answer"] for record in content["records"]] == [f"answer {i}" for i in range(23)]
    assert content["pictures"] == 5
    assert content["cost"]["tokens_per_forward"] == 2.0


def test_a_file_of_questions_counts_once(tmp_path: Path) -> None:
    file = tmp_path / "pope.jsonl"
    file.write_text(json.dumps({"question_id": 1, "image": "a.jpg", "text": "a dog?", "label": "no"}) + "\n")
    with pytest.raises(ValueError, match="given twice"):
        read_questions("pope", [file, tmp_path / "." / "pope.jsonl"])

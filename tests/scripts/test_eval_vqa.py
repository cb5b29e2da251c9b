"""`scripts/eval_vqa.py`: benchmarks of questions, asked of saved models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from models.decoding import Generation
from models.decoding.generate import generate
from models.vision.clip_encoder import ClipTower
from policy_rollout.benchmarks.vqa.questions import SHORT
from scripts import eval_vqa, generate_text
from tests.scripts.saved_run import write_run

OBJECTIVES = ("ar", "mdm", "bd")
COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    sizes = {"text_block_size": 4, "text_canvas_multiple": 4}
    return {name: write_run(tmp_path_factory.mktemp(name), name, **sizes) for name in OBJECTIVES}


@pytest.fixture(scope="module")
def pope(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images, three questions each, the images' questions mixed, as POPE's files may be."""
    folder = tmp_path_factory.mktemp("pope")
    for colour in COLOURS:
        Image.new("RGB", (40, 36), colour).save(folder / f"{colour}.png")
    rows = [
        {
            "question_id": 3 * number + place,
            "image": f"{colour}.png",
            "text": f"Is there {thing} in the image?",
            "label": ("yes", "no")[(number + place) % 2],
        }
        for number, thing in enumerate(("a dog", "anything red", "a block"))
        for place, colour in enumerate(COLOURS)
    ]
    (folder / "coco_pope_random.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def arguments(run: Path, pope: Path, log_dir: Path, *more: object) -> list[str]:
    base = ["--checkpoint", run, "--benchmark", "pope", "--questions", pope / "coco_pope_random.json"]
    base += ["--log-dir", log_dir, "--max-new-tokens", 8, "--batch-size", 4, "--device", "cpu", *more]
    return [str(argument) for argument in base]


def evaluate(run: Path, pope: Path, log_dir: Path, *more: object) -> dict[str, Any]:
    assert eval_vqa.main(arguments(run, pope, log_dir, *more)) == 0
    found: dict[str, Any] = json.loads((log_dir / "results.json").read_text(encoding="utf-8"))
    return found


def refusal(capsys: pytest.CaptureFixture[str], argv: Sequence[str]) -> str:
    assert eval_vqa.main(argv) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("eval_vqa: ")
    return error


def without_times(content: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in content.items() if name not in ("finished", "cost")}
    return kept | {"cost": {name: n for name, n in content["cost"].items() if "second" not in name}}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_model_of_any_objective_answers_as_it_does_when_asked_directly(
    objective: str, runs: dict[str, Path], pope: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = evaluate(runs[objective], pope, tmp_path)
    out = capsys.readouterr().out
    assert content["settings"]["objective"] == objective
    assert len({record["answer"] for record in content["records"]}) > 1
    assert content["records"][4]["shown"] == "green.png"
    question = f"Is there anything red in the image?\n{SHORT}"
    base = ["--checkpoint", str(runs[objective]), "--picture", str(pope / "green.png"), "--question", question]
    assert generate_text.main([*base, "--max-new-tokens", "8", "--device", "cpu", "--json"]) == 0
    asked = json.loads(capsys.readouterr().out)
    assert content["records"][4]["answer"] == asked["answers"][0]["answer"]
    score = sum(record["score"] for record in content["records"]) / 9
    assert content["accuracy"]["value"] == pytest.approx(score)
    assert out.splitlines()[-1].startswith(f"accuracy {100 * score:.0f} % [")
    assert out.splitlines()[-1].endswith(f"results in {tmp_path}")
    assert (tmp_path / "summary.md").read_text() in out


def test_killed_and_started_again_its_results_are_those_of_an_undisturbed_one(
    runs: dict[str, Path], pope: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(runs["bd"], pope, tmp_path / "whole")
    calls = [0]

    def dying(*args: Any, **options: Any) -> Generation:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return generate(*args, **options)

    monkeypatch.setattr(eval_vqa, "generate", dying)
    with pytest.raises(KeyboardInterrupt):
        eval_vqa.main(arguments(runs["bd"], pope, tmp_path / "cut"))
    assert not (tmp_path / "cut" / "results.json").exists()
    with (tmp_path / "cut" / "answers.jsonl").open("a") as file:
        file.write('{"number": 2, "ans')  # as a kill leaves it
    resumed = evaluate(runs["bd"], pope, tmp_path / "cut")
    assert calls[0] == 4  # one batch was left
    assert without_times(resumed) == without_times(whole)
    evaluate(runs["bd"], pope, tmp_path / "cut")
    assert calls[0] == 4  # nothing was


@pytest.mark.parametrize(
    ("more", "name"),
    [
        (["--suffix", "!"], "questions_sha256"),
        (["--shuffle-pictures"], "shuffle_pictures"),
        (["--block-size", "2"], "block_size"),
    ],
)
def test_answers_of_other_settings_do_not_mix(
    more: list[str], name: str, runs: dict[str, Path], pope: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(runs["bd"], pope, tmp_path)
    assert name in refusal(capsys, arguments(runs["bd"], pope, tmp_path, *more))


def test_answers_of_two_checkpoints_do_not_mix(
    runs: dict[str, Path], pope: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(runs["bd"], pope, tmp_path)
    again = write_run(tmp_path / "other", "bd", hidden=48)
    assert "checkpoint_sha256" in refusal(capsys, arguments(again, pope, tmp_path))


def test_clip_looks_at_each_image_once(
    runs: dict[str, Path], pope: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    real = ClipTower.features

    def counting(self: ClipTower, pixels: torch.Tensor) -> torch.Tensor:
        looked.append(len(pixels))
        return real(self, pixels)

    monkeypatch.setattr(ClipTower, "features", counting)
    evaluate(runs["ar"], pope, tmp_path)
    assert sum(looked) == 3


def test_shuffled_images_change_what_is_shown_and_both_are_compared(
    runs: dict[str, Path], pope: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seeing = evaluate(runs["ar"], pope, tmp_path / "seeing")
    blind = evaluate(runs["ar"], pope, tmp_path / "blind", "--shuffle-pictures")
    for right, wrong in zip(seeing["records"], blind["records"], strict=True):
        assert (right["question"], right["picture"]) == (wrong["question"], wrong["picture"])
        assert right["shown"] == right["picture"] != wrong["shown"]
    capsys.readouterr()
    assert eval_vqa.main(["--compare", str(tmp_path / "seeing"), str(tmp_path / "blind")]) == 0
    out = capsys.readouterr().out
    assert "blind was shown other images" in out
    assert out.splitlines()[-1].startswith("these questions cannot distinguish seeing from blind")  # 3 images


def test_without_data_the_bundled_questions_are_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--max-questions", "2", "--max-new-tokens", "2", "--log-dir", str(tmp_path), "--device", "cpu"]
    assert eval_vqa.main(argv) == 0
    said = capsys.readouterr()
    assert "random weights" in said.err
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["records"][0]["question"] == "Where is the blue toy?"
    assert set(content["by_kind"]) == {"place", "colour"}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--questions", "x"], ("--benchmark", "embedded")),
        (["--benchmark", "gqa"], ("gqa", "--questions")),
        (["--max-questions", "-1"], ("--max-questions", "-1")),
        (["--benchmark", "pope", "--questions", "no.json"], ("no.json does not exist",)),
        (["--compare", "one"], ("two",)),
        (["--checkpoint", "no/where"], ("no/where",)),
    ],
)
def test_what_cannot_be_asked_is_one_line(
    argv: list[str], words: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    error = refusal(capsys, argv)
    assert all(word in error for word in words)


def test_missing_images_are_named_at_the_start(
    runs: dict[str, Path], pope: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = arguments(runs["ar"], pope, tmp_path / "log", "--image-root", tmp_path)
    assert "3 of 3 images are missing: red.png, green.png, blue.png" in refusal(capsys, argv)
    assert not (tmp_path / "log").exists()

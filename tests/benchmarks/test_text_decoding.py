"""Decoders are compared on the same questions, and a faster one that is wrong more often does not win."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import text_decoding
from benchmarks.harness import desk_reports
from benchmarks.harness.desk_reports import QUESTIONS, Recipe, load_or_train, sample
from benchmarks.harness.timing import Spread
from benchmarks.text_decoding import Quality, headline

TINY = "--steps 2 --hidden 32 --layers 1 --batch 2 --held-out 3 --timed 2 --rounds 1 --thresholds 1,0.5 --batches 1,2"


def test_held_out_desks_are_in_no_training_report() -> None:
    seen = {sample(i, held_out=False).desk for i in range(400)}
    new = [sample(i, held_out=True) for i in range(100)]
    assert not seen & {one.desk for one in new}
    assert {one.question for one in new} == set(QUESTIONS)


def test_the_patches_determine_the_answer() -> None:
    one = sample(5, held_out=False)
    assert torch.equal(one.patches, sample(5, held_out=False).patches)
    for thing, patch in enumerate(one.patches):
        ends = desk_reports.THINGS[thing][1]
        alike = [float((patch - desk_reports._feature(thing, state)).norm()) for state in range(len(ends))]
        assert alike.index(min(alike)) == one.desk[thing]
        if thing in QUESTIONS[one.question]:
            assert ends[one.desk[thing]] in one.answer


def test_a_stored_model_is_loaded_and_another_recipe_is_trained(tmp_path: Path) -> None:
    steps: list[float] = []
    recipe = Recipe("bd", 4, 1.0, hidden=32, layers=1, steps=2, batch=2, learning_rate=1e-3)
    first = load_or_train(recipe, tmp_path / "bd", steps.append)
    again = load_or_train(recipe, tmp_path / "bd", steps.append)
    assert len(steps) == 2
    for ours, theirs in zip(first.built.model.parameters(), again.built.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    load_or_train(
        Recipe("bd", 4, 1.0, hidden=32, layers=1, steps=3, batch=2, learning_rate=1e-3), tmp_path / "bd", steps.append
    )
    assert len(steps) == 5


def test_the_command_writes_quality_and_speed_of_every_decoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "decoding.json"
    text_decoding.main([*TINY.split(), "--models", str(tmp_path / "models"), "--out", str(out)])
    record = json.loads(out.read_text())
    assert set(record["quality"]) == {
        "ar",
        "ar, bd's weights",
        "bd, threshold 1",
        "bd, threshold 0.5",
        "bd, speculative",
    }
    for batch in ("1", "2"):
        speeds = record["speed"][batch]
        assert set(speeds) == set(record["quality"])
        assert all(row["tokens_per_second"]["median"] > 0 for row in speeds.values())
        assert speeds["ar"]["answers_times_faster_than_ar"]["median"] == 1
    assert record["speed"]["1"]["ar"]["tokens_per_forward"] == 1
    assert record["quality"]["bd, speculative"] == record["quality"]["ar, bd's weights"], "drafts are verified"
    assert capsys.readouterr().out.splitlines()[-1] == f"figures: {out}"


def test_the_fastest_setting_that_is_right_often_enough_wins() -> None:
    quality = {
        "ar": Quality(0.9, 1, 10),
        "ar, bd's weights": Quality(0.8, 1, 10),
        "bd, threshold 0.9": Quality(0.9, 1, 10),
        "bd, threshold 0.5": Quality(0.85, 1, 10),
        "bd, speculative": Quality(0.8, 1, 10),
    }
    rates = {
        "ar": 100,
        "ar, bd's weights": 120,
        "bd, threshold 0.9": 300,
        "bd, threshold 0.5": 600,
        "bd, speculative": 200,
    }
    speeds = {"1": {name: {"tokens_per_second": Spread(r, r, r, 1)} for name, r in rates.items()}}
    strict = headline(quality, speeds, tolerance=0.0)["by_batch"]["1"]
    assert strict["setting"] == "bd, threshold 0.9"
    assert strict["times_ar"] == 300 / 120
    assert headline(quality, speeds, tolerance=0.05)["by_batch"]["1"]["setting"] == "bd, threshold 0.5"
    quality["ar"] = Quality(0.95, 1, 10)
    assert headline(quality, speeds, tolerance=0.0)["by_batch"]["1"] is None

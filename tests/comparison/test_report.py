"""What the report says of results whose answers are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.statistics import pair_of
from scripts.objective_comparison.figure import smooth
from scripts.objective_comparison.pairwise import (
    ACTION,
    EXACT,
    NATS,
    PairResult,
    compare_pairs,
    drawing_error,
    image_gain,
    interval,
)
from scripts.objective_comparison.report import write_report
from tests.comparison.invented import findings, results


def test_a_clear_difference_is_told_and_an_unclear_one_is_not_claimed(tmp_path: Path) -> None:
    found = findings(tmp_path)
    told = {(v.first, v.second, v.metric): v for v in compare_pairs(found.results)}
    assert told["bd", "ar", EXACT].words == "bd is better"
    assert told["bd", "ar", NATS].words == "bd is better"  # fewer nats
    assert told["bd", "ar", NATS].probability_better == 1.0
    assert told["mdm", "ar", EXACT].words == "these data cannot tell"
    assert told["bd", "mdm", ACTION].words == "equivalent"  # the same errors


def test_the_report_has_the_answers_the_floor_and_the_warning_of_one_seed(tmp_path: Path) -> None:
    found = findings(tmp_path)
    paths = write_report(found)
    assert [path.name for path in paths] == ["summary.md", "summary.json", "curves.png", "records.csv"]
    text = paths[0].read_text()
    assert "right in 50 %" in text  # two answers to each question
    assert "| bd − ar | exact match | +30 [" in text
    assert "these data cannot tell" in text
    assert "One seed" in text
    assert "`bd` has help." in text
    assert "`bd` clearly needs the image" in text
    assert "identical to the last digit" in text
    data = json.loads(paths[1].read_text())
    assert data["objectives"]["bd"]["exact_match"]["point"] == pytest.approx(0.9)
    assert data["objectives"]["ar"]["exact_match_by_kind"].keys() == {"colour", "place"}
    assert [
        p["clear"] for p in data["pairs"] if (p["first"], p["second"], p["measure"]) == ("bd", "ar", "exact match")
    ] == [True]
    assert not list(tmp_path.glob("*.tmp"))


def test_closed_loops_are_told_where_they_were_played_and_only_there(tmp_path: Path) -> None:
    found = findings(tmp_path / "without")
    assert "Closed loop" not in write_report(found)[0].read_text()
    found = findings(tmp_path / "with")
    played = {"ar": [0, 1] * 20, "mdm": [1, 0] * 20, "bd": [2, 3] * 20}
    judged_too = {name: [replace(runs[0], chains=played[name])] for name, runs in found.results.items()}
    paths = write_report(replace(found, results=judged_too))
    text = paths[0].read_text()
    assert "| bd | 2.50 [" in text
    assert "| bd − ar | tasks in a row | +2.000 [" in text
    data = json.loads(paths[1].read_text())
    assert data["objectives"]["ar"]["tasks_in_a_row"]["point"] == pytest.approx(0.5)
    answers = {(p["first"], p["second"]): p["answer"] for p in data["pairs"] if p["measure"] == "tasks in a row"}
    assert answers["bd", "ar"] == "bd is better"
    assert answers["mdm", "ar"] == "these data cannot tell"


def test_the_figure_is_an_image_with_the_colour_of_every_objective(tmp_path: Path) -> None:
    path = write_report(findings(tmp_path, seeds=(0, 1), blind=True))[2]
    pixels = np.asarray(Image.open(path).convert("RGB"), dtype=int)
    assert pixels.shape[0] > 600
    assert pixels.shape[1] > 1000
    for colour in ((0, 114, 178), (213, 94, 0), (0, 158, 115)):
        assert (np.abs(pixels - colour).sum(axis=-1) < 12).sum() > 2000


def test_a_first_step_that_differs_is_said_loudly(tmp_path: Path) -> None:
    found = findings(tmp_path, image_loss_of_bd=8.500001)
    assert not found.first[0].identical
    text = write_report(found)[0].read_text()
    assert "the objective changed more than the text loss" in text
    assert "differ by 1e-06" in text


def test_blind_runs_and_several_seeds_are_reported(tmp_path: Path) -> None:
    found = findings(tmp_path, seeds=(0, 1), blind=True)
    text = write_report(found)[0].read_text()
    assert "exact, trained blind" in text
    assert "a model trained and evaluated with blank images" in text
    assert "cover other questions and other seeds; 2 seeds are few" in text
    assert "exact match: another seed changes it by 0 (median of 3 pairs of runs)" in text
    assert len(found.first) == 2


def test_a_rate_of_one_run_never_has_an_interval_of_no_width() -> None:
    everything = interval(EXACT, [results(1.0, 0.1, 0.2)])
    assert everything.point == 1.0
    assert everything.low < 0.96


def test_the_error_of_drawing_falls_with_the_number_of_questions_and_of_runs() -> None:
    one = drawing_error([results(0.5, 0.5, 0.2)])
    assert one == pytest.approx((60 * 0.01) ** 0.5 / 480)
    assert drawing_error([results(0.5, 0.5, 0.2)] * 4) == pytest.approx(one / 2)


def test_a_model_that_is_right_with_any_image_does_not_show_to_need_one() -> None:
    guessing = results(0.5, 0.5, 0.2)
    guessing = replace(guessing, words=replace(guessing.words, exact_shuffled=guessing.words.exact))
    assert not image_gain([guessing]).clear


def test_smoothing_is_the_mean_of_the_last_values() -> None:
    assert smooth([1.0, 2.0, 3.0, 4.0], 2).tolist() == [1.0, 1.5, 2.5, 3.5]


def test_a_handful_of_items_answers_nothing_however_sure_the_bootstrap_is() -> None:
    def pair(items: int) -> PairResult:
        return PairResult(EXACT, pair_of("bd", "ar", np.ones((1, items)), np.zeros((1, items))))

    assert pair(5).difference.clear
    assert pair(5).words == "these data cannot tell"
    assert pair(6).words == "bd is better"

"""Doors and lights: all policies get the same episodes, and the report compares them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from policy_rollout.calvin.instructions import validation_instruction
from policy_rollout.desk import doors_and_lights as desk
from policy_rollout.policies.upvla import ConstantPolicy
from preprocess_data import make_desk_demos
from scripts import evaluate_desk
from scripts.evaluate_desk import Outcome


def test_every_task_comes_up_equally_often_and_a_longer_trial_begins_with_the_shorter() -> None:
    few, many = desk.episodes(16), desk.episodes(32)
    assert set(Counter(e.task for e in many).values()) == {4}
    assert [e.instruction for e in many] == [validation_instruction(e.task) for e in many]
    assert all(np.array_equal(a.scene_obs, b.scene_obs) for a, b in zip(few, many, strict=False))
    assert [j.tasks for j in desk.chains(3)] == [j.tasks for j in desk.chains(6)[:3]]


def test_demonstrations_of_doors_and_lights_are_asked_for_by_that_name() -> None:
    options = make_desk_demos.parser().parse_args(["--out", "x", "--episodes", "1", "--tasks", "doors_and_lights"])
    assert make_desk_demos.settings_of(options).tasks == desk.TASKS


def test_with_wrong_instructions_the_task_and_the_start_stay_and_each_other_instruction_comes_up() -> None:
    right, wrong = desk.episodes(56), desk.episodes(56, wrong_instruction=True)
    assert [e.task for e in wrong] == [e.task for e in right]
    assert all(np.array_equal(a.robot_obs, b.robot_obs) for a, b in zip(right, wrong, strict=True))
    assert all(a.instruction != b.instruction for a, b in zip(right, wrong, strict=True))
    instructions = {e.instruction for e in wrong if e.task == "open_drawer"}
    assert instructions == {validation_instruction(task) for task in desk.TASKS if task != "open_drawer"}


def test_standing_still_does_nothing_and_experts_do_nearly_all() -> None:
    still = ConstantPolicy(np.array([0, 0, 0, 0, 0, 0, 1], np.float32), act_step=10)
    assert not any(record.success for record in desk.run_policy_episodes(still, desk.episodes(2)).records)
    assert desk.run_policy_chains(still, desk.chains(1)) == [0]
    assert sum(desk.run_expert_episodes(8)) >= 7
    assert desk.run_expert_chains(1)[0] >= 2


def test_the_report_compares_the_model_with_the_others(tmp_path: Path) -> None:
    count = 32
    outcomes = [
        Outcome("trained", [i % 2 == 0 for i in range(count)], [2, 1, 3, 0]),
        Outcome("trained, told another task", [False] * count, []),
        Outcome("scripted experts", [True] * count, [3, 3, 3, 3]),
    ]
    text = evaluate_desk.summary(outcomes, tmp_path, "a machine", "the command")
    assert "| trained | 16/32 | 50 % [34, 66] | 1.50 [" in text
    assert "| trained, told another task | 0/32 | 0 % [0, 11] | – | +50 [" in text
    assert "| scripted experts | 32/32 |" in text
    summary = json.loads(json.dumps(evaluate_desk.results(outcomes)))
    assert summary["policies"]["trained"]["chains"] == [2, 1, 3, 0]


def test_a_folder_without_a_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate_desk.main(["--model", str(tmp_path / "nothing")]) == 2
    error = capsys.readouterr().err
    assert "config.yaml does not exist" in error
    assert error.count("\n") == 1


def test_an_outcome_is_stored_and_run_again_for_more_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []

    def stand_in(count: int) -> list[bool]:
        runs.append(count)
        return [True] * count

    monkeypatch.setattr(desk, "run_expert_episodes", stand_in)
    monkeypatch.setattr(desk, "run_expert_chains", lambda count: [3] * count)
    few = evaluate_desk.Evaluation(tmp_path, "cpu", 8, 2, tmp_path / "judged")
    assert few.outcome(evaluate_desk.EXPERTS) == few.outcome(evaluate_desk.EXPERTS)
    many = evaluate_desk.Evaluation(tmp_path, "cpu", 16, 2, tmp_path / "judged")
    assert many.outcome(evaluate_desk.EXPERTS).done == [True] * 16
    assert runs == [8, 16]

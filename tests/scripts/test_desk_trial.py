"""Doors and lights: the same trials for everybody, and a report that says who did what."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from policy_rollout.calvin.instructions import validation_instruction
from policy_rollout.policies.upvla import ConstantPolicy
from preprocess_data import make_desk_demos
from scripts import desk_trial as trial
from scripts import judge_desk
from scripts.judge_desk import Outcome


def test_every_task_comes_up_equally_often_and_a_longer_trial_begins_with_the_shorter() -> None:
    few, many = trial.episodes(16), trial.episodes(32)
    assert set(Counter(e.task for e in many).values()) == {4}
    assert [e.instruction for e in many] == [validation_instruction(e.task) for e in many]
    assert all(np.array_equal(a.scene_obs, b.scene_obs) for a, b in zip(few, many, strict=False))
    assert [j.tasks for j in trial.chains(3)] == [j.tasks for j in trial.chains(6)[:3]]


def test_demonstrations_of_doors_and_lights_are_asked_for_by_that_name() -> None:
    options = make_desk_demos.parser().parse_args(["--out", "x", "--episodes", "1", "--tasks", "doors_and_lights"])
    assert make_desk_demos.settings_of(options).tasks == trial.TASKS


def test_who_is_told_another_task_is_judged_by_its_own_from_the_same_start_and_hears_each_of_the_others() -> None:
    right, wrong = trial.episodes(56), trial.episodes(56, told_another=True)
    assert [e.task for e in wrong] == [e.task for e in right]
    assert all(np.array_equal(a.robot_obs, b.robot_obs) for a, b in zip(right, wrong, strict=True))
    assert all(a.instruction != b.instruction for a, b in zip(right, wrong, strict=True))
    heard = {e.instruction for e in wrong if e.task == "open_drawer"}
    assert heard == {validation_instruction(task) for task in trial.TASKS if task != "open_drawer"}


def test_standing_still_does_nothing_and_experts_do_nearly_all() -> None:
    still = ConstantPolicy(np.array([0, 0, 0, 0, 0, 0, 1], np.float32), act_step=10)
    assert not any(record.success for record in trial.play_episodes(still, trial.episodes(2)).records)
    assert trial.play_chains(still, trial.chains(1)) == [0]
    assert sum(trial.expert_episodes(8)) >= 7
    assert trial.expert_chains(1)[0] >= 2


def test_the_report_puts_the_model_beside_the_others(tmp_path: Path) -> None:
    count = 32
    outcomes = [
        Outcome("trained", [i % 2 == 0 for i in range(count)], [2, 1, 3, 0]),
        Outcome("trained, told another task", [False] * count, []),
        Outcome("scripted experts", [True] * count, [3, 3, 3, 3]),
    ]
    text = judge_desk.summary(outcomes, tmp_path, "a machine", "the command")
    assert "| trained | 16/32 | 50 % [34, 66] | 1.50 [" in text
    assert "| trained, told another task | 0/32 | 0 % [0, 11] | – | +50 [" in text
    assert "| scripted experts | 32/32 |" in text
    told = json.loads(json.dumps(judge_desk.results(outcomes)))
    assert told["policies"]["trained"]["chains"] == [2, 1, 3, 0]


def test_a_folder_without_a_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge_desk.main(["--model", str(tmp_path / "nothing")]) == 2
    error = capsys.readouterr().err
    assert "config.yaml does not exist" in error
    assert error.count("\n") == 1


def test_what_was_played_is_kept_and_asked_of_more_it_is_played_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played: list[int] = []

    def stand_in(count: int) -> list[bool]:
        played.append(count)
        return [True] * count

    monkeypatch.setattr(trial, "expert_episodes", stand_in)
    monkeypatch.setattr(trial, "expert_chains", lambda count: [3] * count)
    few = judge_desk.Trial(tmp_path, "cpu", 8, 2, tmp_path / "judged")
    assert few.outcome(judge_desk.EXPERTS) == few.outcome(judge_desk.EXPERTS)
    many = judge_desk.Trial(tmp_path, "cpu", 16, 2, tmp_path / "judged")
    assert many.outcome(judge_desk.EXPERTS).done == [True] * 16
    assert played == [8, 16]

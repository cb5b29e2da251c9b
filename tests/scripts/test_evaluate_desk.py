"""Task sets of the desk: all policies get the same episodes, and the report compares them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from common.files import PROJECT_DIR as ROOT
from policy_rollout.benchmarks.future_frames import SOURCES, FutureFrames
from policy_rollout.benchmarks.offline import Sample
from policy_rollout.calvin.instructions import validation_instruction
from policy_rollout.calvin.tasks import TASK_NAMES
from policy_rollout.desk.task_sets import ALL_TASKS, DOORS, TaskSet, other_colour
from policy_rollout.policies.baselines import ConstantPolicy
from preprocess_data import make_desk_demos
from scripts import evaluate_desk
from scripts.desk_evaluation.evaluation import COLOUR, EXPERTS, Evaluation, Outcome, available
from scripts.desk_evaluation.report import results, summary


@pytest.mark.parametrize("tasks", [DOORS, ALL_TASKS])
def test_every_task_comes_up_equally_often_and_a_longer_trial_begins_with_the_shorter(tasks: TaskSet) -> None:
    count = len(tasks.tasks)
    few, many = tasks.make_episodes(2 * count), tasks.make_episodes(4 * count)
    assert set(Counter(e.task for e in many).values()) == {4}
    assert [e.instruction for e in many] == [validation_instruction(e.task) for e in many]
    assert all(np.array_equal(a.scene_obs, b.scene_obs) for a, b in zip(few, many, strict=False))
    assert [j.tasks for j in tasks.make_chains(3)] == [j.tasks for j in tasks.make_chains(6)[:3]]
    assert all(len(job.tasks) == tasks.chain_length for job in tasks.make_chains(3))


def test_demonstrations_of_doors_and_lights_are_asked_for_by_that_name() -> None:
    options = make_desk_demos.parser().parse_args(["--out", "x", "--episodes", "1", "--tasks", DOORS.name])
    assert make_desk_demos.settings_of(options).tasks == DOORS.tasks


def test_with_wrong_instructions_the_task_and_the_start_stay_and_each_other_instruction_comes_up() -> None:
    right, wrong = DOORS.make_episodes(56), DOORS.make_episodes(56, DOORS.other_instruction)
    assert [e.task for e in wrong] == [e.task for e in right]
    assert all(np.array_equal(a.robot_obs, b.robot_obs) for a, b in zip(right, wrong, strict=True))
    assert all(a.instruction != b.instruction for a, b in zip(right, wrong, strict=True))
    instructions = {e.instruction for e in wrong if e.task == "open_drawer"}
    assert instructions == {validation_instruction(task) for task in DOORS.tasks if task != "open_drawer"}


def test_another_colour_replaces_one_word_and_both_other_colours_come_up() -> None:
    assert len(ALL_TASKS.colour_tasks) == 21
    for task in ALL_TASKS.colour_tasks:
        true = validation_instruction(task).split()
        others = [other_colour(index, task).split() for index in range(2)]
        assert all(sum(a != b for a, b in zip(true, other, strict=True)) == 1 for other in others)
        assert others[0] != others[1]
    with pytest.raises(ValueError, match="open_drawer: its instruction"):
        other_colour(0, "open_drawer")
    assert COLOUR in available(ALL_TASKS)
    assert COLOUR not in available(DOORS)


def test_images_have_the_size_of_the_models_training_images() -> None:
    tasks = DOORS.with_cameras({"rgb_static": [100, 100], "other": [7, 7]})
    assert (tasks.static_size, tasks.gripper_size) == (100, DOORS.gripper_size)
    assert tasks.desk.static_size == 100


def test_frames_of_experts_show_every_task_and_are_the_same_each_time() -> None:
    tasks = replace(ALL_TASKS, tasks=TASK_NAMES[:2], static_size=32, gripper_size=16)
    frames, again = tasks.expert_frames(2), tasks.expert_frames(2)
    assert {task for task, _ in frames} == set(TASK_NAMES[:2])
    assert len(frames) > 4
    assert all(np.array_equal(a.rgb_static, b.rgb_static) for (_, a), (_, b) in zip(frames, again, strict=True))
    assert frames[0][1].rgb_static.shape == (32, 32, 3)
    assert frames[0][1].robot_obs is not None
    assert len({one.rgb_static.tobytes() for _, one in frames}) == len(frames)


def test_standing_still_does_nothing_and_experts_do_nearly_all() -> None:
    still = ConstantPolicy(np.array([0, 0, 0, 0, 0, 0, 1], np.float32), act_step=10)
    assert not any(record.success for record in DOORS.run_policy_episodes(still, DOORS.make_episodes(2)).records)
    assert DOORS.run_policy_chains(still, DOORS.make_chains(1)) == [0]
    assert sum(DOORS.run_expert_episodes(8)) >= 7
    assert DOORS.run_expert_chains(1)[0] >= 2


def test_the_report_compares_the_model_with_the_others(tmp_path: Path) -> None:
    count = 32
    outcomes = [
        Outcome("trained", [i % 2 == 0 for i in range(count)], [2, 1, 3, 0]),
        Outcome("trained, told another task", [False] * count, []),
        Outcome("scripted experts", [True] * count, [3, 3, 3, 3]),
    ]
    text = summary(outcomes, {"images": (0.1, 0.45)}, DOORS, tmp_path, "a machine", "the command")
    assert "| trained | 16/32 | 50 % [34, 66] | 1.50 [" in text
    assert "| trained, told another task | 0/32 | 0 % [0, 11] | – | +50 [" in text
    assert "| scripted experts | 32/32 |" in text
    assert "| images | 0.100 | 0.450 |" in text
    found = json.loads(json.dumps(results(outcomes, {"images": (0.1, 0.45)}, DOORS)))
    assert found["policies"]["trained"]["chains"] == [2, 1, 3, 0]
    assert found["sensitivity"] == {"images": {"change": 0.1, "rms": 0.45}}


def test_a_control_of_some_tasks_is_compared_in_its_own_episodes() -> None:
    model = Outcome("trained", [True, False, True, True], [])
    control = Outcome(COLOUR, [False, True], [], indices=[0, 2])
    assert control.behind(model).point == 0.5
    tasks = replace(ALL_TASKS, tasks=TASK_NAMES[:2])
    assert control.of_task(tasks, TASK_NAMES[0]).point == 0.5
    assert np.isnan(control.of_task(tasks, TASK_NAMES[1]).point)


def test_a_folder_without_a_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate_desk.main(["--model", str(tmp_path / "nothing")]) == 2
    error = capsys.readouterr().err
    assert "there is no such checkpoint" in error
    assert error.count("\n") == 1


def test_the_report_of_a_model_from_the_hub_needs_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate_desk.main(["--checkpoint", "org/model"]) == 2
    assert "--output-dir is required" in capsys.readouterr().err


def test_a_model_folder_without_its_run_has_no_baselines_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "a" / "b" / "model"
    shutil.copytree(ROOT / "assets" / "desk_policy", model)
    (model / "config.yaml").unlink()
    evaluation = Evaluation(model, "cpu", DOORS, 8, 2, tmp_path / "judged")
    assert evaluation.config is None
    assert evaluation.job.model.framework == "upvla"
    arguments = SimpleNamespace(only=None, held_out=None, model=str(model))
    assert {"untrained", "mean training action"}.isdisjoint(evaluate_desk._policies(arguments, evaluation))
    assert "are left out" in capsys.readouterr().err
    arguments.only = ["untrained"]
    with pytest.raises(ValueError, match=r"no config\.yaml of its training"):
        evaluate_desk._policies(arguments, evaluation)


def test_held_out_recordings_add_the_hand_in_predicted_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").touch()
    hand = np.zeros((2, 3), np.float32)
    found = FutureFrames([Sample("", "", 0, 5)] * 2, np.arange(2), dict.fromkeys(SOURCES, hand), hand, hand)
    for name, value in (
        ("outcome", lambda self, name: Outcome(name, [True] * 8, [3])),
        ("conditions", lambda self, name: {}),
        ("sensitivity", lambda self: {}),
        ("future_frames", lambda self, split: found),
        ("trained", SimpleNamespace(act_step=5)),
        ("rules", DOORS),
    ):
        monkeypatch.setattr(Evaluation, name, value)
    monkeypatch.setattr(evaluate_desk, "_policies", lambda args, evaluation: ("trained", "scripted experts"))
    arguments = ["--model", str(tmp_path), "--held-out"]
    assert evaluate_desk.main([*arguments, str(tmp_path / "nothing")]) == 2
    assert "nothing is not a directory" in capsys.readouterr().err
    monkeypatch.setattr(evaluate_desk, "open_split", lambda path: SimpleNamespace(annotations=()))
    assert evaluate_desk.main([*arguments, "x", "--only", "trained"]) == 2
    assert evaluate_desk.main([*arguments, "x"]) == 0
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "## Future frames" in text
    assert "| predicted frame | 100 %" in text
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["future_frames"]["samples"] == 2


def test_an_outcome_is_stored_and_run_again_for_more_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []

    def stand_in(self: TaskSet, count: int) -> list[bool]:
        runs.append(count)
        return [True] * count

    monkeypatch.setattr(TaskSet, "run_expert_episodes", stand_in)
    monkeypatch.setattr(TaskSet, "run_expert_chains", lambda self, count: [3] * count)
    few = Evaluation(tmp_path, "cpu", DOORS, 8, 2, tmp_path / "judged")
    assert few.outcome(EXPERTS) == few.outcome(EXPERTS)
    many = Evaluation(tmp_path, "cpu", DOORS, 16, 2, tmp_path / "judged")
    assert many.outcome(EXPERTS).done == [True] * 16
    slower = Evaluation(tmp_path, "cpu", replace(DOORS, max_steps=121), 16, 2, tmp_path / "judged")
    assert slower.outcome(EXPERTS).done == [True] * 16
    assert runs == [8, 16, 16]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--renderer", "tiny"], "--renderer belongs to --environment calvin"),
        (["--environment", "calvin"], "the package calvin_env is not installed"),
    ],
)
def test_what_the_simulator_needs_is_checked_before_the_model(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("policy_rollout.calvin.scenes.configuration.package_folder", lambda: None)
    (tmp_path / "config.yaml").touch()
    assert evaluate_desk.main(["--checkpoint", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err

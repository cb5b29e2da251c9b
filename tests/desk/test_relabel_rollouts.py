"""DAgger: what a policy visits is recorded with what the expert wants there, and is labelled by nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from policy_rollout.calvin.oracle import TaskOracle
from policy_rollout.desk import DeskEnv
from policy_rollout.desk.experts.policy import ScriptedExpert
from policy_rollout.policies.baselines import ConstantPolicy
from preprocess_data import make_desk_demos, process_calvin, relabel_rollouts
from training.data.calvin import CalvinSplit
from training.data.dataset_spec import read_contract
from training.data.episode_index import read_index

SIZES = ["--static-size=32", "--gripper-size=16", "--seed=3", "--no-preview"]
OPTIONS = [*SIZES, "--tasks=doors_and_lights", "--tasks-per-episode=2", "--policy-steps=15", "--model=model.yaml"]


def still(name: object = "") -> ConstantPolicy:
    """A policy that never moves and keeps its hand open."""
    policy = ConstantPolicy(np.array([0, 0, 0, 0, 0, 0, 1], np.float32), act_step=5)
    policy.source = SimpleNamespace(weights_sha256="5" * 64)  # type: ignore[attr-defined]
    return policy


@pytest.fixture(autouse=True)
def _still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocess_data.desk_demos.rollouts.load_policy", still)
    monkeypatch.setattr("preprocess_data.relabel_rollouts.load_policy", still)
    monkeypatch.setattr("preprocess_data.desk_demos.files._player", None)


def relabel(out: Path, *options: str) -> Path:
    assert relabel_rollouts.main(["--out", str(out), "--episodes=1", *OPTIONS, *options]) == 0
    return out / "training"


def contents(split: Path) -> dict[str, bytes]:
    return {str(p.relative_to(split)): p.read_bytes() for p in sorted(split.rglob("*")) if p.is_file()}


def test_an_attempt_is_one_window_that_the_expert_labels_and_finishes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split, oracle, env = CalvinSplit(relabel(tmp_path)), TaskOracle(), DeskEnv("D")
    assert "the policy completed 0 of its 2 attempts" in capsys.readouterr().out.splitlines()[-1]
    rows = json.loads((split.path / "rollouts.json").read_text())
    assert [(row["start"], row["end"]) for row in rows] == [(w.start, w.end) for w in split.annotations]
    assert not any(row["completed_by_policy"] for row in rows)
    assert [frame for window in split.annotations for frame in window.frames] == split.frame_ids.tolist()
    keys = ["expert_actions", "rel_actions", "robot_obs", "scene_obs"]
    for window in split.annotations:
        frames = [split.frame(i, keys) for i in window.frames]
        alone = np.array([frame["rel_actions"][:3] for frame in frames[1:15]])
        wanted = np.array([frame["expert_actions"][:3] for frame in frames[1:15]])
        assert np.abs(alone).max() < 0.2 < np.abs(wanted).max()  # the policy stands still, the expert would not
        env.reset(frames[0]["robot_obs"], frames[0]["scene_obs"])
        start = env.get_info()
        env.reset(frames[-1]["robot_obs"], frames[-1]["scene_obs"])
        assert oracle.done(str(window.task), start, env.get_info())


def test_the_labels_are_what_an_expert_that_only_watches_wants(tmp_path: Path) -> None:
    split, env = CalvinSplit(relabel(tmp_path)), DeskEnv("D")
    window = split.annotations[0]
    expert = ScriptedExpert(env.layout, str(window.task), restarts=True)
    for number in list(window.frames)[:15]:
        frame = split.frame(number, ["expert_actions", "robot_obs", "scene_obs"])
        np.testing.assert_array_equal(frame["expert_actions"], expert.act(frame))


def test_an_expert_that_is_not_followed_plans_again(tmp_path: Path) -> None:
    env = DeskEnv("D")
    obs = env.reset(seed=1)
    obs["scene_obs"][1] = 0.0
    wanted = {}
    for restarts in (False, True):
        expert = ScriptedExpert(env.layout, "open_drawer", restarts=restarts)
        wanted[restarts] = np.array([expert.act(obs) for _ in range(120)])  # the hand never moves
    first = wanted[True][0]
    np.testing.assert_allclose(wanted[True], np.broadcast_to(first, wanted[True].shape), atol=1e-9)
    assert not np.allclose(wanted[False], first)  # it goes on with the next move, as if it had arrived


def test_the_expert_acts_in_its_share_of_the_turns(tmp_path: Path) -> None:
    rows = json.loads((relabel(tmp_path, "--beta=1", "--policy-steps=120") / "rollouts.json").read_text())
    assert all(row["completed_by_policy"] for row in rows)


def test_it_resumes_with_the_same_bytes(tmp_path: Path) -> None:
    relabel(tmp_path / "grown")
    relabel(tmp_path / "grown", "--episodes=2")
    relabel(tmp_path / "at_once", "--episodes=2")
    assert contents(tmp_path / "grown" / "training") == contents(tmp_path / "at_once" / "training")


def test_process_calvin_takes_it_and_only_the_experts_actions_are_labels(tmp_path: Path) -> None:
    split, processed = relabel(tmp_path / "raw"), tmp_path / "processed"
    command = ["--source-split-dir", str(split), "--output-dir", str(processed)]
    assert process_calvin.main(command) == 0
    contract = read_contract(processed)
    assert contract.labelled("expert_actions").statistics is None
    with pytest.raises(ValueError, match=r"dataset.action_key=rel_actions: .* set dataset.action_key=expert_actions"):
        contract.labelled("rel_actions")
    index = read_index(processed, action_key="expert_actions")
    frame = CalvinSplit(split).frame(7, ["expert_actions"])["expert_actions"]
    np.testing.assert_array_equal(index.actions[7], frame.astype(np.float32))


def test_it_is_added_to_a_recording_whose_frames_are_linked(tmp_path: Path) -> None:
    demos = ["--out", str(tmp_path / "demos"), "--episodes=2", "--tasks=open_drawer,close_drawer", *SIZES]
    assert make_desk_demos.main([*demos, "--tasks-per-episode=1"]) == 0
    base = tmp_path / "demos" / "training"
    both = CalvinSplit(relabel(tmp_path / "both", "--add-to", str(base)))
    before = CalvinSplit(base)
    assert both.annotations[: len(before.annotations)] == before.annotations
    assert len(both.annotations) == len(before.annotations) + 2
    assert both.ranges[: len(before.ranges)].tolist() == before.ranges.tolist()
    last = int(before.frame_ids[-1])
    assert both.frame_path(last).read_bytes() == before.frame_path(last).read_bytes()
    rows = json.loads((both.path / "rollouts.json").read_text())
    assert [row["start"] for row in rows] == [w.start for w in both.annotations[-2:]]
    assert read_contract(both.path).action_key == "expert_actions"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--replan-every=6"], "--replan-every 6: model.yaml returns 5 actions"),
        (["--add-to=nowhere"], "nowhere is no recording of the desk"),
        (["--scenes=E"], "--scenes 'E'"),
    ],
)
def test_a_wrong_option_is_one_line(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert relabel_rollouts.main(["--out", str(tmp_path / "new"), "--episodes=1", *OPTIONS, *options]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_rollouts_of_other_sizes_are_not_added(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demos = ["--out", str(tmp_path / "demos"), "--episodes=1", "--tasks=open_drawer", "--tasks-per-episode=1"]
    assert make_desk_demos.main([*demos, *SIZES, "--static-size=16"]) == 0
    command = ["--out", str(tmp_path / "new"), "--episodes=1", *OPTIONS]
    assert relabel_rollouts.main([*command, "--add-to", str(tmp_path / "demos" / "training")]) == 2
    assert "its static_size is 16, that of the rollouts 32" in capsys.readouterr().err

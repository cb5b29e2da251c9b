"""Moments of play: labels of several tasks for one image, the same whatever happens, read as training samples."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from policy_rollout.calvin.oracle import TaskOracle
from policy_rollout.calvin.tasks import TASK_NAMES
from policy_rollout.desk import DeskEnv
from preprocess_data.desk_moments import make
from preprocess_data.desk_moments.make import Settings, make_moments
from preprocess_data.desk_moments.play import MomentPlayer
from preprocess_data.desk_scenes.objects import object_of_task, object_positions
from training.data.calvin import CalvinSplit
from training.data.episode_index import read_index
from training.data.formats.shards import shard_path
from training.future_view_prediction_w_action_dataset import DataProvider

SMALL = Settings(count=300, chunk=6, scenes=("A", "D"), static_size=16, gripper_size=16, seed=3)


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("moments")
    make_moments(out, SMALL)
    return out / "training"


def test_tasks_of_one_image_move_the_hand_towards_their_own_objects() -> None:
    env = DeskEnv("D", static_size=8, gripper_size=8)
    player = MomentPlayer(env, TASK_NAMES, others=3, chunk=10, share=0.45)
    names = ("red block", "blue block", "pink block")
    nearer = []
    for moment in islice(player.moments(np.random.default_rng(0)), 200):
        assert len({label.task for label in moment.labels}) == len(moment.labels)
        hand, places = moment.obs["robot_obs"][:3], object_positions(env.layout, moment.obs["scene_obs"])
        for label in moment.labels[1:]:
            if (target := object_of_task(label.task)) in names:
                offset = places[names.index(target)] - hand
                nearer.append(bool(label.chunk[:, :2].sum(axis=0) @ offset[:2] > 0))
    assert len(nearer) > 20
    assert np.mean(nearer) > 0.8


def test_a_push_has_no_end_in_its_labels() -> None:
    """An image does not show where a push began: all chunks of a hand behind the block push on."""
    env = DeskEnv("D", static_size=8, gripper_size=8)
    pushes = [f"push_{colour}_block_{side}" for colour in ("red", "blue", "pink") for side in ("left", "right")]
    player = MomentPlayer(env, pushes, others=0, chunk=10, share=0.45)
    names = ("red block", "blue block", "pink block")
    behind = 0
    for moment in islice(player.moments(np.random.default_rng(0)), 150):
        (label,) = moment.labels
        place = object_positions(env.layout, moment.obs["scene_obs"])[names.index(object_of_task(label.task) or "")]
        hand, side = moment.obs["robot_obs"][:3], -1 if label.task.endswith("left") else 1
        if hand[2] < 0.49 and 0.02 < side * (place[0] - hand[0]) < 0.06 and abs(place[1] - hand[1]) < 0.02:
            behind += 1
            assert (label.chunk[1:, 0] * side > 0.2).all()
            assert abs(label.chunk[:, 2].mean()) < 0.15
    assert behind > 20


def test_a_small_share_shows_more_arrangements_of_objects() -> None:
    def arrangements(share: float) -> int:
        env = DeskEnv("D", static_size=8, gripper_size=8)
        player = MomentPlayer(env, TASK_NAMES, others=0, chunk=10, share=share)
        moments = list(islice(player.moments(np.random.default_rng(0)), 40))
        player.close()
        env.close()
        return len({tuple(np.round(moment.obs["scene_obs"][6:], 3)) for moment in moments})

    assert arrangements(0.05) > arrangements(1.0)


def test_the_chunk_of_another_task_is_what_its_expert_does_from_there(moments: Path) -> None:
    split = CalvinSplit(moments)
    env = DeskEnv("A", static_size=8, gripper_size=8)
    frame = split.frame(0, ["robot_obs", "scene_obs", "label_tasks", "label_chunks"])
    assert frame["label_chunks"].shape == (2, 6, 7)
    obs = env.reset(frame["robot_obs"], frame["scene_obs"])
    np.testing.assert_allclose(obs["robot_obs"][:6], frame["robot_obs"][:6], atol=1e-6)
    start = env.get_info()
    for action in frame["label_chunks"][0]:
        _, _, _, info = env.step(action.astype(float))
    assert TaskOracle().tasks_done(start, info) is not None


def test_every_label_is_a_sample_with_its_own_instruction_actions_and_state(moments: Path) -> None:
    index = read_index(moments)
    provider = DataProvider(moments, act_step=4, resolution=16, num_view=2)
    split = CalvinSplit(moments)
    assert len(index) == index.episodes > SMALL.count
    names = [index.frames[row] for row in range(len(index))]
    row = next(row for row in range(len(index) - 1) if names[row] == names[row + 1])
    first, second = provider[row], provider[row + 1]
    assert first.views.equal(second.views)
    assert first.instruction != second.instruction
    frame = split.frame(int(names[row].split("_")[-1].split(".")[0]), ["label_tasks", "label_chunks", "robot_obs"])
    assert index.task(row) == TASK_NAMES[frame["label_tasks"][0]]
    np.testing.assert_allclose(first.actions, frame["label_chunks"][0, :4], atol=1e-6)
    np.testing.assert_allclose(second.actions, frame["label_chunks"][1, :4], atol=1e-6)
    assert not first.action_is_pad.any()
    assert first.state is not None
    np.testing.assert_allclose(first.state, frame["robot_obs"], atol=1e-5)


def test_a_chunk_that_is_too_short_is_refused(moments: Path) -> None:
    with pytest.raises(ValueError, match=r"act_step is 8, but .* holds chunks of 6 actions"):
        DataProvider(moments, act_step=8, resolution=16, num_view=2)


@pytest.mark.slow
def test_processes_and_an_interruption_do_not_change_the_moments(moments: Path, tmp_path: Path) -> None:
    make_moments(tmp_path, SMALL, processes=2)
    other = tmp_path / "training"
    shard_path(other, 1).unlink()
    (other / "whole.json").unlink()
    make_moments(tmp_path, SMALL)
    for row in (0, 255, 256, 299):
        keys = ["rgb_static", "rgb_gripper", "scene_obs", "label_chunks"]
        ours, theirs = (CalvinSplit(path).frame(row, keys) for path in (moments, other))
        assert all(np.array_equal(ours[key], theirs[key]) for key in keys)
    assert json.loads((moments / "dataset_info.json").read_text()) == json.loads(
        (other / "dataset_info.json").read_text()
    )


def test_other_settings_are_refused(moments: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="holds moments with seed 3, now it is 4"):
        make_moments(moments.parent, replace(SMALL, seed=4))
    assert make.main(["--out", str(moments.parent), "--count", "1", "--scenes", "A,D"]) == 2
    assert "--count is 1" in capsys.readouterr().err

"""Random scenes: valid states, balanced, the same whatever happens; and the positions of their objects."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from policy_rollout.calvin.scene_state import symbolic_state
from policy_rollout.desk import DeskEnv
from preprocess_data import make_desk_scenes
from preprocess_data.desk_scenes.draw import PLACES, draw_scene, overlaps
from preprocess_data.desk_scenes.objects import OBJECTS, object_of_task, object_positions
from preprocess_data.make_desk_scenes import NAMED_TASKS, Settings, make_scenes
from training.data.calvin import CalvinSplit
from training.data.episode_index import read_index
from training.data.formats.shards import shard_path
from training.future_view_prediction_w_action_dataset import DataProvider

SMALL = Settings(count=70, scenes=("A", "D"), static_size=16, gripper_size=16, seed=3)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes")
    make_scenes(out, SMALL)
    return out / "training"


@pytest.mark.parametrize("scene", ["A", "B", "C", "D"])
def test_a_drawn_state_is_valid_and_the_named_block_is_at_its_place(scene: str) -> None:
    env = DeskEnv(scene)
    for place in PLACES:
        draw = draw_scene(env, np.random.default_rng(1), "rotate_blue_block_left", place)
        obs = env.get_obs(render=False)
        assert not overlaps(env)
        np.testing.assert_allclose(obs["scene_obs"], draw.scene_obs, atol=1e-6)
        state = symbolic_state(draw.scene_obs, draw.robot_obs)
        expected = {"hand": "grasped", "stack": "stacked_top"}.get(place, place)
        assert state["blue_block"] in {expected, "elsewhere", "stacked_bottom"}
        if place in ("hand", "drawer", "slider_left", "slider_right"):
            assert state["blue_block"] in {expected, "stacked_bottom"}


def test_a_held_block_stays_in_the_hand_when_it_is_lifted() -> None:
    env = DeskEnv("D")
    held = 0
    for seed in range(10):
        draw = draw_scene(env, np.random.default_rng(seed), "lift_red_block_table", "hand")
        for _ in range(15):
            obs, *_ = env.step(np.array([0, 0, 0.3, 0, 0, 0, -1.0]))
        block = object_positions(env.layout, obs["scene_obs"])[0]
        held += bool(np.linalg.norm(block - obs["robot_obs"][:3]) < 0.03 and draw.place == "hand")
    assert held >= 9


def test_positions_are_those_of_the_simulated_bodies() -> None:
    env = DeskEnv("B")
    draw = draw_scene(env, np.random.default_rng(7), "open_drawer", "table")
    positions = dict(zip(OBJECTS, object_positions(env.layout, draw.scene_obs), strict=True))
    geoms = {"drawer handle": "drawer_bar", "door handle": "door_bar", "switch": "switch_bar", "red block": "block_red"}
    for name, geom in geoms.items():
        np.testing.assert_allclose(positions[name], env.data.geom(geom).xpos, atol=2e-3)


def test_every_pair_of_task_and_place_occurs_equally_often() -> None:
    rows = len(NAMED_TASKS) * len(PLACES)
    pairs = Counter(Settings(count=rows).task(row) for row in range(rows))
    assert len(pairs) == rows
    assert set(pairs.values()) == {1}
    objects = Counter(object_of_task(task) for task in NAMED_TASKS)
    assert objects["red block"] == objects["blue block"] == objects["pink block"] == 7


def test_the_split_is_processed_and_raw_and_frames_agree_with_the_index(scenes: Path) -> None:
    index, split = read_index(scenes), CalvinSplit(scenes)
    assert len(index) == index.episodes == len(split.frame_ids) == SMALL.count
    provider = DataProvider(scenes, act_step=1, resolution=16, num_view=2)
    assert tuple(provider.views(5).shape) == (2, 3, 16, 16)
    frame = split.frame(40, ["robot_obs", "scene_obs", "actions"])
    np.testing.assert_allclose(frame["robot_obs"][:6], frame["actions"][:6])
    task, place = SMALL.task(40)
    assert index.task(40) == task
    if place in PLACES and task.startswith("lift"):
        assert task.split("_")[1] in index.instruction(40)
    assert SMALL.scene(34)[0] == "A"
    assert SMALL.scene(35) == ("D", 0)


@pytest.mark.slow
def test_processes_and_an_interruption_do_not_change_the_scenes(scenes: Path, tmp_path: Path) -> None:
    make_scenes(tmp_path, SMALL, processes=2)
    other = tmp_path / "training"
    shard_path(other, 1).unlink()
    (other / "whole.json").unlink()
    make_scenes(tmp_path, SMALL)
    for row in (0, 63, 64, 69):
        keys = ["rgb_static", "rgb_gripper", "scene_obs"]
        ours, theirs = (CalvinSplit(path).frame(row, keys) for path in (scenes, other))
        assert all(np.array_equal(ours[key], theirs[key]) for key in keys)
    assert json.loads((scenes / "dataset_info.json").read_text()) == json.loads(
        (other / "dataset_info.json").read_text()
    )


def test_other_settings_are_refused(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="holds scenes with seed 3, now it is 4"):
        make_scenes(scenes.parent, replace(SMALL, seed=4))
    assert make_desk_scenes.main(["--out", str(scenes.parent), "--count", "1", "--tasks", "stack_block"]) == 2
    assert "--tasks 'stack_block'" in capsys.readouterr().err

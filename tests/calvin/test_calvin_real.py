"""The adapter on the real simulator, against states that were recorded in it. Skipped where it is not installed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.constants import CALVIN_STATE
from models.action.state import StateConvention
from policy_rollout.calvin.initial_states import initial_state
from policy_rollout.calvin.installation import package_folder
from policy_rollout.calvin.oracle import TaskOracle
from policy_rollout.calvin.sequences import official_sequences
from policy_rollout.calvin.simulator import CalvinEnv
from policy_rollout.calvin.tasks import CALVIN_TASKS
from policy_rollout.closed_loop.interface import observation
from policy_rollout.policies.interface import Observation
from policy_rollout.policies.upvla import UPVLAPolicy
from tests.policy.saved_model import write_model

RECORDED = Path(os.environ.get("BLOCKDIFF_CALVIN_DIR", Path(__file__).parents[3] / "shared" / "calvin")) / "mini_D_D"
pytestmark = [
    pytest.mark.skipif(package_folder() is None, reason="calvin_env is not installed (scripts/install_calvin_env.sh)"),
    pytest.mark.skipif(not RECORDED.is_dir(), reason=f"no recordings of the real CALVIN in {RECORDED}"),
]


@pytest.fixture(scope="module")
def env() -> Iterator[CalvinEnv]:
    made = CalvinEnv(RECORDED / "validation")
    yield made
    made.close()


def recorded(index: int) -> Any:
    return np.load(RECORDED / "validation" / f"episode_{index:07d}.npz")


@pytest.mark.parametrize("index", [738, 760, 794, 844])
def test_a_recorded_state_comes_back(env: CalvinEnv, index: int) -> None:
    frame = recorded(index)
    obs = env.reset(frame["robot_obs"], frame["scene_obs"])
    assert np.abs(obs["robot_obs"] - frame["robot_obs"]).max() < 5e-3
    assert obs["robot_obs"][14] == frame["robot_obs"][14]
    assert np.abs(obs["scene_obs"] - frame["scene_obs"])[:6].max() < 5e-3
    images = env.get_obs()["rgb_obs"]
    assert {name: image.shape for name, image in images.items()} == {
        name: frame[name].shape for name in ("rgb_static", "rgb_gripper")
    }


def test_a_policy_that_reads_the_state_acts_by_what_the_simulator_measures(env: CalvinEnv, tmp_path: Path) -> None:
    convention = StateConvention.of(CALVIN_STATE, dict.fromkeys(range(15), 0.0), dict.fromkeys(range(15), 1.0))
    policy = UPVLAPolicy.from_config(write_model(tmp_path, state=convention.to_json()), device="cpu")
    frames = [recorded(index) for index in (738, 844)]
    measured, moved = [], []
    for frame in frames:
        env.reset(frame["robot_obs"], frame["scene_obs"])
        seen = observation(env.get_obs(("static",)), "open the drawer")
        (chunk,) = policy.act([seen])
        recorded_chunk = policy.act([replace(seen, robot_obs=frame["robot_obs"])])[0]
        np.testing.assert_allclose(chunk, recorded_chunk, atol=1e-2)  # the simulator's state is that of the recording
        measured.append(convention.apply(torch.from_numpy(seen.robot_obs)).numpy())
        moved.append([env.step(action, render=False)[0]["robot_obs"][:3] for action in chunk])
    expected = convention.apply(torch.from_numpy(np.stack([frame["robot_obs"] for frame in frames]))).numpy()
    np.testing.assert_allclose(measured, expected, atol=5e-3)
    assert np.isfinite(moved).all()
    static = env.get_obs(("static",))["rgb_obs"]["rgb_static"]
    one, other = policy.act([Observation(static, "open the drawer", robot_obs=frame["robot_obs"]) for frame in frames])
    assert np.abs(one - other).max() > 1e-4, "the same image, another state"


def test_neither_drawing_nor_the_chain_before_moves_anything(env: CalvinEnv) -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (120, 7))
    actions[:, 2] -= 0.4  # down, onto the table

    def play(number: int, render: bool = False) -> Any:
        env.reset(*initial_state(official_sequences(number + 1)[number].state))
        return np.array(
            [env.step(action, render and step % 40 == 0)[0]["scene_obs"] for step, action in enumerate(actions)]
        )

    first = play(3)
    assert np.ptp(first, axis=0).max() > 0.01, "nothing was touched"
    play(5)
    assert np.array_equal(play(3), first)
    assert np.array_equal(play(3, render=True), first)


def test_a_relative_action_moves_the_hand_two_centimetres(env: CalvinEnv) -> None:
    """Ten steps of 1.0 settle at 0.2 m, as the published action space has it."""
    before = env.reset(*initial_state(official_sequences(1)[0].state))["robot_obs"]
    for step in range(40):
        after = env.step(np.array([float(step < 10), 0, 0, 0, 0, 0, 1]), render=False)[0]["robot_obs"]
    assert (after - before)[:3] == pytest.approx([0.2, 0, 0], abs=5e-3)


def test_the_oracle_reads_every_task_from_the_simulators_info(env: CalvinEnv) -> None:
    robot, scene = initial_state(official_sequences(1)[0].state)

    def info_of(slider: float, drawer: float, bulb: int, led: int) -> Any:
        scene[[0, 1, 3, 4, 5]] = slider, drawer, 0.088 * bulb, bulb, led
        env.reset(robot, scene)
        return env.step(np.array([0, 0, 0, 0, 0, 0, 1.0]), render=False)[3]

    closed, opened = info_of(0, 0, 0, 0), info_of(0.28, 0.22, 1, 1)
    there = {"move_slider_left", "open_drawer", "turn_on_lightbulb", "turn_on_led"}
    back = {"move_slider_right", "close_drawer", "turn_off_lightbulb", "turn_off_led"}
    assert TaskOracle().tasks_done(closed, opened) == there
    assert TaskOracle().tasks_done(opened, closed) == back
    assert TaskOracle().tasks_done(closed, info_of(0, 0, 0, 0)) == set()


def test_the_oracle_evaluates_as_the_installed_tasks_do(env: CalvinEnv) -> None:
    """Every pair of states that random actions around the blocks lead to, and of states that were recorded."""
    from calvin_env.envs.tasks import Tasks

    original = Tasks(
        {task: [list(a) if isinstance(a, tuple) else a for a in row] for task, row in CALVIN_TASKS.items()}
    )
    infos = []
    for number, chain in enumerate(official_sequences(6)):
        random = np.random.default_rng(number)
        robot, scene = initial_state(chain.state)
        robot[:3] = scene[6 + 6 * (number % 3) :][:3]  # at one of the blocks
        robot[2] += 0.04
        env.reset(robot, scene)
        for step in range(90):
            action = np.append(random.uniform(-1, 1, 6), 1.0 if step % 45 < 15 else -1.0)
            info = env.step(action, render=False)[3]
            if step % 15 == 14:
                infos.append(info)
    for index in (738, 760, 794, 844):
        frame = recorded(index)
        env.reset(frame["robot_obs"], frame["scene_obs"])
        infos.append(env.get_info())
    done = set()
    for start in infos:
        for end in infos:
            expected = original.get_task_info(start, end)
            assert TaskOracle().tasks_done(start, end) == expected
            done |= expected
    assert any(task.startswith(("push_", "lift_")) for task in done), "no push and no lift was among them"

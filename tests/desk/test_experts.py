"""The scripted experts: honest, reproducible, able to recover, and good enough."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from policy_rollout.calvin.oracle import TaskOracle
from policy_rollout.calvin.scene_state import symbolic_state
from policy_rollout.calvin.sequences import desk_sequences
from policy_rollout.calvin.symbolic import feasible_tasks
from policy_rollout.calvin.tasks import TASK_NAMES
from policy_rollout.desk import SCENES, DeskEnv
from policy_rollout.desk.experts.evaluate import main, run_chain, run_episode
from policy_rollout.desk.experts.motion import DeskState, approach, finger_direction, hand_euler
from policy_rollout.desk.experts.policy import EXPERT_TASKS, PLAY, QUIET, Noise, ScriptedExpert, task_resets
from policy_rollout.desk.rotation import matrix_of

ORACLE = TaskOracle()


@pytest.fixture(scope="module")
def desks() -> dict[str, DeskEnv]:
    return {scene: DeskEnv(scene) for scene in SCENES}


def test_there_is_an_expert_for_each_of_the_34_tasks() -> None:
    assert EXPERT_TASKS == TASK_NAMES


@pytest.mark.parametrize("task", EXPERT_TASKS)
def test_the_expert_does_its_task_in_every_scene(desks: dict[str, DeskEnv], task: str) -> None:
    episodes = [run_episode(env, ORACLE, task, seed=1) for env in desks.values()]
    assert [e.scene for e in episodes if e.success] == list(SCENES)
    assert sorted(e.steps for e in episodes)[1] < 80  # the second fastest of four


@pytest.mark.parametrize("task", EXPERT_TASKS)
def test_a_reset_for_a_task_is_a_state_in_which_the_task_can_be_done(desks: dict[str, DeskEnv], task: str) -> None:
    for seed in range(6):
        for env in desks.values():
            obs = env.reset(*task_resets(task, seed, env.scene))
            state = symbolic_state(obs["scene_obs"], info=env.get_info())
            assert task in feasible_tasks(state, unique=False), (env.scene, seed, state)
            start = env.get_info()
            _, _, _, info = env.step(np.array([0, 0, 0, 0, 0, 0, obs["robot_obs"][14]]))
            assert not ORACLE.done(task, start, info)


def test_the_same_seed_gives_the_same_reset_and_another_seed_another() -> None:
    first, again, other = (task_resets("stack_block", seed, "B") for seed in (3, 3, 4))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1])


def _actions(env: DeskEnv, task: str, noise: Noise, seed: int, steps: int = 60) -> np.ndarray:
    obs = env.reset(*task_resets(task, 0, env.scene))
    expert = ScriptedExpert(env.layout, task, np.random.default_rng(seed), noise)
    actions = []
    for _ in range(steps):
        seen = {"robot_obs": obs["robot_obs"], "scene_obs": obs["scene_obs"]}  # nothing else is looked at
        actions.append(expert.act(seen))
        obs = env.step(actions[-1])[0]
    return np.array(actions)


@pytest.mark.parametrize("task", ["rotate_red_block_left", "lift_pink_block_slider", "push_into_drawer"])
def test_actions_keep_to_the_interface_even_with_noise(desks: dict[str, DeskEnv], task: str) -> None:
    actions = _actions(desks["D"], task, Noise(sigma=0.5, burst_rate=0.2), seed=0)
    assert actions.dtype == np.float64
    assert np.abs(actions).max() <= 1.0
    assert set(actions[:, 6]) <= {-1.0, 1.0}


def test_noise_is_reproducible_and_changes_the_actions(desks: dict[str, DeskEnv]) -> None:
    noisy = _actions(desks["A"], "open_drawer", PLAY, seed=5)
    assert np.array_equal(noisy, _actions(desks["A"], "open_drawer", PLAY, seed=5))
    assert not np.array_equal(noisy, _actions(desks["A"], "open_drawer", PLAY, seed=6))
    assert not np.array_equal(noisy, _actions(desks["A"], "open_drawer", QUIET, seed=5))


def test_without_noise_the_generator_does_not_matter(desks: dict[str, DeskEnv]) -> None:
    assert np.array_equal(
        _actions(desks["A"], "open_drawer", QUIET, seed=5), _actions(desks["A"], "open_drawer", QUIET, seed=6)
    )


@pytest.mark.parametrize("task", ["open_drawer", "rotate_red_block_left", "stack_block"])
def test_the_intended_action_is_that_of_an_undisturbed_expert_in_the_visited_state(
    desks: dict[str, DeskEnv], task: str
) -> None:
    env = desks["B"]
    obs = env.reset(*task_resets(task, 2, "B"))
    noisy = ScriptedExpert(env.layout, task, np.random.default_rng(1), Noise(sigma=0.3, burst_rate=0.1))
    quiet = ScriptedExpert(env.layout, task)
    corrected = 0
    for _ in range(80):
        action = noisy.act(obs)
        np.testing.assert_array_equal(noisy.intended, quiet.act(obs))
        corrected += not np.array_equal(action, noisy.intended)
        obs = env.step(action)[0]
    assert corrected > 20


def test_experts_mostly_succeed_with_the_noise_of_recordings(desks: dict[str, DeskEnv]) -> None:
    tasks = EXPERT_TASKS[::3]
    episodes = [run_episode(desks["C"], ORACLE, task, seed, PLAY) for task in tasks for seed in (0, 1)]
    assert sum(e.success for e in episodes) >= 0.85 * len(episodes)


def test_a_block_that_is_snatched_away_is_fetched_again(desks: dict[str, DeskEnv]) -> None:
    env, task = desks["D"], "lift_blue_block_table"
    obs = env.reset(*task_resets(task, 0, "D"))
    start = env.get_info()
    expert = ScriptedExpert(env.layout, task)
    while not start["scene_info"]["movable_objects"]["block_blue"]["current_pos"][2] + 0.03 < obs["scene_obs"][14]:
        obs = env.step(expert.act(obs))[0]  # until it is in the air
    shifted = obs["scene_obs"].copy()
    shifted[12:18] = start["scene_info"]["movable_objects"]["block_blue"]["current_pos"] + (0.0, 0.0, 0.3)
    shifted[12] += 0.05 if shifted[12] < 0.15 else -0.05
    obs = env.reset(obs["robot_obs"], shifted)
    for _ in range(150):
        obs, _, _, info = env.step(expert.act(obs))
        if ORACLE.done(task, start, info):
            break
    assert ORACLE.done(task, start, info)
    assert expert.attempts >= 1


def test_a_door_over_the_block_is_opened_first(desks: dict[str, DeskEnv]) -> None:
    env, task = desks["D"], "lift_red_block_slider"
    robot, scene = task_resets(task, 0, "D")
    scene[0] = 0.28 - scene[0]
    obs = env.reset(robot, scene)
    start = env.get_info()
    expert = ScriptedExpert(env.layout, task)
    for _ in range(200):
        obs, _, _, info = env.step(expert.act(obs))
        if ORACLE.done(task, start, info):
            return
    raise AssertionError("the block behind the door was not lifted")


def test_a_lift_that_starts_with_the_fingers_around_the_block_is_feasible_done_and_accepted(
    desks: dict[str, DeskEnv],
) -> None:
    env, task = desks["D"], "lift_blue_block_table"
    obs = env.reset(*task_resets(task, 0, "D"))
    expert = ScriptedExpert(env.layout, task)

    def touched() -> set[int]:
        info = env.get_info()
        block = info["scene_info"]["movable_objects"]["block_blue"]
        robot, table = info["robot_info"]["uid"], info["scene_info"]["fixed_objects"]["table"]["uid"]
        return {contact[2] for contact in block["contacts"]} & {robot, table}

    for _ in range(100):
        if len(touched()) == 2:  # the robot and the table
            break
        obs = env.step(expert.act(obs))[0]
    assert len(touched()) == 2
    start = env.get_info()
    state = symbolic_state(obs["scene_obs"], obs["robot_obs"], start)
    assert task in feasible_tasks(state, unique=False)
    expert.reset(task, obs)
    for _ in range(60):
        obs, _, _, info = env.step(expert.act(obs))
        if ORACLE.done(task, start, info):
            return
    raise AssertionError("the block in the fingers was not lifted")


def test_an_expert_that_is_done_stays_where_it_is(desks: dict[str, DeskEnv]) -> None:
    env = desks["B"]
    obs = env.reset(*task_resets("turn_on_led", 2, "B"))
    expert = ScriptedExpert(env.layout, "turn_on_led", noise=PLAY)
    while not expert.done:
        obs = env.step(expert.act(obs))[0]
    for _ in range(20):
        action = expert.act(obs)
        assert not action[:6].any()
        obs = env.step(action)[0]
    assert obs["scene_obs"][5] == 1.0


def test_one_expert_continues_with_the_next_task(desks: dict[str, DeskEnv]) -> None:
    env = desks["A"]
    obs = env.reset(*task_resets("lift_red_block_table", 7, "A"))
    expert = ScriptedExpert(env.layout, "lift_red_block_table")
    for task in ("lift_red_block_table", "place_in_slider", "turn_on_led"):
        if task == "turn_on_led" and obs["scene_obs"][5] == 1.0:
            task = "turn_off_led"
        expert.reset(task, obs)
        start = env.get_info()
        for _ in range(150):
            obs, _, _, info = env.step(expert.act(obs))
            if ORACLE.done(task, start, info):
                break
        else:
            raise AssertionError(f"{task} was not done")


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(ValueError, match="no expert for 'open_window'"):
        ScriptedExpert(DeskEnv("A").layout, "open_window")


def test_chains_of_five_are_long_for_experts_and_short_for_random_actions(desks: dict[str, DeskEnv]) -> None:
    chains = desk_sequences(8, EXPERT_TASKS, seed=1)
    lengths = [run_chain(desks["D"], ORACLE, chain, i, QUIET).done for i, chain in enumerate(chains)]
    assert sum(lengths) / len(lengths) >= 4.5
    random = [run_chain(desks["D"], ORACLE, chain, i, None).done for i, chain in enumerate(chains[:3])]
    assert sum(random) == 0


def test_the_command_prints_a_table_and_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "experts.md"
    options = ["--table", "--tasks", "open_drawer", "turn_on_led", "--scenes", "C", "--resets", "2", "--workers", "1"]
    main([*options, "--markdown", str(page)])
    out = capsys.readouterr().out
    assert "C  open_drawer" in out
    assert out.count("2/2") == 2
    assert "| open_drawer | 2/2 |" in page.read_text()
    assert list(tmp_path.iterdir()) == [page]


def test_the_command_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    for options, word in ((["--table", "--scenes", "A,E"], "'E' is not a scene"), ([], "nothing to do")):
        with pytest.raises(SystemExit):
            main(options)
        assert word in capsys.readouterr().err


# ---- the parts ----


def test_a_leaning_hand_reaches_away_from_the_viewer() -> None:
    for yaw in (0.3, math.pi / 2, 2.5):
        for tilt in (0.0, 0.5, 0.9):
            hand = matrix_of(hand_euler(yaw, tilt))
            assert np.allclose(hand[:, 2], finger_direction(tilt))
            if tilt == 0.0:
                assert np.allclose(hand[:2, 1], [math.sin(yaw), -math.cos(yaw)])


def test_a_funnel_comes_down_only_above_its_point(desks: dict[str, DeskEnv]) -> None:
    env = desks["D"]
    state = DeskState.of(env.reset(seed=0), env.layout)
    move = approach(state.tcp - [0.0, 0.0, 0.1], state.euler, 1.0)
    assert move.target(state)[2] == pytest.approx(state.tcp[2] - 0.1)  # straight above: all the way down
    lateral = approach(state.tcp - [-0.2, 0.0, 0.1], state.euler, 1.0)
    assert lateral.target(state)[2] == pytest.approx(state.tcp[2] - 0.1 + 0.075)
    turned = approach(state.tcp - [0.0, 0.0, 0.1], state.euler - [0.0, 0.0, 1.0], 1.0)
    assert turned.target(state)[2] == pytest.approx(state.tcp[2] - 0.1 + 0.075)

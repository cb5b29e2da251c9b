"""The desk's physics and its interface: CALVIN's actions, observations and info."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from policy_rollout.desk import BLOCKS, LAYOUTS, SCENES, DeskEnv
from policy_rollout.desk import layout as L

REPO = Path(__file__).resolve().parents[2]
STILL = np.array([0.0, 0, 0, 0, 0, 0, 1])
# Doors and drawer open, lights on; red behind the open door, blue on the table, pink in the other compartment.
SCENE_OBS = np.array([0.28, 0.22, 0, 0.088, 1, 1, 0.0703, 0.0924, 0.461, 0, 0, 1.6, 0.05, -0.12, 0.46, 0, 0, 1.4])
SCENE_OBS = np.concatenate([SCENE_OBS, [-0.2409, 0.0924, 0.461, 0, 0, 1.5]])


def off(point: np.ndarray, x: float, y: float, z: float) -> np.ndarray:
    return point + np.array([x, y, z])


def closed() -> np.ndarray:
    out = SCENE_OBS.copy()
    out[:6] = 0
    return out


def go(env: DeskEnv, pos: np.ndarray, euler: tuple[float, ...] = (np.pi, 0, np.pi / 2), grip: float = 1, n: int = 25):
    """Absolute commands in steps of at most 2 cm, as a policy would."""
    for _ in range(n):
        here = env.get_obs(False)["robot_obs"][:3]
        step = here + np.clip(pos - here, -0.02, 0.02)
        obs, _, _, info = env.step({"type": "cartesian_abs", "action": np.array([*step, *euler, grip])})
    return obs, info


def digest(env: DeskEnv, seed: int) -> str:
    """A hash of everything observed in a short episode with random actions."""
    rng = np.random.default_rng(seed)
    obs = env.reset(seed=seed, render=True)
    seen = hashlib.sha256()
    for i in range(40):
        action = np.concatenate([rng.uniform(-1, 1, 6), [rng.choice([-1.0, 1.0])]])
        obs, _, _, info = env.step(action, render=i % 20 == 19)
        seen.update(obs["robot_obs"].tobytes() + obs["scene_obs"].tobytes() + repr(info).encode())
    for name in ("static", "gripper"):
        seen.update(obs["rgb_obs"][f"rgb_{name}"].tobytes() + obs["depth_obs"][f"depth_{name}"].tobytes())
    return seen.hexdigest()


def test_ten_steps_of_one_settle_at_twenty_centimetres_and_half_a_radian():
    for axis, want in ((0, 0.199), (1, 0.199), (3, 0.4998), (5, 0.4998)):
        env = DeskEnv()
        start = env.reset()["robot_obs"][:6]
        action = STILL.copy()
        action[axis] = 1.0 if axis != 3 else -1.0  # roll starts just under pi
        for _ in range(10):
            env.step(action)
        for _ in range(5):
            obs, *_ = env.step(STILL)
        moved = np.abs(obs["robot_obs"][:6] - start)
        assert moved[axis] == pytest.approx(want, abs=0.0015)
        assert np.delete(moved, axis).max() < 0.002


def test_an_absolute_command_takes_the_hand_to_a_pose_and_is_the_same_as_a_triple():
    ends = []
    for as_triple in (False, True):
        env = DeskEnv()
        env.reset()
        for _ in range(40):
            pose = np.array([0.1, -0.3, 0.6, -np.pi + 0.1, 0.1, 1.2])
            action = (pose[:3], pose[3:], np.array([-1.0])) if as_triple else np.concatenate([pose, [-1]])
            obs, *_ = env.step(action if as_triple else {"type": "cartesian_abs", "action": action})
        ends.append(obs["robot_obs"])
    np.testing.assert_allclose(ends[0][:6], pose, atol=2e-3)
    np.testing.assert_array_equal(ends[0], ends[1])
    assert ends[0][6] < 1e-3
    assert ends[0][14] == -1


@pytest.mark.parametrize("gripper", [0.0, 0.5, 2.0, -0.999])
def test_a_gripper_command_other_than_plus_or_minus_one_is_refused(gripper: float):
    with pytest.raises(ValueError, match="exactly -1"):
        DeskEnv().step(np.array([0, 0, 0, 0, 0, 0, gripper]))


def test_actions_of_a_wrong_size_or_with_nan_are_refused():
    env = DeskEnv()
    with pytest.raises(ValueError, match="8 numbers"):
        env.step(np.ones(8))
    with pytest.raises(ValueError, match="finite"):
        env.step(np.array([np.nan, 0, 0, 0, 0, 0, 1]))
    with pytest.raises(ValueError, match="cartesian_rel"):
        env.step({"type": "joint", "action": np.ones(7)})
    with pytest.raises(ValueError, match="scene is 'E'"):
        DeskEnv("E")
    with pytest.raises(ValueError, match="robot_obs"):
        env.reset(robot_obs=np.zeros(14))


def test_pushing_against_the_table_does_not_have_to_be_undone():
    env = DeskEnv()
    above = np.array([0.0, -0.1, 0.56, np.pi, 0, np.pi / 2, 0.08, *[0] * 7, 1])
    env.reset(above, closed())
    down, up = STILL.copy(), STILL.copy()
    down[2], up[2] = -1, 1
    for _ in range(40):
        low, *_ = env.step(down)
    assert low["robot_obs"][2] > L.TABLE_Z + L.FINGER_TIP - 0.004
    for _ in range(4):
        high, *_ = env.step(up)
    assert high["robot_obs"][2] > low["robot_obs"][2] + 0.015


def test_the_hand_stays_in_the_workspace():
    env = DeskEnv()
    for axis, sign in ((0, 1), (0, -1), (1, -1), (2, 1)):
        env.reset(scene_obs=closed())
        action = STILL.copy()
        action[axis] = sign
        for _ in range(60):
            obs, *_ = env.step(action)
        assert obs["robot_obs"][axis] == pytest.approx(L.WORKSPACE[int(sign > 0)][axis], abs=2e-3)


@pytest.mark.parametrize("scene", SCENES)
def test_a_reset_state_comes_back_exactly_and_stays_where_it_was_put(scene: str):
    env = DeskEnv(scene)
    rng = np.random.default_rng(1)
    for _ in range(4):
        scene_obs, robot_obs = SCENE_OBS.copy(), np.zeros(15)
        scene_obs[:6] = rng.choice([0, 1], 6) * [0.28, 0.22, 0, 0.088, 1, 1]
        scene_obs[4] = float(scene_obs[3] > 0)
        blocks = scene_obs[6:].reshape(3, 6)
        blocks[:] = blocks[rng.permutation(3)]
        robot_obs[:7] = [*rng.uniform((-0.1, -0.4, 0.52), (0.2, -0.2, 0.6)), 3.09, -0.03, 1.5, 0.08]
        robot_obs[14] = rng.choice([-1.0, 1.0])
        obs = env.reset(robot_obs, scene_obs)
        np.testing.assert_allclose(obs["robot_obs"], robot_obs, atol=1e-12)
        np.testing.assert_allclose(obs["scene_obs"], scene_obs, atol=1e-12)
        for _ in range(30):
            obs, *_ = env.step(STILL)
        np.testing.assert_allclose(obs["scene_obs"], scene_obs, atol=2e-3)
        np.testing.assert_allclose(obs["robot_obs"][:6], robot_obs[:6], atol=2e-3)


def test_blocks_at_rest_do_not_creep_or_jitter():
    env = DeskEnv()
    env.reset(scene_obs=SCENE_OBS)
    seen = []
    for i in range(300):
        obs, *_ = env.step(STILL)
        if i >= 10:
            seen.append(obs["scene_obs"][6:])
    assert np.ptp(np.array(seen), axis=0).max() < 1e-4


def test_a_random_reset_puts_blocks_on_surfaces_and_depends_on_the_seed_only():
    env = DeskEnv("B")
    for seed in range(20):
        obs = env.reset(seed=seed)
        blocks = obs["scene_obs"][6:].reshape(3, 6)
        for _ in range(5):
            obs, *_ = env.step(STILL)
        np.testing.assert_allclose(obs["scene_obs"][6:].reshape(3, 6)[:, :3], blocks[:, :3], atol=1e-3)
        np.testing.assert_array_equal(DeskEnv("B", seed=seed).get_obs(False)["scene_obs"][6:].reshape(3, 6), blocks)
    first = env.reset(seed=0)["scene_obs"]
    assert not np.array_equal(first, env.reset()["scene_obs"])


@pytest.mark.parametrize("scene", SCENES)
def test_a_block_can_be_grasped_lifted_and_put_down(scene: str):
    env = DeskEnv(scene)
    obs = env.reset(scene_obs=SCENE_OBS)
    place, yaw = obs["scene_obs"][12:15], float(obs["scene_obs"][17])
    grasp, euler = np.array([place[0], place[1], 0.455]), (np.pi, 0, yaw)
    go(env, off(grasp, 0, 0, 0.1), euler)
    go(env, grasp, euler, n=15)
    go(env, grasp, euler, grip=-1, n=10)
    obs, info = go(env, off(grasp, 0, 0, 0.1), euler, grip=-1)
    blue = info["scene_info"]["movable_objects"]["block_blue"]
    assert obs["scene_obs"][14] > place[2] + 0.08
    assert obs["robot_obs"][6] == pytest.approx(0.04, abs=2e-3)
    assert {c[2] for c in blue["contacts"]} == {info["robot_info"]["uid"]}
    assert {c[2] for c in info["robot_info"]["contacts"]} == {blue["uid"]}
    obs, info = go(env, np.array([0.12, -0.1, 0.457]), euler, grip=-1, n=30)
    obs, info = go(env, np.array([0.12, -0.1, 0.457]), euler, grip=1, n=15)
    blue = info["scene_info"]["movable_objects"]["block_blue"]
    assert {(c[2], c[4]) for c in blue["contacts"]} == {(5, -1)}
    np.testing.assert_allclose(obs["scene_obs"][12:15], [0.12, -0.1, 0.46], atol=6e-3)


@pytest.mark.parametrize("scene", SCENES)
def test_the_led_toggles_once_for_every_press_of_the_button(scene: str):
    env = DeskEnv(scene)
    env.reset(scene_obs=closed())
    top = LAYOUTS[scene].button
    lit = []
    for height, n in ((0.08, 30), (-0.01, 20), (0.08, 10), (-0.01, 12), (0.08, 10)):
        obs, info = go(env, off(top, 0, 0, height), grip=-1, n=n)
        lit.append((obs["scene_obs"][5], info["scene_info"]["lights"]["led"]["logical_state"]))
    assert lit == [(0, 0), (1, 1), (1, 1), (0, 0), (0, 0)]
    assert obs["scene_obs"][2] < 0.002, "the button springs back"


@pytest.mark.parametrize("scene", SCENES)
def test_drawer_and_door_follow_the_fingers_and_stay(scene: str):
    env = DeskEnv(scene)
    env.reset(scene_obs=closed())
    hook = off(LAYOUTS[scene].drawer_handle_at(0), 0, 0.025, -0.005)
    go(env, off(hook, 0, 0, 0.2), grip=-1)
    go(env, hook, grip=-1, n=15)
    go(env, hook - [0, 0.16, 0], grip=-1, n=15)
    go(env, off(hook, 0, -0.16, 0.2), grip=-1, n=15)
    obs, info = go(env, off(hook, 0, 0, 0.2), grip=-1)
    assert obs["scene_obs"][1] > 0.12
    assert info["scene_info"]["doors"]["base__drawer"]["current_state"] == obs["scene_obs"][1]
    beside = off(LAYOUTS[scene].door_handle_at(0), 0.035, 0, 0)
    go(env, off(beside, 0, -0.1, 0.1), grip=-1, n=30)
    go(env, beside, grip=-1, n=15)
    go(env, beside - [0.25, 0, 0], grip=-1, n=20)
    obs, info = go(env, off(beside, -0.2, -0.1, 0.1), grip=-1, n=15)
    assert obs["scene_obs"][0] > 0.15
    assert info["scene_info"]["doors"]["base__slide"]["current_state"] == obs["scene_obs"][0]


@pytest.mark.parametrize("scene", SCENES)
def test_the_bulb_is_lit_while_the_switch_is_up(scene: str):
    env = DeskEnv(scene)
    env.reset(scene_obs=closed())
    bar, along = LAYOUTS[scene].switch_handle_at(0), np.array([0, *L.FRONT_UP])
    tilted = (np.pi, -0.9, np.pi / 2)
    go(env, off(bar, 0, -0.15, 0), tilted, grip=-1, n=35)
    go(env, off(bar, 0, 0, -0.03), tilted, grip=-1, n=15)
    obs, info = go(env, bar + along * 0.09, tilted, grip=-1, n=20)
    assert obs["scene_obs"][3] > L.SWITCH_THRESHOLD
    assert obs["scene_obs"][4] == 1
    assert info["scene_info"]["lights"]["lightbulb"]["logical_state"] == 1
    obs, info = go(env, off(bar, 0, -0.15, 0), grip=-1, n=20)
    assert obs["scene_obs"][4] == 1, "the switch stays"


def test_a_block_dropped_into_the_drawer_touches_the_drawer_only():
    env = DeskEnv()
    scene_obs = SCENE_OBS.copy()
    low, high = env.layout.drawer_space_at(0.22)
    scene_obs[12:15] = (low + high) / 2
    env.reset(scene_obs=scene_obs)
    for _ in range(30):
        _, _, _, info = env.step(STILL)
    blue = info["scene_info"]["movable_objects"]["block_blue"]
    links = info["scene_info"]["fixed_objects"]["table"]["links"]
    assert {(c[2], c[4]) for c in blue["contacts"]} == {(5, links["drawer_link"])}
    assert blue["current_pos"][2] == pytest.approx(L.DRAWER_FLOOR_Z + 0.02, abs=1e-3)


def test_info_has_calvins_fields():
    env = DeskEnv()
    env.reset(scene_obs=SCENE_OBS)
    info = env.get_info()
    robot, scene = info["robot_info"], info["scene_info"]
    assert {"tcp_pos", "tcp_orn", "gripper_opening_width", "gripper_action", "uid", "contacts"} <= set(robot)
    assert set(scene) == {"fixed_objects", "movable_objects", "doors", "buttons", "switches", "lights"}
    links = scene["fixed_objects"]["table"]["links"]
    assert {"base_link", "drawer_link", "plank_link", "slide_link", "button_link", "switch_link"} <= set(links)
    for name, link in zip(BLOCKS, ("plank_link", "base_link", "plank_link"), strict=True):
        block = scene["movable_objects"][name]
        assert {(c[2], c[4]) for c in block["contacts"]} == {(5, links[link])}
        assert all(c[1] == block["uid"] for c in block["contacts"])
        assert np.linalg.norm(block["current_orn"]) == pytest.approx(1)
        assert block["current_lin_vel"] == (0, 0, 0)
    half = 1.6 / 2
    np.testing.assert_allclose(scene["movable_objects"]["block_red"]["current_orn"], [0, 0, np.sin(half), np.cos(half)])
    assert scene["doors"]["base__slide"]["current_state"] == 0.28
    assert scene["lights"] == {"lightbulb": {"logical_state": 1}, "led": {"logical_state": 1}}


def test_without_render_there_are_no_images_and_step_returns_calvins_four():
    env = DeskEnv()
    obs, reward, done, info = env.step(STILL)
    assert (obs["rgb_obs"], obs["depth_obs"], reward, done) == (None, None, 0, False)
    assert obs["robot_obs"].shape == (15,)
    assert obs["scene_obs"].shape == (24,)
    assert obs["robot_obs"].dtype == obs["scene_obs"].dtype == np.float64
    assert set(info) == {"robot_info", "scene_info"}


def test_coming_back_to_a_snapshot_repeats_the_future_to_the_last_bit():
    env = DeskEnv()
    env.reset(seed=3)
    rng = np.random.default_rng(0)
    actions = np.concatenate([rng.uniform(-1, 1, (30, 6)), np.sign(rng.standard_normal((30, 1)))], 1)
    for a in actions[:10]:
        env.step(a)
    snapshot = env.save()
    futures = []
    for _ in range(2):
        env.load(snapshot)
        futures.append([env.step(a)[0] for a in actions[10:]])
    for first, second in zip(*futures, strict=True):
        np.testing.assert_array_equal(first["robot_obs"], second["robot_obs"])
        np.testing.assert_array_equal(first["scene_obs"], second["scene_obs"])


def test_two_desks_in_one_process_do_not_disturb_each_other():
    alone = digest(DeskEnv("C"), 5)
    one, other = DeskEnv("C"), DeskEnv("A")
    other.reset(seed=8)
    other.step(STILL, render=True)
    assert digest(one, 5) == alone


def test_the_same_seed_gives_the_same_bytes_in_another_process_without_opengl():
    code = (
        "import sys; sys.path.insert(0, 'tests/desk')\n"
        "from test_desk_env import DeskEnv, digest\n"
        "print(digest(DeskEnv('D'), 11)); print([m for m in sys.modules if 'OpenGL' in m or 'glfw' in m])"
    )
    environment = {**os.environ, "MUJOCO_GL": "off", "PYTHONPATH": str(REPO)}
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    here, loaded = done.stdout.splitlines()
    assert here == digest(DeskEnv("D"), 11)
    assert loaded == "[]"
    assert here != digest(DeskEnv("D"), 12)

"""Use of the desk: invalid arguments are refused, rendering has no side effects, desks are independent."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing import get_context
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from policy_rollout.desk import SCENES, DeskEnv
from policy_rollout.desk.cli import main
from policy_rollout.desk.env import Snapshot

Array = npt.NDArray[np.float64]


def actions(seed: int, count: int) -> Array:
    """Moves that last some steps, towards the table, so that things are touched."""
    rng = np.random.default_rng(seed)
    moves = np.repeat(rng.uniform(-1, 1, (count // 10 + 1, 6)), 10, axis=0)[:count]
    moves[:, 2] -= 0.3
    return np.column_stack([moves, rng.choice([-1.0, 1.0], count)])


def play(env: DeskEnv, seed: int, count: int = 60, render: Any = False) -> Iterator[tuple[Any, ...]]:
    """Everything that the oracle or a policy without eyes could know after each step."""
    env.reset(seed=seed)
    for action in actions(seed, count):
        obs, _, _, info = env.step(action, render=render)
        yield obs["robot_obs"].tobytes(), obs["scene_obs"].tobytes(), repr(info)


def played(job: tuple[str, int]) -> list[tuple[Any, ...]]:
    return list(play(DeskEnv(job[0]), job[1]))


# ---- looking ----


def test_drawing_images_changes_nothing_but_the_images() -> None:
    blind = list(play(DeskEnv("C", static_size=32, gripper_size=32), 3))
    seeing = list(play(DeskEnv("C", static_size=32, gripper_size=32), 3, render=True))
    assert blind == seeing


def test_only_the_cameras_that_are_requested_are_drawn() -> None:
    env = DeskEnv(static_size=40, gripper_size=24)
    both = env.get_obs()
    assert list(both["rgb_obs"]) == ["rgb_static", "rgb_gripper"]
    for asked in (("static",), ["gripper"], "static", {"static": 1}):
        obs = env.get_obs(asked)
        names = [asked] if isinstance(asked, str) else list(asked)
        assert list(obs["rgb_obs"]) == [f"rgb_{name}" for name in names]
        assert list(obs["depth_obs"]) == [f"depth_{name}" for name in names]
        for key, image in obs["rgb_obs"].items():
            np.testing.assert_array_equal(image, both["rgb_obs"][key])
    assert env.get_obs(())["rgb_obs"] is None
    obs, *_ = env.step(np.array([0.0, 0, 0, 0, 0, 0, 1]), render=("static",))
    assert list(obs["rgb_obs"]) == ["rgb_static"]
    with pytest.raises(ValueError, match="camera is 'rgb_static'"):
        env.get_obs(["rgb_static"])


@pytest.mark.parametrize("size", [1, 17, 500])
def test_an_image_of_any_size_shows_the_same_desk(size: int) -> None:
    env = DeskEnv("A")
    image = env.image("static", size)
    assert image.rgb.shape == (size, size, 3)
    if size > 1:
        apart = np.abs(image.rgb.mean((0, 1)) - env.render("static", 200).mean((0, 1)))
        assert apart.max() < 4


# ---- many desks ----


def test_desks_that_take_turns_do_what_each_does_alone() -> None:
    jobs = [("D", 1), ("A", 2), ("D", 3)]
    alone = [played(job) for job in jobs]
    together = [play(DeskEnv(scene, static_size=16, gripper_size=16), seed, render=True) for scene, seed in jobs]
    for rows in zip(*together, *alone, strict=True):
        assert rows[:3] == rows[3:]


def test_desks_in_other_processes_do_the_same() -> None:
    jobs = [("D", 1), ("B", 2)]
    with get_context("spawn").Pool(2) as pool:
        assert pool.map(played, jobs) == [played(job) for job in jobs]


def goes_on(snapshot: Snapshot) -> list[tuple[Any, ...]]:
    """What happens after a snapshot on a desk of its own, with the first and last images."""
    env = DeskEnv(snapshot.scene, static_size=24, gripper_size=24)
    env.load(snapshot)
    return future(env)


def future(env: DeskEnv) -> list[tuple[Any, ...]]:
    seen: list[tuple[Any, ...]] = [(env.render("static").tobytes(), repr(env.get_info()))]
    for action in actions(8, 40):
        obs, _, _, info = env.step(action)
        seen.append((obs["robot_obs"].tobytes(), obs["scene_obs"].tobytes(), repr(info)))
    return [*seen, (env.render("static").tobytes(), env.render("gripper").tobytes())]


def test_a_snapshot_continues_alike_on_another_desk_and_in_another_process() -> None:
    env = DeskEnv("A", static_size=24, gripper_size=24, camera_jitter=1.0, light_jitter=1.0, seed=3)
    for action in actions(7, 40):
        env.step(action)
    snapshot = env.save()
    here = future(env)
    assert goes_on(snapshot) == here
    with get_context("spawn").Pool(1) as pool:
        assert pool.map(goes_on, [snapshot]) == [here]


# ---- nonsense ----


def changed(values: Array, at: int, to: float) -> Array:
    out = values.copy()
    out[at] = to
    return out


def test_a_state_that_makes_no_sense_is_refused_and_the_desk_stays_as_it_was() -> None:
    env = DeskEnv(seed=4)
    obs = env.reset()
    robot, scene = obs["robot_obs"], obs["scene_obs"]
    wrong: list[tuple[Any, Any, str]] = [
        (robot[:14], scene, r"robot_obs has 14 numbers"),
        (robot, scene[None], r"scene_obs has 24 numbers, shape \(1, 24\)"),
        (changed(robot, 0, np.nan), scene, "robot_obs has a value that is not finite"),
        (robot, changed(scene, 6, np.inf), "scene_obs has a value that is not finite"),
        (robot, changed(scene, 6, 1e300), r"scene_obs has 1e\+300"),
        ("home", scene, "robot_obs must be 15 numbers, not 'home'"),
        (robot, [[1, 2], [3]], "scene_obs must be 24 numbers"),
    ]
    for robot_obs, scene_obs, words in wrong:
        with pytest.raises(ValueError, match=words):
            env.reset(robot_obs, scene_obs)
    now = env.get_obs(False)
    np.testing.assert_array_equal(now["robot_obs"], robot)
    np.testing.assert_array_equal(now["scene_obs"], scene)


def test_states_that_cannot_be_are_survived() -> None:
    env = DeskEnv()
    obs = env.reset(seed=1)
    robot, scene = obs["robot_obs"], obs["scene_obs"]
    piled = scene.copy()
    piled[6:9] = piled[12:15] = piled[18:21]
    states = [
        (robot, piled),
        (robot, changed(scene, 0, 5.0)),
        (robot, changed(scene, 1, -3.0)),
        (robot, changed(scene, 8, 0.3)),
        (changed(robot, 2, 0.40), scene),
        (changed(robot, 0, 9.0), scene),
    ]
    for robot_obs, scene_obs in states:
        env.reset(robot_obs, scene_obs)
        for _ in range(30):
            obs, *_ = env.step(np.array([0.0, 0, 0, 0, 0, 0, 1]))
        assert np.isfinite(obs["scene_obs"]).all()
        assert np.isfinite(obs["robot_obs"]).all()
        assert -0.02 < obs["scene_obs"][0] < 0.30, "the door is back on its rail"


def test_lights_are_on_or_off_whatever_the_state_says() -> None:
    env = DeskEnv()
    scene = env.reset()["scene_obs"]
    for value, lit in ((-2.0, 0), (0.2, 0), (0.9, 1), (7.0, 1)):
        obs = env.reset(scene_obs=changed(changed(scene, 5, value), 4, value))
        assert obs["scene_obs"][4:6].tolist() == [lit, lit]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"renderer": "eevee"}, "renderer is 'eevee'"),
        ({"static_size": 0}, "static_size is 0"),
        ({"gripper_size": 84.5}, "gripper_size is 84.5"),
        ({"camera_jitter": float("nan")}, "camera_jitter is nan"),
        ({"light_jitter": -1.0}, "light_jitter is -1"),
        ({"light_jitter": 50.0}, "light_jitter is 50"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1.5}, "seed is 1.5"),
    ],
)
def test_a_wrong_argument_is_refused_at_once_by_name(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DeskEnv(**arguments)


@pytest.mark.parametrize("action", ["up", None, np.zeros((1, 7)), [[0] * 6, 1]])
def test_what_is_not_an_action_is_refused(action: Any) -> None:
    env = DeskEnv()
    with pytest.raises(ValueError, match="the action"):
        env.step(action)


@pytest.mark.parametrize("scene", SCENES)
def test_a_jittered_desk_follows_its_seed_in_every_scene(scene: str) -> None:
    shots = [DeskEnv(scene, camera_jitter=1.0, light_jitter=1.0, seed=9).render(size=32) for _ in range(2)]
    np.testing.assert_array_equal(*shots)
    assert (shots[0] != DeskEnv(scene).render(size=32)).any()


def test_the_command_line_refuses_an_image_that_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--draw", "/dev/null/state.png"]) == 2
    assert capsys.readouterr().err.count("\n") == 1

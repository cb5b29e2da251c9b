"""CALVIN's simulator behind the environment seam, against a stand-in with the real one's traps (tests/calvin/fake)."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy_rollout.calvin.initial_states import ROBOT_START, initial_state
from policy_rollout.calvin.oracle import TaskOracle
from policy_rollout.calvin.sequences import official_sequences
from policy_rollout.calvin.simulator import CalvinEnv, read_configuration

Data = Callable[[str], Path]
PULL = np.array([0, -0.9, 0, 0, 0, 0, 1.0])


@pytest.fixture
def make(fake_calvin_env: None) -> Iterator[Callable[..., CalvinEnv]]:
    made: list[CalvinEnv] = []

    def one(folder: Path, **options: Any) -> CalvinEnv:
        made.append(CalvinEnv(folder / "validation", **options))
        return made[-1]

    yield one
    for env in made:
        env.close()


def start(number: int = 0) -> tuple[Any, Any]:
    return initial_state(official_sequences(number + 1)[number].state)


def drawn(env: CalvinEnv) -> dict[str, int]:
    return {name: camera.drawn for name, camera in env._cameras.items()}


def test_only_what_is_requested_is_drawn(make: Any, data: Data) -> None:
    env = make(data("D"))
    before = drawn(env)
    env.reset(*start())
    for _ in range(5):
        assert env.step(PULL, render=False)[0]["rgb_obs"] is None
    assert drawn(env) == before
    images = env.step(PULL, render=("static",))[0]["rgb_obs"]
    assert list(images) == ["rgb_static"]
    assert images["rgb_static"].dtype == np.uint8
    assert images["rgb_static"].shape == (20, 20, 3)
    env.get_obs()
    assert drawn(env) == {"static": before["static"] + 2, "gripper": before["gripper"] + 1}
    with pytest.raises(ValueError, match="no camera tactile; it has static, gripper"):
        env.get_obs(("tactile",))


@pytest.mark.parametrize("scene", ["A", "C", "D"])
def test_blocks_are_red_blue_pink_whatever_the_scene_lists_first(make: Any, data: Data, scene: str) -> None:
    env = make(data(scene))
    robot, blocks = start()
    blocks[6::6] = [0.1, 0.2, 0.3]  # x of red, blue and pink
    assert env.reset(robot, blocks)["scene_obs"].tolist() == blocks.tolist()
    assert env.get_obs(False)["scene_obs"].tolist() == blocks.tolist()
    info = env.get_info()["scene_info"]["movable_objects"]
    assert [info[f"block_{colour}"]["current_pos"][0] for colour in ("red", "blue", "pink")] == [0.1, 0.2, 0.3]
    after = env.step(PULL, render=False)[0]["scene_obs"]
    assert after[6::6].tolist() == [0.1, 0.2, 0.3]
    assert after[1] > blocks[1]


def test_a_reset_brings_back_the_last_gripper_command_too(make: Any, data: Data) -> None:
    env = make(data("D"))
    robot, blocks = start()
    env.reset(robot, blocks)
    env.step([0, 0, 0, 0, 0, 0, -1], render=False)
    assert env.get_obs(False)["robot_obs"][14] == -1
    assert env.reset(robot, blocks)["robot_obs"].tolist() == list(ROBOT_START)
    robot[14] = -1
    assert env.reset(robot, blocks)["robot_obs"][14] == -1
    assert env.reset()["robot_obs"][14] == 1


@pytest.mark.parametrize(("given", "executed"), [(0.01, 1), (1, 1), (0, -1), (-0.4, -1)])
def test_actions_are_floats_with_a_gripper_that_is_open_or_closed(
    make: Any, data: Data, given: float, executed: int
) -> None:
    env = make(data("D"))
    env.reset(*start())
    action = np.array([1, 0, 0, 0, 0, 0, given])
    obs, reward, done, info = env.step(action, render=False)
    assert info["robot_info"]["gripper_action"] == executed
    assert (reward, done) == (0, False)
    assert obs["robot_obs"][0] == pytest.approx(ROBOT_START[0] + 0.02)
    assert action.tolist() == [1, 0, 0, 0, 0, 0, given], "the policy's array is its own"
    with pytest.raises(ValueError, match="7 finite numbers"):
        env.step([np.nan] * 7)


def test_what_a_chain_comes_to_does_not_hang_on_the_chains_before(make: Any, data: Data) -> None:
    """calvin_env's contacts do; see the note at the top of policy_rollout/calvin/simulator.py."""
    env = make(data("D"))
    push = np.array([1, 0, 0, 0, 0, 0, 1.0])

    def play(number: int) -> Any:
        env.reset(*start(number))
        return [env.step(push, render=False)[0]["scene_obs"].tolist() for _ in range(20)]

    first = play(0)
    play(1)
    assert play(0) == first


def test_without_states_a_reset_draws_the_same_places_in_every_process(make: Any, data: Data) -> None:
    env = make(data("D"))
    first = env.reset()["scene_obs"].tolist()
    env.step(PULL, render=False)
    assert env.reset()["scene_obs"].tolist() == first


def test_a_process_holds_one_world_at_a_time(make: Any, data: Data, capfd: pytest.CaptureFixture[str]) -> None:
    folder = data("D")
    env = make(folder)
    with pytest.raises(RuntimeError, match="one CALVIN environment at a time"):
        make(folder)
    env.close()
    env.close()
    make(folder).close()
    gc.collect()
    assert capfd.readouterr() == ("", ""), "the simulator prints; nobody wants to read it"


def test_where_egl_draws_is_reported_before_the_simulator_starts(
    make: Any, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EGL_VISIBLE_DEVICES", "7")
    assert make(data("D"), egl=True, egl_device=3)._sim.egl_device == "3"


def test_the_oracle_reads_what_the_simulator_says(make: Any, data: Data) -> None:
    env, oracle = make(data("D")), TaskOracle()
    robot, blocks = start()
    blocks[1] = 0.0
    env.reset(robot, blocks)
    before = env.get_info()
    done = [bool(oracle.tasks_done(before, env.step(PULL, render=False)[3], {"open_drawer"})) for _ in range(8)]
    assert done == [False] * 6 + [True] * 2, "more than 0.12 m at 0.018 m a step"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cameras: [", "cannot be read"),
        ("cameras: {}\nenv: {}\n", "has no robot, scene"),
        ("cameras: {gripper: {}}\nenv: {}\nrobot: {}\nscene: {}\n", "has no camera static"),
    ],
)
def test_a_broken_configuration_is_named_in_one_line(data: Data, text: str, said: str) -> None:
    split = data("D") / "validation"
    file = split / ".hydra" / "merged_config.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=said) as caught:
        read_configuration(split)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"merged_config.yaml is missing; it is the only needed file"):
        read_configuration(split)


def test_what_calvin_env_trips_over_is_reported_in_one_line(
    make: Any, data: Data, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = data("D")
    file = folder / "validation" / ".hydra" / "merged_config.yaml"
    file.write_text(file.read_text().replace("filename: panda.urdf", "other: 1"))
    with pytest.raises(ValueError, match=r"merged_config.yaml: calvin_env cannot build this environment") as caught:
        make(folder)
    assert "\n" not in str(caught.value)
    capfd.readouterr()
    file.write_text(file.read_text().replace("other: 1", "filename: panda.urdf"))
    make(folder)  # `caught` still holds the error: the partially built environment is closed nonetheless
    del caught
    gc.collect()
    assert capfd.readouterr() == ("", ""), "the partially built environment was deleted later"

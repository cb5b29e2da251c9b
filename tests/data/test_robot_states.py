"""The robot's state of LeRobot and Bridge data: kept in each frame, declared by names or options, trained with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="LeRobot data needs pyarrow: pip install -r requirements-lerobot.txt")
pytest.importorskip("av", reason="LeRobot data needs PyAV: pip install -r requirements-lerobot.txt")
import pyarrow as pa
import pyarrow.parquet as parquet

from common.constants import CALVIN_STATE
from preprocess_data.formats.bridge import STATE as BRIDGE
from preprocess_data.formats.lerobot import INFO, LerobotData
from preprocess_data.formats.lerobot_names import columns_by_name, state_declaration
from preprocess_data.jobs.convert import Units
from preprocess_data.process_lerobot import Settings, actions_of
from tests.data import test_lerobot, test_process_bridge
from tests.data.bridge_files import example, raw_trajectory, rlds_episode, rlds_files, states_of
from tests.data.builders import frame_arrays, raw_split
from tests.data.test_lerobot import HAND, STATIC, WINDOWS, export, v21
from training.data.dataset_spec import read_contract, state_convention
from training.data.episode_index import read_index

POSE = ["x", "y", "z", "roll", "pitch", "yaw"]
GROUPS = ("--state-groups", "position=0,1,2", "rotation=3,4,5", "gripper=7")


def lerobot(source: Path, output: Path, *options: str) -> int:
    return test_lerobot.process(source, output, *options)


def declare(source: Path, names: Any, robot: str = "") -> Path:
    """Name the numbers of a data set's state."""
    info = json.loads((source / INFO).read_text())
    info["features"]["observation.state"]["names"] = names
    info["robot_type"] = robot
    (source / INFO).write_text(json.dumps(info))
    return source


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "groups", "rotation"),
    [
        ([*POSE, "gripper"], BRIDGE["groups"], "euler_xyz"),
        (["gripper.pos", "ee.x", "ee.y", "ee.z"], {"position": [1, 2, 3], "gripper": [0]}, "euler_xyz"),
        (["x", "y", "z", "rx", "ry", "rz"], {"position": [0, 1, 2], "rotation": [3, 4, 5]}, "euler_xyz"),
        (
            ["eef_x", "eef_y", "eef_z", "qx", "qy", "qz", "qw", "finger_1", "finger_2"],
            {"position": [0, 1, 2], "rotation": [3, 4, 5, 6], "gripper": [7, 8]},
            "quaternion",
        ),
        (
            ["x", "y", "z", "axis_angle1", "axis_angle2", "axis_angle3"],
            {"position": [0, 1, 2], "rotation": [3, 4, 5]},
            "axis_angle",
        ),
        (
            [f"{arm}_{name}" for arm in ("left", "right") for name in (*POSE, "gripper")],
            {"position": [0, 1, 2, 7, 8, 9], "rotation": [3, 4, 5, 10, 11, 12], "gripper": [6, 13]},
            "euler_xyz",
        ),
        (["x", "y", "z", "x_velocity", "y_velocity", "z_velocity"], {"position": [0, 1, 2]}, "euler_xyz"),
        (["shoulder_pan.pos", "elbow_flex.pos", "gripper.pos"], {}, None),
        (["joint_1", "joint_2", "joint_3", "x", "y"], {}, None),
        (None, {}, None),
    ],
)
def test_names_declare_the_groups_of_a_state(names, groups, rotation):
    declared = state_declaration({"names": names, "shape": [3]}, len(names or [0] * 7))
    assert declared["groups"] == groups
    assert declared.get("rotation") == rotation


def test_unnamed_states_are_calvins_only_in_an_export_of_calvin():
    assert state_declaration({"names": None}, 15, "panda (CALVIN)") == CALVIN_STATE
    assert state_declaration({"names": None}, 15, "panda")["groups"] == {}
    assert state_declaration({"names": None}, 14, "panda (CALVIN)")["groups"] == {}


def test_a_pose_beside_joints_is_found_by_its_names():
    feature = {"names": [*(f"joint_{number}" for number in range(7)), *POSE], "shape": [13]}
    assert columns_by_name(feature, tuple(POSE), "state") == list(range(7, 13))
    with pytest.raises(ValueError, match="holds joints by its names"):
        columns_by_name({"names": ["joint_1", "x", "y"], "shape": [3]}, tuple(POSE), "state")


# --- LeRobot ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["exported", "older"])
def test_calvins_state_is_exported_and_restored(tmp_path: Path, names: str) -> None:
    raw = raw_split(tmp_path / "raw" / "training", [*range(8, 20), *range(40, 44)], WINDOWS)
    assert export(raw, tmp_path / "lerobot", "--pictures", "png") == 0
    if names == "older":  # exports of older versions did not name them
        declare(tmp_path / "lerobot", None, "panda (CALVIN)")
    assert lerobot(tmp_path / "lerobot", tmp_path / "back", "--camera", STATIC, "--second-camera", HAND) == 0
    states, contract = read_index(tmp_path / "back").states, read_contract(tmp_path / "back")
    expected = [frame_arrays(frame)["robot_obs"] for start, end in WINDOWS for frame in range(start, end + 1)]
    assert states is not None
    np.testing.assert_array_equal(states[0 : len(states)], np.float32(expected))
    assert contract.state == CALVIN_STATE
    statistics = contract.state_statistics
    assert statistics is not None
    np.testing.assert_allclose(statistics.mean, np.float32(expected).mean(axis=0), rtol=1e-5, atol=1e-6)


def test_named_numbers_are_exported_with_the_poses_that_absolute_actions_need(tmp_path: Path) -> None:
    raw = raw_split(tmp_path / "raw" / "training", [*range(8, 20), *range(40, 44)], WINDOWS)
    assert export(raw, tmp_path / "lerobot", "--pictures", "png") == 0
    data = LerobotData(tmp_path / "lerobot")
    settings = Settings(tmp_path, (STATIC,), Units(0.02, 0.05, 0.0), absolute=True, action_key="calvin.absolute_action")
    relative, _, _ = actions_of(data, data.episodes[0], settings)
    np.testing.assert_allclose(relative[0], frame_arrays(WINDOWS[0][0])["rel_actions"], atol=1e-4)


def test_an_unnamed_state_is_declared_by_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = v21(tmp_path / "v21")
    assert lerobot(source, tmp_path / "without") == 0
    assert "whose meaning is not declared (proprioception=pose needs --state-groups)" in capsys.readouterr().out
    with pytest.raises(ValueError, match="names no position, rotation or gripper among the 8 numbers"):
        state_convention(read_contract(tmp_path / "without"), tmp_path / "without")
    assert lerobot(source, tmp_path / "with", *GROUPS) == 0
    assert "position [0, 1, 2], rotation [3, 4, 5], gripper [7] of the 8 numbers" in capsys.readouterr().out
    convention = state_convention(read_contract(tmp_path / "with"), tmp_path / "with")
    assert (convention.dim, convention.features) == (8, 3 + 6 + 1)
    states = read_index(tmp_path / "with").states
    assert states is not None
    np.testing.assert_allclose(states[1], [0.1] * 6 + [0, 0], rtol=1e-6)


def test_a_state_can_be_left_out_or_be_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = v21(tmp_path / "v21")
    assert lerobot(source, tmp_path / "none", "--state-key", "none") == 0
    info = json.loads((source / INFO).read_text())
    del info["features"]["observation.state"]
    (source / INFO).write_text(json.dumps(info))
    assert lerobot(source, tmp_path / "missing") == 0
    for name in ("none", "missing"):
        assert read_index(tmp_path / name).states is None
        assert read_contract(tmp_path / name).state is None
        with pytest.raises(ValueError, match="proprioception=pose reads the robot's state"):
            state_convention(read_contract(tmp_path / name), tmp_path / name)
    assert "its state: none" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--state-key", "observation.pose"), "--state-key observation.pose: "),
        (("--state-groups", "position=0,1,8"), "--state-groups: state.groups must hold different indices from 0 to 7"),
        (("--state-groups", "position"), "--state-groups position: give a group and its indices"),
        (("--state-groups", "hand=1"), "--state-groups: unknown state.groups.hand"),
        (("--state-key", "none", *GROUPS), "--state-groups: no state is read"),
        (("--state-key", "none", "--actions", "absolute"), "--state-key none: --actions absolute computes"),
    ],
)
def test_a_wrong_option_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    assert lerobot(v21(tmp_path / "v21"), tmp_path / "out", *options) != 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("process_lerobot")]
    assert words in line
    assert not (tmp_path / "out" / "dataset_info.json").exists()


def rewrite(source: Path, episode: int, change: Any) -> None:
    """Change the states of an episode's table."""
    path = source / "data" / "chunk-000" / f"episode_{episode:06d}.parquet"
    table = parquet.read_table(path)
    states = [change(state) for state in table["observation.state"].to_pylist()]
    column = table.schema.get_field_index("observation.state")
    kind = pa.list_(pa.float32())
    parquet.write_table(table.set_column(column, pa.field("observation.state", kind), pa.array(states, kind)), path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda state: [*state[:3], 90.0, *state[4:]],
            "an angle of 90 in frame 0 of episode 1, which is in degrees",
        ),
        (lambda state: state[:6], "observation.state has 6 numbers in episode 1, but 8 in the first one"),
        (lambda state: [float("nan"), *state[1:]], "must be 1 finite numbers a frame"),
    ],
)
def test_a_state_that_cannot_be_one_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, words: str
) -> None:
    source = v21(tmp_path / "v21")
    rewrite(source, 1, change)
    assert lerobot(source, tmp_path / "out", *GROUPS) != 0
    assert words in capsys.readouterr().err
    assert lerobot(source, tmp_path / "out", "--state-key", "none") == 0


def test_a_state_whose_names_are_joints_is_kept_and_not_declared(tmp_path: Path) -> None:
    source = declare(v21(tmp_path / "v21"), [f"joint_{number}" for number in range(7)] + ["gripper"])
    assert lerobot(source, tmp_path / "out") == 0
    contract = read_contract(tmp_path / "out")
    assert contract.state is not None
    assert (contract.state["dim"], contract.state["groups"]) == (8, {})
    content = json.loads((tmp_path / "out" / "dataset_contract.json").read_text())
    content["state"] |= {"groups": {"rotation": list(range(7)), "gripper": [7]}, "rotation": "joint_angles"}
    (tmp_path / "out" / "dataset_contract.json").write_text(json.dumps(content))
    convention = state_convention(read_contract(tmp_path / "out"), tmp_path / "out")
    assert convention.features == 8, "as they are, without sines"


def test_the_data_set_is_read_once_more_with_other_groups(tmp_path: Path) -> None:
    source = v21(tmp_path / "v21")
    assert lerobot(source, tmp_path / "out") == 0
    assert lerobot(source, tmp_path / "out", *GROUPS) == 0
    state = read_contract(tmp_path / "out").state
    assert state is not None
    assert state["groups"] == {"position": [0, 1, 2], "rotation": [3, 4, 5], "gripper": [7]}
    assert LerobotData(source).features["observation.state"]["names"] is None


# --- BridgeData -------------------------------------------------------------------------------------------------------


def test_bridges_states_are_kept_and_declared(tmp_path: Path) -> None:
    for number in range(3):
        raw_trajectory(tmp_path / "raw" / f"traj{number}", number, 4 + number)
    contents = [example(rlds_episode(seed, 4 + seed)) for seed in range(3)]
    rlds = rlds_files(tmp_path / "bridge_dataset" / "1.0.0", [contents])
    expected = np.concatenate([states_of(seed, 4 + seed) for seed in range(3)]).astype(np.float32)
    for source, output in ((tmp_path / "raw", tmp_path / "a"), (rlds, tmp_path / "b")):
        assert test_process_bridge.process(source, output) == 0
        states, contract = read_index(output).states, read_contract(output)
        assert states is not None
        np.testing.assert_array_equal(states[0 : len(states)], expected)
        assert contract.state == BRIDGE
        convention = state_convention(contract, output)
        np.testing.assert_allclose(convention.mean, expected[:, :3].mean(axis=0), rtol=1e-5)
        assert convention.features == 10

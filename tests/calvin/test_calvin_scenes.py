"""Geometry of robot descriptions, a lagging arm's target, options of recordings in the real CALVIN: no simulator."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from policy_rollout.calvin.installation import package_folder
from policy_rollout.calvin.scene_state import CALVIN_REGIONS
from policy_rollout.calvin.scenes.configuration import compose_configuration
from policy_rollout.calvin.scenes.geometry import read_box, read_links, read_parts
from policy_rollout.desk.experts.evaluate import Episode, Records, main
from policy_rollout.desk.experts.motion import ARM_GAIN, ArmTarget, DeskState, Move, Noise
from policy_rollout.desk.experts.policy import QUIET
from policy_rollout.desk.experts.worlds import make_env, regions_of
from policy_rollout.desk.layout import SCENES, layout_of
from preprocess_data import make_desk_demos
from preprocess_data.desk_demos.play import Settings

URDF = """<robot name="table">
  <link name="base"><collision><geometry><box size="2 1 0.5"/></geometry></collision></link>
  <link name="drawer">
    <collision><origin xyz="0 0 0.1"/><geometry><mesh filename="{mesh}"/></geometry></collision>
  </link>
  <joint name="slide" type="prismatic">
    <parent link="base"/><child link="drawer"/><origin xyz="1 2 3" rpy="1.5707963267948966 0 0"/>
    <axis xyz="0 0 1"/><limit lower="0" upper="0.5"/>
  </joint>
</robot>
"""
MESH = "o floor\nv 0 0 0\nv 1 0 0\no bar\nv 0 2 0\nv 0 2 1\nv 0 3 1\nf 1 2 3\n"


@pytest.fixture
def urdf(tmp_path: Path) -> Path:
    (tmp_path / "meshes").mkdir()
    (tmp_path / "meshes" / "drawer.obj").write_text(MESH)
    file = tmp_path / "table.urdf"
    file.write_text(URDF.format(mesh="meshes/drawer.obj"))
    return file


def test_links_are_read_in_the_frame_of_the_body_and_enlarged(urdf: Path) -> None:
    links = read_links(urdf, urdf.parent, scale=2.0)
    drawer = links["drawer"]
    np.testing.assert_allclose(drawer.origin, (2, 4, 6))
    np.testing.assert_allclose(drawer.axis, (0, -1, 0), atol=1e-12)  # its z axis, turned about x by 90 degrees
    assert drawer.travel == 1.0
    assert [len(part) for part in drawer.parts] == [2, 3]
    np.testing.assert_allclose(drawer.parts[0][0], 2 * np.array([1, 2 - 0.1, 3]), atol=1e-12)
    np.testing.assert_allclose(drawer.local(drawer.points)[-1], 2 * np.array([0, 3, 1.1]), atol=1e-12)
    np.testing.assert_allclose(links["base"].points.max(0), (2, 1, 0.5))


def test_an_stl_file_has_the_vertices_of_its_triangles(tmp_path: Path) -> None:
    triangle = np.zeros(1, np.dtype([("n", "<f4", 3), ("v", "<f4", (3, 3)), ("a", "<u2")]))
    triangle["v"] = np.arange(9).reshape(3, 3)
    file = tmp_path / "button.STL"
    file.write_bytes(bytes(80) + np.uint32(1).tobytes() + triangle.tobytes())
    (part,) = read_parts(file)
    np.testing.assert_array_equal(part, np.arange(9).reshape(3, 3))
    file.write_bytes(bytes(10))
    with pytest.raises(ValueError, match=r"button\.STL cannot be read"):
        read_parts(file)


def test_what_is_no_description_or_no_block_is_an_error_that_names_the_file(urdf: Path) -> None:
    box = '<link name="{}"><collision><geometry><box size="1 2 3"/></geometry></collision></link>'
    urdf.write_text(f'<robot name="one">{box.format("a")}</robot>', encoding="utf-8")
    assert read_box(urdf, 0.5) == (0.5, 1.0, 1.5)
    urdf.write_text(f'<robot name="two">{box.format("a")}{box.format("b")}</robot>', encoding="utf-8")
    with pytest.raises(ValueError, match=r"table\.urdf has 2 collision boxes; a block has one"):
        read_box(urdf)
    urdf.write_text("<robot", encoding="utf-8")
    with pytest.raises(ValueError, match=r"table\.urdf cannot be read"):
        read_links(urdf, urdf.parent)


# ---- the target of an arm ----


def _state(tcp: np.ndarray) -> DeskState:
    robot = np.array([*tcp, math.pi, 0, 0, 0.08, *np.zeros(7), 1.0])
    return DeskState.of({"robot_obs": robot, "scene_obs": np.zeros(24)}, layout_of("D"))


def _run(steps: int, error: float = 0.0, wall: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Move an arm that covers half of the distance to its target in a step to x = 0.2; return x and target x."""
    arm, tcp, target = ArmTarget(0.5), np.zeros(3), np.zeros(3)
    move = Move(np.array([0.2, 0.0, 0.0]), 1.0, np.array([math.pi, 0.0, 0.0]))
    xs, targets = [], []
    for _ in range(steps):
        state = _state(tcp)
        action = arm.lead(move.action(state, np.array([math.pi, 0.0, 0.0]), ARM_GAIN), state)
        arm.follow(action)
        assert np.abs(action[:6]).max() <= 1.0
        target = target + action[:3] * 0.02
        tcp = tcp + 0.5 * (target - (error, 0, 0) - tcp)
        tcp[0] = min(tcp[0], wall)
        xs.append(tcp[0])
        targets.append(target[0])
    return np.array(xs), np.array(targets)


def test_a_lagging_arm_arrives_without_overshoot() -> None:
    xs, _ = _run(40)
    assert xs.max() < 0.2 + 1e-3
    assert abs(xs[20] - 0.2) < 0.002


def test_an_arm_with_a_constant_error_arrives_too() -> None:
    assert abs(_run(60, error=0.008)[0][-1] - 0.2) < 0.001


def test_against_an_obstacle_the_target_stays_near_the_hand() -> None:
    xs, targets = _run(80, wall=0.1)
    assert xs[-1] == 0.1
    assert targets.max() < 0.1 + 0.02 / 0.5 + 0.02 + 1e-9


# ---- both worlds ----


@pytest.mark.parametrize("scene", SCENES)
def test_the_regions_of_the_desk_are_those_of_calvin(scene: str) -> None:
    assert regions_of(layout_of(scene)) == CALVIN_REGIONS


def test_settings_of_a_desk_recording_are_those_of_earlier_versions() -> None:
    assert "environment" not in Settings(episodes=1).as_dict()
    assert Settings(episodes=1, environment="calvin").as_dict()["environment"] == "calvin"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--environment=desk", "--renderer=tiny"], "--renderer is tiny; the desk has raycast, gl"),
        (["--environment=calvin", "--renderer=raycast"], "--renderer is raycast; calvin has egl, tiny"),
        (["--environment=calvin", "--camera-jitter=1"], "--camera-jitter: CALVIN's simulator has none"),
    ],
)
def test_options_of_the_other_world_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert make_desk_demos.main(["--out", str(tmp_path / "out"), "--episodes=1", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(package_folder() is not None, reason="calvin_env is installed")
def test_without_the_simulator_one_line_names_the_installation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make_desk_demos.main(["--out", str(tmp_path / "out"), "--episodes=1", "--environment=calvin"]) == 2
    assert "bash scripts/install_calvin_env.sh" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--environment", "calvin", "--table"])
    assert "bash scripts/install_calvin_env.sh" in capsys.readouterr().err


def test_unknown_worlds_and_scenes_are_refused() -> None:
    with pytest.raises(ValueError, match="allowed are desk, calvin"):
        make_env("libero", "D")
    with pytest.raises(ValueError, match="CALVIN has the scenes A, B, C, D"):
        compose_configuration("E")


def test_records_resume_and_do_not_mix(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    records = Records(file, "calvin", QUIET)
    records.add([Episode("open_drawer", "D", seed, True, 20, 0, 0.1) for seed in (0, 1)])
    again = Records(file, "calvin", QUIET)
    assert again.missing("D", "open_drawer", range(4)) == (2, 3)
    assert again.of("D", "open_drawer", range(2)) == records.of("D", "open_drawer", range(2))
    again.add([Episode("open_drawer", "D", seed, True, 20, 0, 0.1) for seed in (7, 2)])
    assert [episode.seed for episode in again.all(["D"], ["open_drawer"])] == [0, 1, 2, 7]
    assert again.all(["A"], ["open_drawer"]) == []
    for environment, noise in (("desk", QUIET), ("calvin", Noise(sigma=0.1))):
        with pytest.raises(ValueError, match="give another file"):
            Records(file, environment, noise)

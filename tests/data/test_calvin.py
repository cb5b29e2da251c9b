"""Raw CALVIN splits, as released and as found in the wild."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.builders import (
    annotation_content,
    frame_arrays,
    opened_files,
    raw_split,
    write_annotations,
    write_frame,
)
from training.data.calvin import Annotation, CalvinSplit, relative_action


@pytest.mark.parametrize("digits", [5, 7])
def test_frames_are_found_by_their_id_with_five_or_seven_digits(tmp_path: Path, digits: int) -> None:
    split = CalvinSplit(raw_split(tmp_path / "training", [3, 4, 120], digits=digits))
    assert split.frame_ids.tolist() == [3, 4, 120]
    assert split.frame_path(120).is_file()
    assert not split.frame_path(5).is_file()
    frame = split.frame(120, ["rgb_gripper", "robot_obs"])
    assert list(frame) == ["rgb_gripper", "robot_obs"]
    np.testing.assert_array_equal(frame["rgb_gripper"], frame_arrays(120)["rgb_gripper"])


def test_relative_actions_that_were_not_recorded_are_computed_from_one_open_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = CalvinSplit(raw_split(tmp_path / "training", [0], without=["rel_actions"]))
    with opened_files(monkeypatch) as names:
        frame = split.frame(0, ["rel_actions"])
    assert list(frame) == ["rel_actions"]
    assert names == ["episode_0000000.npz"]
    np.testing.assert_allclose(frame["rel_actions"], frame_arrays(0)["rel_actions"], atol=1e-9)


def test_a_relative_action_is_clipped_and_its_rotation_takes_the_short_way_round() -> None:
    robot_obs = np.zeros(15)
    robot_obs[3:6] = [3.14, -3.14, 0.0]
    action = np.array([0.01, -1.0, 0.02, -3.13, 3.13, 0.025, -1.0])
    expected = [0.5, -1.0, 1.0, (2 * np.pi - 6.27) / 0.05, -(2 * np.pi - 6.27) / 0.05, 0.5, -1.0]
    np.testing.assert_allclose(relative_action(action, robot_obs), expected, atol=1e-9)


def test_annotations_may_be_nested_lists_without_tasks_and_may_overlap(tmp_path: Path) -> None:
    content = annotation_content([(0, 3), (2, 4)])
    content["language"]["ann"] = [["open the drawer"], np.array(["close it"])]
    del content["language"]["task"]
    split = raw_split(tmp_path / "training", range(5))
    write_annotations(split, content)
    assert CalvinSplit(split).annotations == (
        Annotation(0, 3, "open the drawer", None),
        Annotation(2, 4, "close it", None),
    )


def test_the_last_frame_of_a_window_belongs_to_it() -> None:
    assert list(Annotation(4, 6, "x", None).frames) == [4, 5, 6]


def changed_annotations(**changes: Any) -> dict[str, Any]:
    content = annotation_content([(0, 3), (2, 4)])
    for key, value in changes.items():
        group = "info" if key == "indx" else "language"
        content[group][key] = value
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"other": 1}, "lacks language.ann"),
        ([{"language": 1}, 2], "lacks language.ann"),
        (changed_annotations(ann=["one"]), "1 sentences for 2 windows"),
        (changed_annotations(task=["one"]), "1 task names for 2 windows"),
        (changed_annotations(ann=["one", 2]), "annotation 1 has no sentence"),
        (changed_annotations(ann=["one", " "]), "annotation 1 has no sentence"),
        (changed_annotations(indx=[(0, 3), (4, 2)]), r"annotation 1 has the window \(4, 2\)"),
        (changed_annotations(indx=[(0, 3), (-1, 2)]), r"annotation 1 has the window"),
        (changed_annotations(indx=[(0, 3), (1, 2, 3)]), "annotation 1 has no window"),
        (changed_annotations(indx=[(0, 3), "ab"]), "annotation 1 has no window"),
    ],
)
def test_wrong_annotations_are_refused_with_their_number(tmp_path: Path, content: Any, message: str) -> None:
    split = raw_split(tmp_path / "training", [0])
    write_annotations(split, content)
    with pytest.raises(ValueError, match=rf"auto_lang_ann\.npy.*{message}"):
        _ = CalvinSplit(split).annotations


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rgb_static": np.zeros((4, 4), dtype=np.uint8)}, "rgb_static must be uint8"),
        ({"rgb_static": np.zeros((4, 4, 3))}, "rgb_static must be uint8"),
        ({"rel_actions": np.zeros(6)}, r"rel_actions must be floats \(7,\)"),
        ({"rel_actions": np.zeros(7, dtype=int)}, "rel_actions must be floats"),
        ({"rel_actions": np.full(7, np.nan)}, "rel_actions holds a number that is not finite"),
    ],
)
def test_a_frame_with_wrong_arrays_is_named(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    split = raw_split(tmp_path / "training", [0])
    write_frame(split / "episode_0000000.npz", 0, **changed)
    with pytest.raises(ValueError, match=rf"episode_0000000\.npz: {message}"):
        CalvinSplit(split).frame(0, ["rgb_static", "rel_actions"])


def test_a_folder_that_is_no_split_and_a_frame_that_is_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is not a directory"):
        CalvinSplit(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no episode"):
        _ = CalvinSplit(tmp_path / "empty").frame_ids
    split = CalvinSplit(raw_split(tmp_path / "training", [0]))
    with pytest.raises(FileNotFoundError, match=r"episode_0000009\.npz"):
        split.frame(9, ["actions"])
    with pytest.raises(FileNotFoundError, match=r"auto_lang_ann\.npy"):
        _ = split.annotations
    with pytest.raises(FileNotFoundError, match=r"ep_start_end_ids\.npy"):
        _ = split.ranges
    np.save(split.path / "ep_start_end_ids.npy", np.array([[5, 2]]))
    with pytest.raises(ValueError, match=r"ep_start_end_ids\.npy must be integers"):
        _ = split.ranges


@pytest.fixture(scope="module")
def real_split() -> CalvinSplit:
    """A few episodes recorded with the real simulator."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "calvin"
    folder = Path(os.environ.get("BLOCKDIFF_CALVIN_DIR", beside)) / "mini_D_D" / "training"
    if not folder.is_dir():
        pytest.skip(f"no real CALVIN recording: set BLOCKDIFF_CALVIN_DIR (looked for {folder})")
    return CalvinSplit(folder)


def test_a_real_recording_is_read(real_split: CalvinSplit) -> None:
    assert len(real_split.annotations) == len(real_split.ranges)
    for annotation in real_split.annotations:
        assert all(real_split.frame_path(frame).is_file() for frame in annotation.frames)
        assert annotation.task
    frame = real_split.frame(real_split.annotations[0].start, ["rgb_static", "rgb_gripper", "scene_obs"])
    assert frame["rgb_static"].shape == (200, 200, 3)
    assert frame["rgb_gripper"].shape == (84, 84, 3)


def test_the_simulator_records_the_relative_actions_that_we_compute(real_split: CalvinSplit) -> None:
    for index in real_split.frame_ids[::7]:
        frame = real_split.frame(int(index), ["actions", "rel_actions", "robot_obs"])
        np.testing.assert_array_equal(relative_action(frame["actions"], frame["robot_obs"]), frame["rel_actions"])

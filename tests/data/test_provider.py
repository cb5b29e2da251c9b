"""DataProvider: the right files, opened once, and one sentence for a bad one."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models.processing.image import fit
from tests.data.builders import edit_index, frame_arrays, opened_files, processed_split, write_frame
from training import future_view_prediction_w_action_dataset as module
from training.data.batch import collate_robot
from training.future_view_prediction_w_action_dataset import DataProvider


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return processed_split(tmp_path / "split", [5, 1, 12])


def test_a_sample_is_the_frame_the_one_t_steps_on_and_the_actions_between(root: Path) -> None:
    provider = DataProvider(root, act_step=3, resolution=16, num_view=2)
    assert len(provider) == 18
    sample = provider[6]  # first of the last episode
    expected = [fit(frame_arrays(n)[camera], 16) for n in (6, 9) for camera in ("rgb_static", "rgb_gripper")]
    views = torch.stack([*sample.views, *sample.future_views])
    np.testing.assert_array_equal(views.numpy(), np.stack(expected))
    assert sample.views.dtype == torch.uint8
    assert sample.views.shape == (2, 3, 16, 16)
    assert sample.instruction == "do thing 2"
    assert sample.actions[:, 0].tolist() == [6.5, 7.5, 8.5]
    assert sample.actions.dtype == torch.float32
    assert sample.action_is_pad.tolist() == [False] * 3
    assert sample.index == 6


def test_a_batch_of_images_is_that_of_its_samples_and_reads_a_frame_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = DataProvider(root, act_step=3, resolution=16, num_view=2)
    indices = [6, 9, 4, 5, 6]  # 9 is three steps after 6; 4 and 5 are ends of episodes
    collated = collate_robot([provider[index] for index in indices])
    with opened_files(monkeypatch) as names:
        batch = provider.batch(indices)
    assert sorted(names) == [f"frame_{number}.npz" for number in (12, 4, 5, 6, 9)]
    assert batch.instructions == collated.instructions
    for name in ("views", "future_views", "actions", "action_is_pad", "indices"):
        ours, theirs = getattr(batch, name), getattr(collated, name)
        assert torch.equal(ours, theirs), name
        assert ours.dtype == theirs.dtype


def test_at_an_episode_end_the_future_stays_and_the_hand_rests(root: Path) -> None:
    provider = DataProvider(root, act_step=3, resolution=16, num_view=1)
    sample = provider[3]  # one before the end of the first episode
    np.testing.assert_array_equal(sample.future_views[0].numpy(), fit(frame_arrays(4)["rgb_static"], 16))
    assert sample.actions[:, 0].tolist() == [3.5, 0.0, 0.0]
    assert sample.actions[:, 6].tolist() == [-1.0, -1.0, -1.0]
    assert sample.action_is_pad.tolist() == [False, True, True]


def test_each_file_is_opened_once_and_only_for_cameras_in_use(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (0, 3):
        write_frame(root / f"frame_{number}.npz", number, without=["rgb_gripper"])
    provider = DataProvider(root, act_step=3, resolution=16, num_view=1)
    with opened_files(monkeypatch) as names:
        provider[0]
        provider[5]  # the only frame of its episode: now and future are one file
    assert names == ["frame_0.npz", "frame_3.npz", "frame_5.npz"]
    with pytest.raises(ValueError, match=r"frame_0\.npz lacks 'rgb_gripper'"):
        DataProvider(root, act_step=3, resolution=16, num_view=2)


def test_frames_may_be_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = processed_split(tmp_path / "panda", [3], suffix=".png")
    one = DataProvider(root, act_step=2, resolution=16, num_view=1)[0]
    np.testing.assert_array_equal(one.views[0].numpy(), fit(frame_arrays(0)["rgb_static"], 16))
    with pytest.raises(ValueError, match="add 'gripper_dir' to each frame"):
        DataProvider(root, act_step=2, resolution=16, num_view=2)

    def one_camera_for_both(episodes: Any) -> None:
        for frame in episodes[0]["frames"]:
            frame["gripper_dir"] = frame["dir"]

    edit_index(root, one_camera_for_both)
    provider = DataProvider(root, act_step=2, resolution=16, num_view=2)
    with opened_files(monkeypatch) as names:
        both = provider[2]
    assert torch.equal(both.views[0], both.views[1])
    assert len(names) <= 1  # PIL opens by its own means; never more than one

    def other_camera(episodes: Any) -> None:
        for frame in episodes[0]["frames"]:
            frame["gripper_dir"] = "hand.png"

    Image.fromarray(frame_arrays(7)["rgb_gripper"]).save(root / "hand.png")
    edit_index(root, other_camera)
    two = DataProvider(root, act_step=2, resolution=16, num_view=2)[0]
    np.testing.assert_array_equal(two.views[1].numpy(), fit(frame_arrays(7)["rgb_gripper"], 16))


@pytest.mark.parametrize(
    "changed",
    [
        {"rgb_static": np.zeros((16, 16), dtype=np.uint8)},
        {"rgb_static": np.zeros((16, 16, 3), dtype=np.float32)},
        {"rgb_static": np.zeros((0, 16, 3), dtype=np.uint8)},
        {"rgb_static": np.zeros((16, 16, 4), dtype=np.uint8)},
    ],
)
def test_a_frame_whose_image_has_the_wrong_shape_is_named(root: Path, changed: dict[str, Any]) -> None:
    provider = DataProvider(root, act_step=3, resolution=16, num_view=1)
    write_frame(root / "frame_2.npz", 2, **changed)
    with pytest.raises(ValueError, match=r"frame_2\.npz: rgb_static must be uint8 \[height, width, 3\], found"):
        provider[2]


def test_bad_files_met_in_training_are_named(root: Path) -> None:
    provider = DataProvider(root, act_step=3, resolution=16, num_view=1)
    (root / "frame_2.npz").write_bytes((root / "frame_2.npz").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"frame_2\.npz cannot be read"):
        provider[2]
    (root / "frame_2.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"frame_2\.npz does not exist"):
        provider[2]
    with pytest.raises(IndexError):
        provider[18]
    with pytest.raises(IndexError):
        provider[-1]


def test_images_that_do_not_decode_and_unknown_kinds_are_named(tmp_path: Path) -> None:
    root = processed_split(tmp_path / "panda", [3], suffix=".png")
    provider = DataProvider(root, act_step=1, resolution=16, num_view=1)
    (root / "frame_1.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"frame_1\.png cannot be decoded"):
        provider[1]
    (root / "frame_0.txt").write_text("")

    def text_file(episodes: Any) -> None:
        episodes[0]["frames"][0]["dir"] = "frame_0.txt"

    edit_index(root, text_file)
    with pytest.raises(ValueError, match=r"frame_0\.txt is neither an \.npz nor an image"):
        DataProvider(root, act_step=1, resolution=16, num_view=1)


def test_impossible_settings_are_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="act_step must be at least 1"):
        DataProvider(root, act_step=0, resolution=16, num_view=1)
    with pytest.raises(ValueError, match="num_view must be 1"):
        DataProvider(root, act_step=1, resolution=16, num_view=3)


def test_the_name_of_a_folder_means_nothing(tmp_path: Path) -> None:
    """(The original looked for "processed", "calvin", "bridge" and "real_panda" in the path.)"""
    for name in ("calvin_bridge", "real_panda", "x"):
        assert len(DataProvider(processed_split(tmp_path / name, [2]), 1, 16, 1)) == 2


def test_the_example_for_ones_own_robot_works_as_printed(tmp_path: Path) -> None:
    text = module.__doc__ or ""
    start = text.index("    class MyRobot")
    example = textwrap.dedent(text[start : text.index("Name it in")])
    assert len(example.strip().splitlines()) <= 30
    namespace = dict(vars(module))
    exec(example, namespace)
    theirs = DataProvider(processed_split(tmp_path / "split", [5, 3]), act_step=3, resolution=16, num_view=1)
    for episode, frames in enumerate((range(5), range(5, 8))):
        folder = tmp_path / "own" / str(episode)
        folder.mkdir(parents=True)
        np.save(folder / "frames.npy", np.stack([frame_arrays(number)["rgb_static"] for number in frames]))
        np.save(folder / "actions.npy", theirs.data.actions[frames.start : frames.stop])
        (folder / "instruction.txt").write_text(f"do thing {episode}\n")
    own = namespace["MyRobot"](tmp_path / "own", act_step=3, resolution=16)
    assert len(own) == len(theirs)
    for ours, expected in zip((own[i] for i in range(8)), (theirs[i] for i in range(8)), strict=True):
        assert torch.equal(ours.views, expected.views)
        assert torch.equal(ours.future_views, expected.future_views)
        assert torch.equal(ours.actions, expected.actions)
        assert torch.equal(ours.action_is_pad, expected.action_is_pad)
        assert (ours.instruction, ours.index) == (expected.instruction, expected.index)

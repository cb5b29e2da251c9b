"""Raw split -> processed split, by the commands as users type them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preprocess_data import process_calvin
from scripts import prepare_calvin_debug_processed
from tests.data.builders import frame_arrays, raw_split, write_frame
from training.data.calvin import CalvinSplit
from training.data.episode_index import read_index
from training.future_view_prediction_w_action_dataset import DataProvider

REPOSITORY = Path(__file__).resolve().parents[2]
WINDOWS = [(10, 14), (12, 17), (40, 41)]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return raw_split(tmp_path / "raw" / "training", [*range(10, 18), 40, 41, 42], WINDOWS)


def process(raw: Path, output: Path, *options: str) -> int:
    return process_calvin.main(["--source-split-dir", str(raw), "--output-dir", str(output), *options])


def typed(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(REPOSITORY / script), *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_every_annotation_becomes_an_episode_with_both_ends_included(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "data" / "processed"
    assert process(raw, output) == 0
    assert "3 episodes, 13 frames (10 files), 3 different instructions" in capsys.readouterr().out
    index = read_index(output)
    assert np.diff(index.starts).tolist() == [5, 6, 2]
    assert [index.instruction(e) for e in range(3)] == ["sentence 0", "sentence 1", "sentence 2"]
    assert [index.task(e) for e in range(3)] == ["task_0", "task_1", "task_0"]
    flat = [frame for start, end in WINDOWS for frame in range(start, end + 1)]
    for place, frame in enumerate(flat):
        assert index.frame_path(place).resolve() == (raw / f"episode_{frame:07d}.npz").resolve()
        np.testing.assert_array_equal(index.actions[place], frame_arrays(frame)["rel_actions"].astype(np.float32))
    record = json.loads((output / "dataset_info.json").read_text())[1]["frames"][0]
    assert set(record) == {"dir", "rel_action", "abs_action", "state"}
    np.testing.assert_array_equal(np.float32(record["abs_action"]), frame_arrays(12)["actions"].astype(np.float32))


@pytest.mark.parametrize("options", [(), ("--absolute",), ("--copy-frames",)])
def test_each_way_to_name_frames_is_trained_on_and_survives_the_move_it_promises(
    raw: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    output = tmp_path / "raw" / "processed"
    assert process(raw, output, *options) == 0
    before = DataProvider(output, 3, 16, 2)[6]
    if "--copy-frames" in options:
        shutil.rmtree(raw)
        output = output.rename(tmp_path / "alone")
    elif "--absolute" in options:
        output = output.rename(tmp_path / "alone")
    else:
        (tmp_path / "raw").rename(tmp_path / "both_together")
        output = tmp_path / "both_together" / "processed"
    after = DataProvider(output, 3, 16, 2)[6]
    assert (before.views == after.views).all()
    assert before.instruction == after.instruction == "sentence 1"


def test_a_subset_of_annotations_is_taken_in_the_order_given(raw: Path, tmp_path: Path) -> None:
    assert process(raw, tmp_path / "out", "--annotations", "2", "0") == 0
    index = read_index(tmp_path / "out")
    assert [index.instruction(e) for e in range(index.episodes)] == ["sentence 2", "sentence 0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--annotations", "3"), "the split has annotations 0 to 2"),
        (("--annotations", "some"), "--annotations takes 'all' or numbers, not 'some'"),
    ],
)
def test_a_wrong_choice_is_one_line_and_exit_code_two(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert process(raw, tmp_path / "out", *options) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert message in said[0]


def test_a_missing_frame_is_named_and_no_half_index_is_left(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (raw / "episode_0000041.npz").unlink()
    assert process(raw, tmp_path / "out") == 2
    assert "episode_0000041.npz does not exist" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".process_calvin"]  # where it will go on


def test_copies_of_another_recording_are_not_taken_for_this_one(tmp_path: Path) -> None:
    """Uncompressed frames all have one size; what was copied before is only kept when it is the same file."""
    first = raw_split(tmp_path / "first", range(3))
    second = tmp_path / "second"
    second.mkdir()
    for number in range(3):
        for split, shift in ((first, 0), (second, 50)):
            np.savez(split / f"episode_{number:07d}.npz", **frame_arrays(number + shift))
    for split in (first, second):
        options = ["--source-split-dir", str(split), "--output-dir", str(tmp_path / "out"), "--instruction", "x"]
        assert prepare_calvin_debug_processed.main(options) == 0
    copied = CalvinSplit(tmp_path / "out" / "frames").frame(1, ["rgb_static"])["rgb_static"]
    np.testing.assert_array_equal(copied, frame_arrays(51)["rgb_static"])


def test_the_documented_commands_work_from_any_folder(raw: Path, tmp_path: Path) -> None:
    """contract.md section 3, as written there."""
    made = typed(
        "preprocess_data/process_calvin.py",
        *("--source-split-dir", "raw/training", "--output-dir", "processed"),
        cwd=tmp_path,
    )
    assert made.returncode == 0, made.stderr
    assert len(read_index(tmp_path / "processed")) == 13
    debug = typed(
        "scripts/prepare_calvin_debug_processed.py",
        *("--source-split-dir", "raw/training", "--output-dir", "./debug_data/calvin_debug_processed_training"),
        *("--instruction", "move the sliding door", "--max-frames", "9", "--start-index", "1"),
        cwd=tmp_path,
    )
    assert debug.returncode == 0, debug.stderr
    root = tmp_path / "debug_data" / "calvin_debug_processed_training"
    shutil.rmtree(raw)  # the debug split stands alone
    provider = DataProvider(root, 3, 16, 2)
    assert len(provider) == 9
    assert np.diff(provider.data.starts).tolist() == [7, 2]  # the recording has a gap after frame 17
    assert {provider[i].instruction for i in range(9)} == {"move the sliding door"}
    for command in ("preprocess_data/process_calvin.py", "scripts/prepare_calvin_debug_processed.py"):
        assert "dataset_info.json" in typed(command, "--help", cwd=tmp_path).stdout


def test_a_debug_split_is_cut_where_play_was_interrupted_and_where_the_user_says(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(raw / "ep_start_end_ids.npy", np.array([[10, 12], [13, 17], [40, 42]]))

    def prepare(*options: str) -> int:
        common = ["--source-split-dir", str(raw), "--output-dir", str(tmp_path / "out"), "--instruction", "x"]
        return prepare_calvin_debug_processed.main([*common, *options])

    assert prepare() == 0
    assert np.diff(read_index(tmp_path / "out").starts).tolist() == [3, 5, 3]
    assert prepare("--max-frames", "2", "--start-index", "2") == 0
    assert np.diff(read_index(tmp_path / "out").starts).tolist() == [1, 1]
    capsys.readouterr()
    for options, message in (
        (("--start-index", "11"), "--start-index 11: .* has frames 0 to 10"),
        (("--max-frames", "0"), "--max-frames must be at least 1"),
    ):
        assert prepare(*options) == 2
        assert np.char.count(capsys.readouterr().err, "\n") == 1, message


def test_a_frame_without_relative_actions_gets_computed_ones(raw: Path, tmp_path: Path) -> None:
    expected: Any = frame_arrays(10)["rel_actions"]
    write_frame(raw / "episode_0000010.npz", 10, without=["rel_actions"])
    assert process(raw, tmp_path / "out") == 0
    np.testing.assert_allclose(read_index(tmp_path / "out").actions[0], expected, atol=1e-6)

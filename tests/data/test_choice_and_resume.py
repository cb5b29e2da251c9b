"""process_calvin.py: which splits and windows are taken, from a zip too, and going on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from preprocess_data import process_calvin
from preprocess_data.formats import calvin_frames
from preprocess_data.formats.calvin_select import Choice, source_splits
from tests.data.builders import opened_files, raw_split, write_annotations, write_frame
from training.data.calvin import Annotation, CalvinSplit
from training.data.episode_index import read_index
from training.future_view_prediction_w_action_dataset import DataProvider

REPOSITORY = Path(__file__).resolve().parents[2]
WINDOWS = [(10, 14), (12, 17), (40, 41)]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    raw_split(tmp_path / "task_X_X" / "training", [*range(10, 18), 40, 41, 42], WINDOWS)
    raw_split(tmp_path / "task_X_X" / "validation", range(5), [(0, 3)])
    return tmp_path / "task_X_X"


def process(source: Path, output: Path, *options: str) -> int:
    return process_calvin.main(["--source-split-dir", str(source), "--output-dir", str(output), *options])


def zipped(folder: Path) -> Path:
    target = folder.with_suffix(".zip")
    with zipfile.ZipFile(target, "w") as packed:
        for path in sorted(folder.rglob("*")):
            packed.write(path, path.relative_to(folder.parent))
    return target


WINDOW = [Annotation(i, i + 3, f"push the {'blue' if i % 2 else 'RED'} block", f"task_{i % 3}") for i in range(30)]


def test_windows_are_chosen_by_task_words_share_and_number() -> None:
    assert Choice().of(WINDOW) == WINDOW
    assert {w.task for w in Choice(tasks=("task_1",)).of(WINDOW)} == {"task_1"}
    assert len(Choice(phrases=("red",)).of(WINDOW)) == 15
    both = Choice(tasks=("task_0", "task_2"), phrases=("BLUE",)).of(WINDOW)
    assert {(w.task, w.instruction) for w in both} == {
        ("task_0", "push the blue block"),
        ("task_2", "push the blue block"),
    }
    assert [w.start for w in Choice(numbers=(4, 2)).of(WINDOW)] == [4, 2]
    tenth = Choice(fraction=0.1).of(WINDOW)
    assert len(tenth) == 3
    assert tenth == Choice(fraction=0.1).of(WINDOW) != Choice(fraction=0.1, seed=1).of(WINDOW)
    assert [w.start for w in tenth] == sorted(w.start for w in tenth)
    assert len(Choice(count=7, fraction=0.5).of(WINDOW)) == 7


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice(tasks=("fly",)), "--tasks fly: the split's tasks are task_0, task_1, task_2"),
        (Choice(phrases=("green",)), "none of the split's 30 annotations"),
        (Choice(fraction=1.5), "--fraction must be over 0"),
        (Choice(count=0), "--count must be at least 1"),
        (Choice(numbers=(30,)), "--annotations 30"),
    ],
)
def test_an_impossible_choice_names_its_option(choice: Choice, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choice.of(WINDOW)


def test_a_data_set_is_its_splits_and_a_split_is_itself(dataset: Path, tmp_path: Path) -> None:
    for source in (dataset, zipped(dataset)):
        assert [name for name, _ in source_splits(source, None)] == ["training", "validation"]
        ((name, path),) = source_splits(source, "validation")
        assert (name, path.name) == ("", "validation")
        assert source_splits(path, None) == [("", path)]
        with pytest.raises(ValueError, match="leave --split out"):
            source_splits(path, "training")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        source_splits(tmp_path / "nowhere", None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no episode_\*\.npz"):
        source_splits(tmp_path / "empty", None)


def test_a_downloaded_zip_is_processed_and_trained_on_without_being_unpacked(dataset: Path, tmp_path: Path) -> None:
    packed = zipped(dataset)
    assert process(packed, tmp_path / "from_zip") == 0
    assert process(dataset, tmp_path / "from_folder") == 0
    assert process(packed, tmp_path / "alone", "--split", "training", "--copy-frames") == 0
    for split, length in (("training", 13), ("validation", 4)):
        one = DataProvider(tmp_path / "from_zip" / split, 3, 16, 2)
        other = DataProvider(tmp_path / "from_folder" / split, 3, 16, 2)
        assert len(one) == len(other) == length
        for index in range(length):
            assert (one[index].views == other[index].views).all()
            assert (one[index].actions == other[index].actions).all()
        assert ".zip" in str(one.data.frame_path(0))
    packed.unlink()
    alone = DataProvider(tmp_path / "alone", 3, 16, 2)
    assert (alone[6].views == DataProvider(tmp_path / "from_folder" / "training", 3, 16, 2)[6].views).all()


def test_windows_with_a_bad_frame_are_left_out_by_name_when_asked(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (dataset / "training" / "episode_0000016.npz").unlink()
    assert process(dataset / "training", tmp_path / "out") == 2
    assert "episode_0000016.npz does not exist" in capsys.readouterr().err
    assert process(dataset / "training", tmp_path / "out", "--skip-bad") == 0
    said = capsys.readouterr().err
    assert "left out: frames 12 to 17, 'sentence 1'" in said
    assert "episode_0000016.npz" in said
    index = read_index(tmp_path / "out")
    assert [index.instruction(i) for i in range(index.episodes)] == ["sentence 0", "sentence 2"]


def test_parts_that_were_read_are_not_read_again_unless_something_else_is_asked_for(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calvin_frames, "PART", 4)
    raw, output = dataset / "training", tmp_path / "out"
    damaged = raw / "episode_0000040.npz"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:100])
    assert process(raw, output, "--workers", "1") == 2
    damaged.write_bytes(whole)
    with opened_files(monkeypatch) as names:
        assert process(raw, output, "--workers", "1") == 0
    read = [name for name in names if name.startswith("episode")]
    # The frames of the part that was not finished; then one that the data set's contract is read from.
    assert read[:2] == ["episode_0000040.npz", "episode_0000041.npz"]
    assert len(read) <= 3
    assert not (output / ".process_calvin").exists()
    (dataset / "training" / "episode_0000040.npz").write_bytes(whole[:100])
    assert process(raw, output, "--workers", "1") == 2
    with opened_files(monkeypatch) as names:
        assert process(raw, output, "--workers", "1", "--annotations", "0") == 0  # another plan
    assert len([name for name in names if name.startswith("episode")]) in (5, 6)


def test_a_half_written_part_is_read_again(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = CalvinSplit(dataset / "training")
    ids = np.arange(10, 18)
    monkeypatch.setattr(calvin_frames, "PART", 4)
    arguments = (split, ids, tmp_path / "out", None, 1, False)
    first = calvin_frames.read_actions(*arguments)
    parts = sorted((tmp_path / "out" / ".process_calvin").glob("part_*.npz"))
    parts[0].write_bytes(parts[0].read_bytes()[:-30])
    np.testing.assert_array_equal(calvin_frames.read_actions(*arguments).relative, first.relative)
    # A frame that was recorded again while its part waited is read again, whatever its time says.
    path = dataset / "training" / "episode_0000012.npz"
    times = path.stat()
    write_frame(path, 99)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    again = calvin_frames.read_actions(*arguments).relative
    assert (again != first.relative).any(axis=1).tolist() == [number == 12 for number in ids.tolist()]


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """With worker processes, killed hard."""
    raw = raw_split(
        tmp_path / "raw" / "training", range(4800), [(n, n + 59) for n in range(0, 4800, 60)], static=4, gripper=4
    )
    command = [
        *(sys.executable, str(REPOSITORY / "preprocess_data/process_calvin.py"), "--source-split-dir", str(raw)),
        *("--workers", "2", "--output-dir"),
    ]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    out = tmp_path / "out"
    running = subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while running.poll() is None and not list((out / ".process_calvin").glob("part_*.npz")):
        time.sleep(0.01)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert not (out / "dataset_info.json").exists()
    assert list((out / ".process_calvin").glob("part_*.npz"))
    again = subprocess.run([*command, str(out)], check=True, capture_output=True, text=True)
    assert any(f"{1024 * parts}/4800" in again.stderr.splitlines()[0] for parts in (1, 2, 3, 4))
    whole = json.loads((tmp_path / "whole" / "dataset_info.json").read_text())
    assert json.loads((out / "dataset_info.json").read_text()) == whole


def test_no_annotation_and_a_nameless_call_are_one_line(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert process_calvin.main([]) == 2
    assert "give --source-split-dir and --output-dir" in capsys.readouterr().err
    write_annotations(dataset / "training", {"language": {"ann": [], "task": []}, "info": {"indx": []}})
    assert process(dataset / "training", tmp_path / "out") == 2
    assert "none of the split's 0 annotations" in capsys.readouterr().err

"""process_calvin.py --verify: every kind of fault is found and named, and a whole split is called whole."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from preprocess_data import process_calvin
from preprocess_data.formats import verify
from preprocess_data.formats.verify import verify_processed, verify_raw
from tests.data.builders import (
    annotation_content,
    edit_index,
    processed_split,
    raw_split,
    write_annotations,
    write_frame,
)
from training.data.calvin import CalvinSplit


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    split = raw_split(tmp_path / "training", range(10, 30), [(10, 14), (20, 25)])
    np.save(split / "ep_start_end_ids.npy", np.array([[10, 18], [19, 29]]))
    return split


def faults(split: Path, full: bool = False) -> set[tuple[str, str]]:
    report = verify_raw(CalvinSplit(split), full, progress=False)
    return {(problem.kind, Path(problem.file).name) for problem in report.problems}


def test_a_whole_split_is_called_whole_in_both_modes_and_inside_a_zip(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for full in (False, True):
        assert faults(raw, full) == set()
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        for path in raw.rglob("*"):
            packed.write(path, path.relative_to(tmp_path))
    assert process_calvin.main(["--verify", str(tmp_path / "x.zip")]) == 0
    assert "20 files (headers and actions read; --full decodes the images too), 2 windows: no problem found" in (
        capsys.readouterr().out
    )


def test_what_is_made_of_both_splits_of_a_download_is_verified_as_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("training", "validation"):
        raw_split(tmp_path / "task_D_D" / name, range(10, 15), [(10, 14)])
    made = ["--source-split-dir", str(tmp_path / "task_D_D"), "--output-dir", str(tmp_path / "made"), "--workers", "1"]
    assert process_calvin.main(made) == 0
    assert process_calvin.main(["--verify", str(tmp_path / "made")]) == 0
    assert capsys.readouterr().out.count("no problem found") == 2


def test_every_fault_is_named_with_its_file(raw: Path) -> None:
    (raw / "episode_0000013.npz").unlink()
    (raw / "episode_0000016.npz").write_bytes((raw / "episode_0000016.npz").read_bytes()[:500])
    write_frame(raw / "episode_0000017.npz", 17, rgb_static=np.zeros((9, 9, 3), dtype=np.uint8))
    write_frame(raw / "episode_0000018.npz", 18, rel_actions=np.full(7, 1.5))
    write_frame(raw / "episode_0000019.npz", 19, rel_actions=np.full(7, 0.5))
    write_frame(raw / "episode_0000020.npz", 20, actions=np.full(7, np.nan))
    write_frame(raw / "episode_0000021.npz", 21, robot_obs=np.zeros(14))
    write_frame(raw / "episode_0000022.npz", 22, without=["rel_actions", "actions"])
    write_frame(raw / "episode_0000023.npz", 23, without=["rgb_static"])
    write_annotations(raw, annotation_content([(10, 14), (17, 21), (28, 31)]))
    assert faults(raw) == {
        ("missing frame", "episode_0000013.npz"),
        ("damaged frame", "episode_0000016.npz"),
        ("wrong shape", "episode_0000017.npz"),
        ("action out of range", "episode_0000018.npz"),
        ("action out of range", "episode_0000019.npz"),  # the gripper is half open
        ("action out of range", "episode_0000020.npz"),
        ("wrong shape", "episode_0000021.npz"),
        ("wrong shape", "episode_0000022.npz"),
        ("wrong shape", "episode_0000023.npz"),
        ("annotation", "auto_lang_ann.npy"),  # 17 to 21 passes from one stretch into the next, 28 to 31 the end
        ("missing frame", "episode_0000030.npz"),
        ("missing frame", "episode_0000031.npz"),
    }


def test_damage_inside_an_image_is_found_when_everything_is_decoded(tmp_path: Path) -> None:
    raw = raw_split(tmp_path / "training", [12])
    path = raw / "episode_0000012.npz"
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)  # too large to read by the way
    write_frame(path, 12, rgb_static=noise)
    with zipfile.ZipFile(path) as packed:
        image = packed.getinfo("rgb_static.npy")
    content = bytearray(path.read_bytes())
    content[image.header_offset + image.compress_size // 2] ^= 1
    path.write_bytes(content)
    assert faults(raw) == set()
    assert faults(raw, full=True) == {("damaged frame", "episode_0000012.npz")}


def test_a_split_without_ranges_or_annotations_is_noted_and_damaged_ones_are_problems(raw: Path) -> None:
    (raw / "ep_start_end_ids.npy").unlink()
    (raw / "lang_annotations" / "auto_lang_ann.npy").rename(raw / "elsewhere")
    report = verify_raw(CalvinSplit(raw), progress=False)
    assert report.problems == []
    assert [note.partition(" has no ")[2].partition(" ")[0] for note in report.notes] == [
        "ep_start_end_ids.npy:",
        "language",
    ]
    (raw / "ep_start_end_ids.npy").write_bytes(b"x")
    (raw / "elsewhere").rename(raw / "lang_annotations" / "auto_lang_ann.npy")
    (raw / "lang_annotations" / "auto_lang_ann.npy").write_bytes(b"x")
    assert faults(raw) == {("split", "ep_start_end_ids.npy"), ("annotation", "auto_lang_ann.npy")}


def test_a_processed_split_is_verified_through_its_index(tmp_path: Path) -> None:
    root = processed_split(tmp_path / "split", [4, 5])
    edit_index(root, lambda episodes: episodes[0]["frames"][1].update(rel_action=[0.0] * 6 + [1.0]))
    found = verify_processed(root, progress=False).problems
    assert {problem.kind for problem in found} == {"action out of range"}  # the builder numbers frames in them
    (root / "frame_3.npz").unlink()
    (root / "frame_5.npz").write_bytes(b"")
    found = [problem for problem in verify_processed(root, progress=False).problems if "frame" in problem.kind]
    assert {(problem.kind, Path(problem.file).name) for problem in found} == {
        ("missing frame", "frame_3.npz"),
        ("damaged frame", "frame_5.npz"),
    }
    (root / "dataset_info.json").write_text("[{}]")
    (problem,) = verify_processed(root, progress=False).problems
    assert (problem.kind, Path(problem.file).name) == ("split", "dataset_info.json")


def test_images_of_a_processed_split_are_decoded_in_either_mode(tmp_path: Path) -> None:
    root = processed_split(tmp_path / "split", [3], suffix=".png")
    (root / "frame_1.png").write_bytes((root / "frame_1.png").read_bytes()[:-30])
    found = [problem for problem in verify_processed(root, progress=False).problems if problem.kind == "damaged frame"]
    assert [Path(problem.file).name for problem in found] == ["frame_1.png"]


def test_the_command_prints_a_few_writes_all_and_exits_with_one(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(10, 24):
        (raw / f"episode_{number:07d}.npz").write_bytes(b"PK")
    report = tmp_path / "problems.json"
    assert process_calvin.main(["--verify", str(raw), "--full", "--report", str(report), "--workers", "1"]) == 1
    said = capsys.readouterr().out
    assert "damaged frame: 14" in said
    assert f"... and {14 - verify.SHOWN} more (--report lists all)" in said
    assert len(json.loads(report.read_text())) == 14
    assert process_calvin.main(["--verify", str(tmp_path / "nothing")]) == 2
    assert "nothing to verify" in capsys.readouterr().err

"""LeRobot data in and out: what is exported reads back equal, each frame is held once, and damage is named."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="LeRobot data needs pyarrow: pip install -r requirements-lerobot.txt")
pytest.importorskip("av", reason="LeRobot data needs PyAV: pip install -r requirements-lerobot.txt")
import pyarrow as pa
import pyarrow.parquet as parquet
from PIL import Image

from preprocess_data import export_lerobot, process_lerobot
from preprocess_data.formats.lerobot import LerobotData
from scripts import inspect_data
from tests.data.builders import frame_arrays, raw_split
from training.data.dataset_spec import read_contract
from training.data.episode_index import read_index
from training.future_view_prediction_w_action_dataset import DataProvider

WINDOWS = [(10, 14), (12, 17), (40, 42)]
STATIC, HAND = "observation.images.static", "observation.images.gripper"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return raw_split(tmp_path / "raw" / "training", [*range(8, 20), *range(40, 44)], WINDOWS)


def export(raw: Path, output: Path, *options: str) -> int:
    return export_lerobot.main(["--source-split-dir", str(raw), "--output-dir", str(output), *options])


def process(source: Path, output: Path, *options: str) -> int:
    return process_lerobot.main(["--source", str(source), "--output-dir", str(output), "--workers", "1", *options])


def v21(root: Path, lengths: tuple[int, ...] = (4, 3), width: int = 7) -> Path:
    """A data set as LeRobot 2.1 lays it out, with images in the tables."""
    (root / "meta").mkdir(parents=True)
    export_like = {"bytes": pa.binary(), "path": pa.string()}
    kinds: dict[str, Any] = {
        "observation.images.top": pa.struct(export_like),
        "observation.state": pa.list_(pa.float32(), 8),
        "action": pa.list_(pa.float32(), width),
        **dict.fromkeys(("episode_index", "frame_index", "index", "task_index"), pa.int64()),
    }
    index, episodes = 0, []
    for number, length in enumerate(lengths):
        rows = []
        for moment in range(length):
            rows.append(
                {
                    "observation.images.top": {"bytes": _png(index), "path": ""},
                    "observation.state": [0.1 * moment] * 6 + [0, 0],
                    "action": [0.1 * moment + 0.01] * (width - 1) + [float(moment % 2)],
                    "episode_index": number,
                    "frame_index": moment,
                    "index": index,
                    "task_index": int(number == 1 and moment > 0),
                }
            )
            index += 1
        path = root / "data" / "chunk-000" / f"episode_{number:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.Table.from_pylist(rows, pa.schema(list(kinds.items()))), path)
        episodes.append({"episode_index": number, "tasks": ["grasp", "place"], "length": length})
    (root / "meta" / "episodes.jsonl").write_text("\n".join(map(json.dumps, episodes)) + "\n")
    tasks = [{"task_index": 0, "task": "grasp"}, {"task_index": 1, "task": "place"}]
    (root / "meta" / "tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)) + "\n")
    features = {key: {"dtype": "float32", "shape": [width], "names": None} for key in ("action", "observation.state")}
    features["observation.images.top"] = {"dtype": "image", "shape": [20, 24, 3], "names": None}
    info = {
        "codebase_version": "v2.1",
        "fps": 10,
        "chunks_size": 1000,
        "total_episodes": len(lengths),
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": None,
        "features": features,
    }
    (root / "meta" / "info.json").write_text(json.dumps(info))
    return root


def _png(number: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(frame_arrays(number)["rgb_static"]).save(content, "png")
    return content.getvalue()


def test_overlapping_windows_share_their_frames(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(raw, tmp_path / "out") == 0
    assert "11 frames, each once (its 3 windows name 14)" in capsys.readouterr().out
    data = LerobotData(tmp_path / "out")
    assert [place.length for place in data.episodes] == [8, 3]
    assert [sum(1 for _ in data.images(place, STATIC)) for place in data.episodes] == [8, 3]
    tables = [parquet.read_table(file) for file in (tmp_path / "out" / "data").rglob("*.parquet")]
    assert sum(table.num_rows for table in tables) == 11
    spoken = data.rows(data.episodes[0], ["task_index"])["task_index"]
    assert [data.tasks[number] for number in spoken] == ["sentence 0"] * 5 + ["sentence 1"] * 3
    assert data.episodes[0].tasks == ("sentence 0", "sentence 1")
    assert (data.fps, data.info["total_frames"]) == (30, 11)


def test_frames_that_stay_in_videos_are_read_as_those_that_are_unpacked(raw: Path, tmp_path: Path) -> None:
    assert export(raw, tmp_path / "out", "--pictures", "lossless") == 0
    cameras = ["--camera", STATIC, "--second-camera", HAND]
    assert process(tmp_path / "out", tmp_path / "unpacked", *cameras, "--png") == 0
    assert process(tmp_path / "out", tmp_path / "kept", *cameras, "--keep-videos") == 0
    assert not [path for path in (tmp_path / "kept").rglob("*") if path.suffix in (".png", ".jpg")]
    unpacked, kept = (DataProvider(tmp_path / name, 3, 20, 2) for name in ("unpacked", "kept"))
    order = np.random.default_rng(0).permutation(len(kept)).tolist()
    ours, theirs = kept.batch(order), unpacked.batch(order)
    assert (ours.views == theirs.views).all()
    assert (ours.future_views == theirs.future_views).all()
    assert (kept[order[0]].views == ours.views[0]).all()
    assert process_lerobot.main(["--verify", str(tmp_path / "kept")]) == 0
    shutil.rmtree(tmp_path / "out" / "videos" / HAND)
    with pytest.raises(FileNotFoundError, match=rf"{HAND}.*\.bmp does not exist"):
        kept[order[1]]


def test_videos_cannot_be_kept_where_images_are_in_tables(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(raw, tmp_path / "out", "--pictures", "png") == 0
    assert process(tmp_path / "out", tmp_path / "kept", "--keep-videos") == 2
    assert "leave out --keep-videos" in capsys.readouterr().err


@pytest.mark.parametrize("images", ["lossless", "png"])
def test_what_is_exported_reads_back_equal(raw: Path, tmp_path: Path, images: str) -> None:
    assert export(raw, tmp_path / "out", "--pictures", images) == 0
    assert process(tmp_path / "out", tmp_path / "back", "--camera", STATIC, "--second-camera", HAND, "--png") == 0
    index = read_index(tmp_path / "back")
    provider = DataProvider(tmp_path / "back", 3, 20, 2)
    assert [index.instruction(e) for e in range(3)] == ["sentence 0", "sentence 1", "sentence 2"]
    assert [index.task(e) for e in range(3)] == ["task_0", "task_1", "task_0"]
    flat = [frame for start, end in WINDOWS for frame in range(start, end + 1)]
    assert len(index) == len(flat)
    for place, frame in enumerate(flat):
        arrays = frame_arrays(frame)
        static, hand = provider.images(place)
        np.testing.assert_array_equal(static, arrays["rgb_static"])
        np.testing.assert_array_equal(hand, arrays["rgb_gripper"])
        np.testing.assert_array_equal(index.actions[place], arrays["rel_actions"].astype(np.float32))
    contract = read_contract(tmp_path / "back")
    assert contract.action == read_contract(tmp_path).action  # CALVIN's
    assert contract.cameras == {"rgb_static": (20, 24), "rgb_gripper": (12, 12)}
    assert provider[0].views.shape == (2, 3, 20, 20)


def test_a_second_camera_that_is_not_taken_is_told(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(raw, tmp_path / "lerobot", "--pictures", "png") == 0
    assert process(tmp_path / "lerobot", tmp_path / "back") == 0
    assert "alone is both views; --second-camera observation.images.gripper" in capsys.readouterr().err


def test_vectors_are_exported_as_float32_with_all_frames(raw: Path, tmp_path: Path) -> None:
    assert export(raw, tmp_path / "out", "--all-frames", "--pictures", "png") == 0
    data = LerobotData(tmp_path / "out")
    assert [place.length for place in data.episodes] == [12, 4]
    for column, name in (("observation.state", "robot_obs"), ("calvin.absolute_action", "actions")):
        table = data.numbers(data.episodes[1], column, 7)
        np.testing.assert_array_equal(table, np.float32([frame_arrays(40 + n)[name] for n in range(4)]))
    spoken = data.rows(data.episodes[0], ["task_index"])["task_index"]
    assert data.tasks[spoken[0]] == "play"


def test_a_lossy_film_is_nearly_the_same_and_starts_in_its_middle(tmp_path: Path) -> None:
    calm = {"rgb_static": np.full((20, 24, 3), 90, np.uint8), "rgb_gripper": np.full((12, 12, 3), 40, np.uint8)}
    raw = raw_split(tmp_path / "raw", range(12), [(0, 4), (8, 11)], **calm)
    assert export(raw, tmp_path / "out") == 0
    data = LerobotData(tmp_path / "out")
    images = list(data.images(data.episodes[1], STATIC))
    assert len(images) == 4
    assert np.abs(images[0].astype(int) - 90).max() <= 3
    assert data.episodes[1].videos[STATIC][1] == pytest.approx(5 / 30)


def test_version_21_is_read_and_a_change_of_task_is_a_new_episode(tmp_path: Path) -> None:
    root = v21(tmp_path / "v21")
    assert process(root, tmp_path / "out", "--gripper-threshold", "0.5", "--png") == 0
    index = read_index(tmp_path / "out")
    assert np.diff(index.starts).tolist() == [4, 1, 2]
    assert [index.instruction(e) for e in range(3)] == ["grasp", "grasp", "place"]
    np.testing.assert_allclose(index.actions[1], [0.11] * 6 + [1], atol=1e-6)
    sample = DataProvider(tmp_path / "out", 2, 20, 2)[0]
    assert (sample.views[0] == sample.views[1]).all()  # one camera is both
    assert read_contract(tmp_path / "out").action["rate_hz"] == 10


def test_absolute_targets_become_relative_steps(tmp_path: Path) -> None:
    root = v21(tmp_path / "v21")
    options = ("--actions", "absolute", "--position-unit", "0.02", "--rotation-unit", "0.1", "--gripper-inverted")
    assert process(root, tmp_path / "out", *options, "--gripper-threshold", "0.5") == 0
    np.testing.assert_allclose(read_index(tmp_path / "out").actions[1], [0.5] * 3 + [0.1] * 3 + [-1], atol=1e-5)


def test_clipped_actions_are_counted_in_the_frames_that_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = v21(tmp_path / "v21")
    tasks = root / "meta" / "tasks.jsonl"
    tasks.write_text(tasks.read_text().replace('"grasp"', '""'))  # leaves the last two frames of episode 1
    options = ("--actions", "absolute", "--position-unit", "0.005", "--gripper-threshold", "0.5")
    assert process(root, tmp_path / "out", *options) == 0
    assert "2 actions (100.0%) were clipped to the units; 2 episodes left out" in capsys.readouterr().out


def wrong_version(root: Path) -> None:
    info = json.loads((root / "meta" / "info.json").read_text())
    (root / "meta" / "info.json").write_text(json.dumps(info | {"codebase_version": "v1.6"}))


def cut_table(root: Path) -> None:
    path = root / "data" / "chunk-000" / "file-000.parquet"
    path.write_bytes(path.read_bytes()[:-100])


def cut_film(root: Path) -> None:
    path = root / "videos" / STATIC / "chunk-000" / "file-000.mp4"
    path.write_bytes(path.read_bytes()[:400])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (wrong_version, "info.json: codebase_version 'v1.6'; v2.0, v2.1, v3.0 are read"),
        (cut_table, "file-000.parquet cannot be read as parquet"),
        (cut_film, "file-000.mp4 cannot be read as a video"),
        (lambda root: shutil.rmtree(root / "videos" / STATIC), "file-000.mp4 does not exist"),
    ],
)
def test_damage_is_one_line_that_names_the_file(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Any, message: str
) -> None:
    assert export(raw, tmp_path / "data") == 0
    assert process_lerobot.main(["--verify", str(tmp_path / "data")]) == 0
    damage(tmp_path / "data")
    capsys.readouterr()
    assert process(tmp_path / "data", tmp_path / "out", "--camera", STATIC) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("process_lerobot")]
    assert len(said) == 1
    assert message in said[0]
    assert not (tmp_path / "out" / "dataset_info.json").exists()
    assert process_lerobot.main(["--verify", str(tmp_path / "data")]) == 1


def test_joint_angles_and_unknown_cameras_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert process(v21(tmp_path / "a", width=8), tmp_path / "out") == 2
    assert "action has 8 numbers, but 7 are needed" in capsys.readouterr().err
    assert process(v21(tmp_path / "b"), tmp_path / "out", "--camera", "hand") == 2
    assert "has no camera 'hand'; it has observation.images.top" in capsys.readouterr().err


def test_what_is_missing_is_told_with_how_to_install_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = v21(tmp_path / "v21")
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    assert process(root, tmp_path / "out") == 2
    assert "needs av, which is not installed: pip install -r requirements-lerobot.txt" in capsys.readouterr().err


def test_a_folder_with_a_data_set_is_not_written_over(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(raw, tmp_path / "out") == 0
    assert export(raw, tmp_path / "out") == 2
    assert "already holds a data set" in capsys.readouterr().err


def test_a_lerobot_data_set_can_be_looked_at(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(raw, tmp_path / "out") == 0
    for path in (tmp_path / "out", v21(tmp_path / "v21")):
        assert inspect_data.main([str(path), "--out", str(tmp_path / "page.html")]) == 0
    said = capsys.readouterr().out
    assert "LeRobot data set, v3.0" in said
    assert "3 annotated windows share these frames" in said

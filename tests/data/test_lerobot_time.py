"""LeRobot: images by timestamp, numbers by name, and what contradicts what is declared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="LeRobot data needs pyarrow: pip install -r requirements-lerobot.txt")
pytest.importorskip("av", reason="LeRobot data needs PyAV: pip install -r requirements-lerobot.txt")
import av
import pyarrow as pa
import pyarrow.parquet as parquet
from PIL import Image

from preprocess_data import process_lerobot
from preprocess_data.formats.lerobot import read_video_frames
from preprocess_data.formats.lerobot_names import columns_by_name, names_of, static_camera
from training.data.episode_index import read_index
from training.data.formats.video_frames import NoFrameError

TOP = "observation.images.top"
AXES = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]


def video(path: Path, rate: int, frames: int) -> Path:
    """Frame k is grey 10 * k."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=rate)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for k in range(frames):
            image = np.full((32, 32, 3), min(10 * k, 255), np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode())
    return path


def data_set(
    root: Path,
    episodes: Sequence[Sequence[float]],
    actions: np.ndarray | None = None,
    states: np.ndarray | None = None,
    fps: float = 10,
    film_fps: int = 10,
    film_frames: int = 25,
    sections: Sequence[tuple[float, float]] | None = None,
    names: Any = None,
    task: str = "grasp",
) -> Path:
    """Episodes of these timestamps. ``sections``: where each begins and ends in one video (v3.0); None is v2.1."""
    new = sections is not None
    kinds = {"timestamp": pa.float32(), "action": pa.list_(pa.float32(), 7)}
    kinds |= {} if states is None else {"observation.state": pa.list_(pa.float32(), states.shape[1])}
    kinds |= dict.fromkeys(("episode_index", "frame_index", "index", "task_index"), pa.int64())
    tables, index = [], 0
    for number, stamps in enumerate(episodes):
        rows = []
        for moment, stamp in enumerate(stamps):
            row = {"timestamp": stamp, "episode_index": number, "frame_index": moment, "index": index, "task_index": 0}
            row["action"] = ([0.3] * 6 + [float(index % 2)]) if actions is None else actions[index].tolist()
            rows.append(row if states is None else row | {"observation.state": states[index].tolist()})
            index += 1
        tables.append(rows)
    schema = pa.schema(list(kinds.items()))
    (root / "meta").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    listed: list[dict[str, Any]] = [
        {"episode_index": number, "tasks": [task], "length": len(rows)} for number, rows in enumerate(tables)
    ]
    if sections is not None:
        parquet.write_table(
            pa.Table.from_pylist([row for rows in tables for row in rows], schema),
            root / "data/chunk-000/file-000.parquet",
        )
        video(root / f"videos/{TOP}/chunk-000/file-000.mp4", film_fps, film_frames)
        at = 0
        for row, (begin, end) in zip(listed, sections, strict=True):
            row |= {"data/chunk_index": 0, "data/file_index": 0, "dataset_from_index": at}
            row |= {f"videos/{TOP}/chunk_index": 0, f"videos/{TOP}/file_index": 0}
            row |= {f"videos/{TOP}/from_timestamp": begin, f"videos/{TOP}/to_timestamp": end}
            at += row["length"]
        (root / "meta/episodes/chunk-000").mkdir(parents=True)
        parquet.write_table(pa.Table.from_pylist(listed), root / "meta/episodes/chunk-000/file-000.parquet")
        parquet.write_table(pa.Table.from_pylist([{"task_index": 0, "task": task}]), root / "meta/tasks.parquet")
    else:
        for number, rows in enumerate(tables):
            parquet.write_table(
                pa.Table.from_pylist(rows, schema), root / f"data/chunk-000/episode_{number:06d}.parquet"
            )
            video(root / f"videos/chunk-000/{TOP}/episode_{number:06d}.mp4", film_fps, film_frames)
        (root / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, listed)) + "\n")
        (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": task}) + "\n")
    features: dict[str, Any] = {"action": {"dtype": "float32", "shape": [7], "names": names}}
    if states is not None:
        features["observation.state"] = {"dtype": "float32", "shape": [states.shape[1]], "names": None}
    features[TOP] = {"dtype": "video", "shape": [32, 32, 3], "names": None}
    place = "chunk-{chunk_index:03d}/file-{file_index:03d}"
    info = {
        "codebase_version": "v3.0" if new else "v2.1",
        "fps": fps,
        "chunks_size": 1000,
        "total_episodes": len(tables),
        "features": features,
        "data_path": f"data/{place}.parquet"
        if new
        else "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": f"videos/{{video_key}}/{place}.mp4"
        if new
        else "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


def process(root: Path, *options: str) -> int:
    output = root.with_name(root.name + "_out")
    command = ["--source", str(root), "--output-dir", str(output), "--workers", "1", "--png", *options]
    return process_lerobot.main(command)


def shown(root: Path) -> list[int]:
    """Number of the video frame that each row of the result shows."""
    files = sorted(root.with_name(root.name + "_out").glob("frames/*/*/*.png"))
    return [round(float(np.asarray(Image.open(file)).mean()) / 10) for file in files]


def seconds(first: float, count: int, rate: float = 10) -> list[float]:
    return [first + i / rate for i in range(count)]


@pytest.mark.parametrize(
    ("episodes", "more", "frames"),
    [
        ([seconds(0, 8)], {}, range(8)),
        ([seconds(1, 8)], {}, range(10, 18)),  # the first second was cut off the table
        ([seconds(0, 8)], {"film_fps": 30}, range(0, 24, 3)),  # the video is faster than the table
        ([seconds(0, 6), seconds(0, 6)], {"sections": [(0, 0.6), (0.6, 1.2)]}, range(12)),
        ([seconds(0, 6), seconds(0.5, 3)], {"sections": [(0, 0.6), (0.6, 1.4)]}, [*range(6), 11, 12, 13]),
    ],
)
def test_a_row_shows_the_frame_at_its_timestamp(
    tmp_path: Path, episodes: list[list[float]], more: dict[str, Any], frames: Sequence[int]
) -> None:
    root = data_set(tmp_path / "data", episodes, **more)
    assert process_lerobot.main(["--verify", str(root)]) == 0
    assert process(root) == 0
    assert shown(root) == list(frames)


@pytest.mark.parametrize(
    ("episodes", "more", "told"),
    [
        ([seconds(0.05, 8)], {}, "episode_000000.mp4 has no frame at 0.0500 s"),  # between two frames
        ([seconds(0, 8)], {"film_fps": 15}, "episode_000000.mp4 has no frame at 0.1000 s"),
        ([seconds(2, 8)], {}, "episode_000000.mp4 has no frame at 2.5000 s"),  # behind its end
        ([seconds(0, 8, rate=30)], {"film_fps": 30}, "declares fps 10"),
        ([[0, 0.1, 0.3, 0.4]], {}, "timestamp of frames 1 and 2 is 0.1000 and 0.3000 s"),  # a row is missing
        ([[0, 0.1, 0.1, 0.2]], {}, "timestamp of frames 1 and 2"),
        ([seconds(0, 6), seconds(0, 6)], {"sections": [(0, 0.5), (0.5, 1.1)]}, "the episode ends at 0.5000 s"),
        ([seconds(0, 6), seconds(0, 6)], {"sections": [(0, 0.6), (2.0, 2.6)]}, "has no frame at 2.5000 s"),
    ],
)
def test_a_timestamp_without_a_frame_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], episodes: list[list[float]], more: dict[str, Any], told: str
) -> None:
    root = data_set(tmp_path / "data", episodes, **more)
    assert process(root) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "data_out" / "dataset_info.json").exists()
    assert process_lerobot.main(["--verify", str(root)]) == 1
    assert told in capsys.readouterr().out


def test_the_nearest_frame_within_the_tolerance_is_taken(tmp_path: Path) -> None:
    path = video(tmp_path / "a.mp4", 10, 12)
    stamps = np.array([0.02, 0.11, 0.49])
    seen = [round(float(image.mean()) / 10) for image in read_video_frames(path, 0.5, None, stamps, tolerance=0.03)]
    assert seen == [5, 6, 10]
    with pytest.raises(NoFrameError, match=r"no frame at 0\.5200 s.*nearest is at 0\.5000 s"):
        list(read_video_frames(path, 0.5, None, stamps))


# --- names --------------------------------------------------------------------------------------------------------


def actions(frames: int = 20) -> np.ndarray:
    table = np.random.default_rng(0).uniform(-0.9, 0.9, (frames, 7)).astype(np.float32)
    table[:, 6] = np.arange(frames) % 2
    return table


def test_numbers_are_taken_by_their_names(tmp_path: Path) -> None:
    order = ["gripper", "roll", "pitch", "yaw", "z", "y", "x"]
    table = actions()
    shuffled = table[:, [AXES.index(name) for name in order]]
    root = data_set(tmp_path / "data", [seconds(0, 20)], shuffled, names={"axes": order})
    assert process(root) == 0
    np.testing.assert_array_equal(read_index(tmp_path / "data_out").actions[:][:, :6], table[:, :6])


@pytest.mark.parametrize(
    "names",
    [
        [f"joint_{number}" for number in range(6)] + ["gripper"],
        {
            "motors": [
                "shoulder_pan.pos",
                "shoulder_lift.pos",
                "elbow_flex.pos",
                "j4",
                "wrist_flex",
                "wrist_roll",
                "gripper",
            ]
        },
        [["j1", "j2", "j3", "j4", "j5", "j6", "j7"]],
    ],
)
def test_joints_by_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], names: Any) -> None:
    assert process(data_set(tmp_path / "data", [seconds(0, 20)], actions(), names=names)) == 2
    said = capsys.readouterr().err
    assert "action holds joints by its names" in said
    assert said.count("\n") == 1


def test_names_that_tell_nothing_change_nothing() -> None:
    shape = {"shape": [7]}
    assert columns_by_name({**shape, "names": {"motors": [f"motor_{n}" for n in range(7)]}}, tuple(AXES), "a") is None
    assert columns_by_name({**shape, "names": None}, tuple(AXES), "a") is None
    assert names_of({**shape, "names": dict(zip(AXES, range(7), strict=True))}) == AXES
    eight = ["x", "y", "z", "roll", "pitch", "yaw", "pad", "gripper"]
    assert columns_by_name({"shape": [8], "names": eight}, tuple(AXES), "a") == [0, 1, 2, 3, 4, 5, 7]
    with pytest.raises(ValueError, match="roll, pitch, yaw"):
        columns_by_name({**shape, "names": ["x", "y", "z", "qx", "qy", "qz", "qw"]}, tuple(AXES[:6]), "a")
    with pytest.raises(ValueError, match="not x, y, z"):
        columns_by_name({**shape, "names": ["y", "x", "z", "a", "b", "c", "gripper"]}, tuple(AXES), "a")


def test_the_first_camera_is_the_one_that_is_not_on_the_hand() -> None:
    assert static_camera(["observation.images.wrist", "observation.images.top"]) == "observation.images.top"
    assert static_camera(["observation.images.wrist"]) == "observation.images.wrist"
    assert static_camera([]) == ""


# --- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gripper", "options", "told"),
    [
        (np.linspace(0.002, 0.08, 20), (), "a threshold near 0.041"),
        (np.linspace(0.0, 0.08, 20), (), "a threshold near 0.04"),
        (np.linspace(0.0, 0.08, 20), ("--gripper-threshold", "0.04"), None),
        (np.arange(20) % 2, (), None),
        (np.arange(20) % 2, ("--gripper-threshold", "1"), "a threshold near 0.5"),
        (np.zeros(20), (), None),
    ],
)
def test_a_threshold_that_does_not_tell_open_from_closed_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], gripper: np.ndarray, options: tuple[str, ...], told: str | None
) -> None:
    table = actions()
    table[:, 6] = gripper
    code = process(data_set(tmp_path / "data", [seconds(0, 20)], table), *options)
    assert code == (0 if told is None else 2)
    if told is not None:
        said = capsys.readouterr().err
        assert told in said
        assert "--gripper-threshold" in said


def test_poses_are_no_relative_actions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count = 120
    states = np.zeros((count, 8), np.float32)
    states[:, :3] = np.array([0.4, -0.3, 0.5]) + np.cumsum(
        np.random.default_rng(0).uniform(-0.01, 0.01, (count, 3)), axis=0
    )
    table = np.concatenate([np.roll(states[:, :6], -1, axis=0), states[:, 7:]], axis=1)
    more = {"states": states, "film_frames": count}
    assert process(data_set(tmp_path / "near", [seconds(0, count)], table, **more)) == 2
    assert "--actions absolute" in capsys.readouterr().err
    table[:, 3] = 3.1
    assert process(data_set(tmp_path / "turned", [seconds(0, count)], table, film_frames=count)) == 2
    assert "--actions absolute" in capsys.readouterr().err
    assert process(tmp_path / "near", "--actions", "absolute") == 0


def test_an_empty_task_is_left_out_or_given_an_instruction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = data_set(tmp_path / "data", [seconds(0, 8)], task=" ")
    assert process(root) == 2
    assert "has an empty task" in capsys.readouterr().err
    assert process(root, "--default-instruction", "grasp it") == 0
    assert read_index(tmp_path / "data_out").instruction(0) == "grasp it"

"""Files of BridgeData and LeRobot data sets, for the fuzzer."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from preprocess_data.formats.bridge import read_shard, splits_of
from preprocess_data.formats.lerobot import LerobotData
from tests.data.bridge_files import example, raw_trajectory, rlds_episode, rlds_files
from tests.data.builders import raw_split
from training.data.readers import read_pickle

SHARD = "bridge_dataset-train.tfrecord-00000-of-00001"
CAMERA = "observation.images.static"


@dataclass(frozen=True)
class RobotFile:
    name: str
    good: bytes
    file: str  # below the folder
    read: Callable[[Path], Any]
    checked: bool
    folder: str = ""  # of the sample, which the reader needs besides


@cache
def _samples() -> dict[str, dict[str, bytes]]:
    """Small data sets, by name: path below the folder -> content."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        rlds_files(root / "rlds", [[example(rlds_episode(seed)) for seed in range(2)]])
        raw_trajectory(root / "raw", 1)
        if lerobot_is_read():
            from preprocess_data.export_lerobot import export
            from training.data.calvin import CalvinSplit

            calm = {"rgb_static": np.full((20, 24, 3), 90, np.uint8), "rgb_gripper": np.full((12, 12, 3), 40, np.uint8)}
            split = CalvinSplit(raw_split(root / "split", range(6), [(0, 3), (2, 5)], **calm))
            export(split, root / "lerobot", progress=False)
        return {
            sample: {
                str(f.relative_to(root / sample)): f.read_bytes() for f in (root / sample).rglob("*") if f.is_file()
            }
            for sample in ("rlds", "raw", "lerobot")
        }


def lerobot_is_read() -> bool:
    return find_spec("pyarrow") is not None and find_spec("av") is not None


def place(sample: str, file: str) -> Callable[[Path], None]:
    """Puts all of a sample but ``file`` into a folder, links to the damaged one are made by the reader."""

    def put(folder: Path) -> None:
        for name, content in _samples()[sample].items():
            if name != file:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)

    return put


def _in_place(path: Path, file: str) -> Path:
    """The folder, with the damaged file where it belongs."""
    target = path.parent / file
    if target != path:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return path.parent


def _shard(path: Path) -> Any:
    found = list(read_shard(splits_of(path.parent)["train"][0], (0,)))
    for one in found:
        if isinstance(one, ValueError):
            raise one
    return [(one.instruction, one.states, one.gripper, one.images) for one in found if not isinstance(one, ValueError)]


def _lerobot(file: str) -> Callable[[Path], Any]:
    def read(path: Path) -> Any:
        data = LerobotData(_in_place(path, file))
        episode = data.episodes[0]
        return (
            data.numbers(episode, "action", 7),
            data.rows(episode, ["task_index"]),
            data.tasks,
            data.windows,
            list(data.images(episode, CAMERA)),
        )

    return read


def robot_files() -> list[RobotFile]:
    samples = _samples()
    files = [
        RobotFile("tfrecord", samples["rlds"][SHARD], SHARD, _shard, True, "rlds"),
        RobotFile("json (TFDS)", samples["rlds"]["dataset_info.json"], "dataset_info.json", _tfds, False, "rlds"),
        RobotFile("pkl (observations)", samples["raw"]["obs_dict.pkl"], "obs_dict.pkl", read_pickle, False),
        RobotFile("pkl (actions)", pickle.dumps([{"actions": np.zeros(7)}] * 3), "policy_out.pkl", read_pickle, False),
    ]
    if lerobot_is_read():
        for name, file, checked in (
            ("parquet (frames)", "data/chunk-000/file-000.parquet", False),
            ("parquet (episodes)", "meta/episodes/chunk-000/file-000.parquet", False),
            ("parquet (tasks)", "meta/tasks.parquet", False),
            ("json (LeRobot)", "meta/info.json", False),
            ("mp4", f"videos/{CAMERA}/chunk-000/file-000.mp4", False),
        ):
            files.append(RobotFile(name, samples["lerobot"][file], file, _lerobot(file), checked, "lerobot"))
    return files


def _tfds(path: Path) -> Any:
    return [(shard.path.name, shard.episodes) for shards in splits_of(path.parent).values() for shard in shards]

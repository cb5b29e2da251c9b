"""The files of a CALVIN split, written so that equal contents are equal bytes and no file is ever half there."""

from __future__ import annotations

import io
import json
import pickle
import platform
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from common.files import write_bytes
from policy_rollout.calvin.tasks import CALVIN_TASKS
from policy_rollout.desk.engine import mujoco
from policy_rollout.desk.rendering import cameras
from preprocess_data.desk_demos.play import Settings

Array = npt.NDArray[Any]

EMBEDDING = 384  # width of CALVIN's sentence embeddings
DRAWN = 1  # zlib level: images drawn by a renderer are 10 % larger than at level 6, in a third of the time


def npz_bytes(arrays: Mapping[str, Array]) -> bytes:
    """A compressed .npz; the same arrays in the same order give the same bytes (no time of day in the archive)."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED, compresslevel=DRAWN) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o600 << 16
            archive.writestr(entry, npy_bytes(array), compresslevel=DRAWN)
    return held.getvalue()


def npy_bytes(array: Array) -> bytes:
    held = io.BytesIO()
    np.lib.format.write_array(held, np.ascontiguousarray(array), allow_pickle=False)
    return held.getvalue()


def _pickled_npy(content: dict[str, Any]) -> bytes:
    """A dictionary as `np.save` writes it: the format of CALVIN's annotations leaves no other way."""
    held = io.BytesIO()
    box = np.empty((), dtype=object)
    np.lib.format.write_array_header_1_0(held, np.lib.format.header_data_from_array_1_0(box))
    box[()] = content
    pickle.dump(box, held, protocol=4)
    return held.getvalue()


@dataclass
class Moments:
    """Enough of many vectors to know their mean, spread and bounds."""

    count: int
    total: Array
    squares: Array
    low: Array
    high: Array

    @classmethod
    def of(cls, rows: Array) -> Moments:
        return cls(len(rows), rows.sum(0), (rows**2).sum(0), rows.min(0), rows.max(0))

    @classmethod
    def merged(cls, parts: Iterable[Moments]) -> Moments:
        parts = list(parts)
        total, squares = (np.sum([getattr(p, name) for p in parts], axis=0) for name in ("total", "squares"))
        low, high = np.min([p.low for p in parts], axis=0), np.max([p.high for p in parts], axis=0)
        return cls(sum(p.count for p in parts), total, squares, low, high)

    @property
    def mean(self) -> Array:
        return np.asarray(self.total / self.count)

    @property
    def std(self) -> Array:
        return np.asarray(np.sqrt(np.maximum(self.squares / self.count - self.mean**2, 0.0)))

    def as_json(self) -> dict[str, Any]:
        return {k: v if isinstance(v, int) else v.tolist() for k, v in vars(self).items()}

    @classmethod
    def from_json(cls, held: Mapping[str, Any]) -> Moments:
        return cls(held["count"], *(np.array(held[k]) for k in ("total", "squares", "low", "high")))


@dataclass(frozen=True)
class Placed:
    """A finished episode and where its frames are: ids `first`..`first + frames - 1` of the split."""

    first: int
    frames: int
    scene: str
    windows: tuple[tuple[int, int, str, str], ...]  # start, end (ids of the split), task, instruction
    failed: tuple[str, ...]
    moments: Mapping[str, Moments]  # of robot_obs, scene_obs, actions

    @property
    def last(self) -> int:
        return self.first + self.frames - 1

    def as_json(self) -> dict[str, Any]:
        return {
            "first": self.first,
            "frames": self.frames,
            "scene": self.scene,
            "windows": [list(w) for w in self.windows],
            "failed": list(self.failed),
            "moments": {k: m.as_json() for k, m in self.moments.items()},
        }

    @classmethod
    def from_json(cls, held: Mapping[str, Any]) -> Placed:
        return cls(
            held["first"],
            held["frames"],
            held["scene"],
            tuple((int(a), int(b), str(task), str(text)) for a, b, task, text in held["windows"]),
            tuple(held["failed"]),
            {k: Moments.from_json(m) for k, m in held["moments"].items()},
        )


def write_index_files(split: Path, episodes: Sequence[Placed], settings: Settings) -> None:
    """Everything of a CALVIN split but the frames."""
    (split / "lang_annotations").mkdir(exist_ok=True)
    (split / ".hydra").mkdir(exist_ok=True)
    ranges = np.array([[e.first, e.last] for e in episodes], dtype=np.int64)
    write_bytes(split / "ep_start_end_ids.npy", npy_bytes(ranges))
    write_bytes(split / "ep_lens.npy", npy_bytes(np.array([e.frames for e in episodes], dtype=np.int64)))
    scenes: dict[str, list[int]] = {}
    for episode in episodes:
        scenes.setdefault(f"calvin_scene_{episode.scene}", [episode.first, episode.last])[1] = episode.last
    write_bytes(split / "scene_info.npy", _pickled_npy({k: list(v) for k, v in scenes.items()}))
    write_bytes(split / "lang_annotations" / "auto_lang_ann.npy", _pickled_npy(language(episodes)))
    write_bytes(split / "statistics.yaml", _yaml(statistics(episodes)))
    write_bytes(split / ".hydra" / "merged_config.yaml", _yaml(merged_config(settings)))


def language(episodes: Sequence[Placed]) -> dict[str, Any]:
    """What auto_lang_ann.npy holds. The desk has no sentence encoder: `emb` is zeros of the right shape."""
    windows = [window for episode in episodes for window in episode.windows]
    return {
        "language": {
            "ann": [text for _, _, _, text in windows],
            "task": [task for _, _, task, _ in windows],
            "emb": np.zeros((len(windows), 1, EMBEDDING), dtype=np.float32),
        },
        "info": {"episodes": [], "indx": [(start, end) for start, end, _, _ in windows]},
    }


def statistics(episodes: Sequence[Placed]) -> dict[str, Any]:
    """Mean and spread of the observations, bounds of the absolute actions."""
    held = {k: Moments.merged(e.moments[k] for e in episodes) for k in ("robot_obs", "scene_obs", "actions")}

    def rounded(values: Array) -> list[float]:
        return [round(float(v), 6) for v in values]

    table: dict[str, Any] = {
        key: [
            {
                "_target_": "calvin_agent.utils.transforms.NormalizeVector",
                "mean": rounded(held[key].mean),
                "std": rounded(held[key].std),
            }
        ]
        for key in ("robot_obs", "scene_obs")
    }
    table["act_min_bound"], table["act_max_bound"] = rounded(held["actions"].low), rounded(held["actions"].high)
    return table


def merged_config(settings: Settings) -> dict[str, Any]:
    """The environment of the recording, with the keys that evaluation reads in CALVIN's, and what wrote it."""
    camera = {"aspect": 1, "nearval": 0.01, "farval": 10}
    static = {
        "name": "static",
        "fov": cameras.STATIC_FOV,
        **camera,
        "width": settings.static_size,
        "height": settings.static_size,
        "look_from": list(cameras.STATIC_FROM),
        "look_at": list(cameras.STATIC_AT),
        "up_vector": list(cameras.STATIC_UP),
    }
    size = {"width": settings.gripper_size, "height": settings.gripper_size}
    gripper = {"name": "gripper", "fov": cameras.GRIPPER_FOV, **camera, **size}
    tasks = {task: [list(a) if isinstance(a, tuple) else a for a in row] for task, row in CALVIN_TASKS.items()}
    return {
        "cameras": {"static": static, "gripper": gripper},
        "env": {
            "_target_": "policy_rollout.desk.DeskEnv",
            "scene": settings.scenes[0],
            "renderer": settings.renderer,
            "static_size": settings.static_size,
            "gripper_size": settings.gripper_size,
            "camera_jitter": settings.camera_jitter,
            "light_jitter": settings.light_jitter,
        },
        "tasks": {"tasks": tasks},
        "recording": {
            "program": "preprocess_data/make_desk_demos.py",
            **settings.as_dict(),
            "versions": {"python": platform.python_version(), "mujoco": mujoco.__version__, "numpy": np.__version__},
        },
        "seed": settings.seed,
    }


def _yaml(content: Mapping[str, Any]) -> bytes:
    text: str = yaml.safe_dump(dict(content), sort_keys=False)
    return text.encode()


def json_bytes(content: Any) -> bytes:
    return json.dumps(content).encode()

"""Write the files of a CALVIN split, reproducible byte for byte and completely or not at all."""

from __future__ import annotations

import io
import json
import os
import pickle
import platform
import shutil
import time
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from common.files import write_bytes
from policy_rollout.calvin.installation import package_commit
from policy_rollout.calvin.tasks import CALVIN_TASKS
from policy_rollout.desk.engine import mujoco
from policy_rollout.desk.rendering import cameras
from preprocess_data.desk_demos.play import Array, Frame, Player, Settings

EMBEDDING = 384
"""Width of CALVIN's sentence embeddings."""
ZLIB_LEVEL = 1
"""Rendered images are 10 % larger than at level 6, in a third of the time."""
EpisodeJob = tuple[Settings, int, Path]
"""The recording, the number of the episode, and the folder to write."""


def npz_bytes(arrays: Mapping[str, Array]) -> bytes:
    """Return a compressed .npz. Equal arrays in equal order give equal bytes: the archive has no time stamp."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=ZLIB_LEVEL) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o600 << 16
            archive.writestr(entry, npy_bytes(array), compresslevel=ZLIB_LEVEL)
    return buffer.getvalue()


def npy_bytes(array: Array) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def pickled_npy(content: dict[str, Any]) -> bytes:
    """Return a dictionary as `np.save` writes it: the format of CALVIN's annotations requires it."""
    buffer = io.BytesIO()
    box = np.empty((), dtype=object)
    np.lib.format.write_array_header_1_0(buffer, np.lib.format.header_data_from_array_1_0(box))
    box[()] = content
    pickle.dump(box, buffer, protocol=4)
    return buffer.getvalue()


@dataclass
class Moments:
    """Count, sums, sums of squares and bounds of many vectors."""

    count: int
    total: Array
    squares: Array
    low: Array
    high: Array

    @classmethod
    def of(cls, rows: Array) -> Moments:
        """Return the moments of the rows of a table [n, d]."""
        return cls(len(rows), rows.sum(0), (rows**2).sum(0), rows.min(0), rows.max(0))

    @classmethod
    def merged(cls, parts: Iterable[Moments]) -> Moments:
        """Return the moments of all parts together."""
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

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Moments:
        """Return the moments that ``json_bytes`` wrote."""
        return cls(content["count"], *(np.array(content[k]) for k in ("total", "squares", "low", "high")))


@dataclass(frozen=True)
class EpisodeEntry:
    """A finished episode, whose frames have the ids `first`..`first + frames - 1` of the split."""

    first: int
    frames: int
    scene: str
    windows: tuple[tuple[int, int, str, str], ...]  # start, end (ids of the split), task, instruction
    failed: tuple[str, ...]
    moments: Mapping[str, Moments]  # of robot_obs, scene_obs, actions
    by_policy: tuple[bool | None, ...] = ()  # of each window: whether a policy completed the task, None for an expert

    @property
    def last(self) -> int:
        return self.first + self.frames - 1

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> EpisodeEntry:
        """Return the entry that ``json_bytes`` wrote."""
        return cls(
            content["first"],
            content["frames"],
            content["scene"],
            tuple((int(a), int(b), str(task), str(text)) for a, b, task, text in content["windows"]),
            tuple(content["failed"]),
            {name: Moments.from_json(moments) for name, moments in content["moments"].items()},
            tuple(content.get("by_policy", ())),
        )


_player: Player | None = None


def record_episode(job: EpisodeJob) -> tuple[int, float]:
    """Record one episode as a folder, which appears when it is complete; return its frames and CPU seconds."""
    settings, episode, folder = job
    global _player  # the desk of the last episode is used again
    if _player is None or _player.settings != settings:
        if _player is not None:
            _player.close()
        _player = settings.player()
    began = time.process_time()
    # The name has the process number: a worker of a killed recording may still write the same episode for a moment.
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    rows: dict[str, list[Array]] = {"robot_obs": [], "scene_obs": [], "actions": []}

    def sink(number: int, frame: Frame) -> None:
        (unfinished / f"{number:06d}.npz").write_bytes(npz_bytes(frame))
        for key, values in rows.items():
            values.append(frame[key])

    played = _player.play(episode, sink)
    entry = EpisodeEntry(
        first=0,
        frames=played.frames,
        scene=settings.scene(episode),
        windows=tuple((w.start, w.end, w.task, w.instruction) for w in played.windows),
        failed=played.failed,
        moments={key: Moments.of(np.array(values)) for key, values in rows.items()},
        by_policy=tuple(w.by_policy for w in played.windows),
    )
    (unfinished / "episode.json").write_bytes(json_bytes(asdict(entry)))
    os.replace(unfinished, folder)
    return played.frames, time.process_time() - began


def write_index_files(split: Path, episodes: Sequence[EpisodeEntry], settings: Settings) -> None:
    """Write all files of a CALVIN split except the frames."""
    (split / "lang_annotations").mkdir(exist_ok=True)
    (split / ".hydra").mkdir(exist_ok=True)
    ranges = np.array([[e.first, e.last] for e in episodes], dtype=np.int64)
    write_bytes(split / "ep_start_end_ids.npy", npy_bytes(ranges))
    write_bytes(split / "ep_lens.npy", npy_bytes(np.array([e.frames for e in episodes], dtype=np.int64)))
    scenes: dict[str, list[int]] = {}
    for episode in episodes:
        scenes.setdefault(f"calvin_scene_{episode.scene}", [episode.first, episode.last])[1] = episode.last
    write_bytes(split / "scene_info.npy", pickled_npy({k: list(v) for k, v in scenes.items()}))
    write_bytes(split / "lang_annotations" / "auto_lang_ann.npy", pickled_npy(language(episodes)))
    write_bytes(split / "statistics.yaml", _yaml(statistics(episodes)))
    write_bytes(split / ".hydra" / "merged_config.yaml", _yaml(merged_config(settings)))


def language(episodes: Sequence[EpisodeEntry]) -> dict[str, Any]:
    """Return the content of auto_lang_ann.npy. `emb` is zeros, because the desk has no sentence encoder."""
    windows = [window for episode in episodes for window in episode.windows]
    return {
        "language": {
            "ann": [text for _, _, _, text in windows],
            "task": [task for _, _, task, _ in windows],
            "emb": np.zeros((len(windows), 1, EMBEDDING), dtype=np.float32),
        },
        "info": {"episodes": [], "indx": [(start, end) for start, end, _, _ in windows]},
    }


def statistics(episodes: Sequence[EpisodeEntry]) -> dict[str, Any]:
    """Return the content of statistics.yaml: mean and deviation of observations, bounds of absolute actions."""
    moments = {k: Moments.merged(e.moments[k] for e in episodes) for k in ("robot_obs", "scene_obs", "actions")}

    def rounded(values: Array) -> list[float]:
        return [round(float(v), 6) for v in values]

    target = {"_target_": "calvin_agent.utils.transforms.NormalizeVector"}
    table: dict[str, Any] = {
        key: [{**target, "mean": rounded(moments[key].mean), "std": rounded(moments[key].std)}]
        for key in ("robot_obs", "scene_obs")
    }
    return table | {
        "act_min_bound": rounded(moments["actions"].low),
        "act_max_bound": rounded(moments["actions"].high),
    }


def merged_config(settings: Settings) -> dict[str, Any]:
    """Return the environment of the recording, with the keys that evaluation reads, and the program's settings."""
    recording = {"program": settings.program, **settings.as_dict(), "versions": _versions(settings.environment)}
    if settings.environment == "calvin":
        return _calvin_config(settings) | {"recording": recording}
    shared = {"aspect": 1, "nearval": 0.01, "farval": 10}
    static = {
        "name": "static",
        "fov": cameras.STATIC_FOV,
        **shared,
        "width": settings.static_size,
        "height": settings.static_size,
        "look_from": list(cameras.STATIC_FROM),
        "look_at": list(cameras.STATIC_AT),
        "up_vector": list(cameras.STATIC_UP),
    }
    size = {"width": settings.gripper_size, "height": settings.gripper_size}
    gripper = {"name": "gripper", "fov": cameras.GRIPPER_FOV, **shared, **size}
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
        "recording": recording,
        "seed": settings.seed,
    }


def _calvin_config(settings: Settings) -> dict[str, Any]:
    """Return CALVIN's configuration of the first scene, from which its simulator can be built again."""
    from omegaconf import OmegaConf

    from policy_rollout.calvin.scenes.configuration import compose_configuration

    config = compose_configuration(settings.scenes[0], settings.static_size, settings.gripper_size)
    config.env.use_egl = settings.renderer == "egl"
    config.seed = settings.seed
    content: dict[str, Any] = OmegaConf.to_container(config)
    return content


def _versions(environment: str) -> dict[str, str]:
    shared = {"python": platform.python_version(), "numpy": np.__version__}
    if environment == "desk":
        return {"python": shared["python"], "mujoco": mujoco.__version__, "numpy": shared["numpy"]}
    return {**shared, "pybullet": version("pybullet"), "calvin_env": package_commit()}


def _yaml(content: Mapping[str, Any]) -> bytes:
    text: str = yaml.safe_dump(dict(content), sort_keys=False)
    return text.encode()


def json_bytes(content: Any) -> bytes:
    """Return ``content`` as JSON, arrays as lists."""
    return json.dumps(content, default=np.ndarray.tolist).encode()

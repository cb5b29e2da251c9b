"""Small raw and processed splits, made on the spot."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from training.data.formats.shards import PLAN, WHOLE, Plan


def frame_arrays(number: int, static: int = 20, gripper: int = 12) -> dict[str, np.ndarray]:
    """What a CALVIN frame holds, of other sizes; every number tells which frame it is of."""
    rng = np.random.default_rng(number)
    robot_obs = rng.uniform(-1, 1, 15)
    step = rng.uniform(-1, 1, 7)
    step[6] = 1.0 if number % 2 else -1.0
    action = np.concatenate([robot_obs[:3] + 0.02 * step[:3], robot_obs[3:6] + 0.05 * step[3:6], step[6:]])
    return {
        "rgb_static": rng.integers(0, 256, (static, static + 4, 3), dtype=np.uint8),
        "rgb_gripper": rng.integers(0, 256, (gripper, gripper, 3), dtype=np.uint8),
        "actions": action,
        "rel_actions": step,
        "robot_obs": robot_obs,
        "scene_obs": rng.uniform(-1, 1, 24),
    }


def write_frame(path: Path, number: int, without: Sequence[str] = (), **changed: Any) -> None:
    arrays = {key: value for key, value in frame_arrays(number).items() if key not in without} | changed
    np.savez_compressed(path, **arrays)


def write_annotations(split: Path, content: Any) -> Path:
    path = split / "lang_annotations" / "auto_lang_ann.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, content, allow_pickle=True)
    return path


def annotation_content(windows: Sequence[tuple[int, int]]) -> dict[str, Any]:
    return {
        "language": {
            "ann": [f"sentence {number}" for number in range(len(windows))],
            "task": [f"task_{number % 2}" for number in range(len(windows))],
            "emb": np.zeros((len(windows), 1, 384), dtype=np.float32),
        },
        "info": {"episodes": [], "indx": list(windows)},
    }


def raw_split(
    split: Path, ids: Sequence[int], windows: Sequence[tuple[int, int]] = (), digits: int = 7, **frame: Any
) -> Path:
    split.mkdir(parents=True)
    for number in ids:
        write_frame(split / f"episode_{number:0{digits}d}.npz", number, **frame)
    if windows:
        write_annotations(split, annotation_content(windows))
    return split


def processed_split(root: Path, lengths: Sequence[int], suffix: str = ".npz") -> Path:
    """Episodes of these lengths; frames are numbered through, and so are their actions."""
    root.mkdir(parents=True)
    episodes, number = [], 0
    for episode, length in enumerate(lengths):
        frames = []
        for _ in range(length):
            name = f"frame_{number}{suffix}"
            if suffix == ".npz":
                write_frame(root / name, number)
            else:
                Image.fromarray(frame_arrays(number)["rgb_static"]).save(root / name)
            frames.append({"dir": name, "rel_action": [number + 0.5] * 6 + [(-1.0) ** number], "abs_action": [0.0] * 7})
            number += 1
        episodes.append({"instruction": f"do thing {episode}", "frames": frames})
    (root / "dataset_info.json").write_text(json.dumps(episodes))
    return root


def edit_index(root: Path, change: Any) -> None:
    """Apply ``change(episodes)`` to a dataset_info.json."""
    path = root / "dataset_info.json"
    episodes = json.loads(path.read_text())
    path.write_text(json.dumps(change(episodes) or episodes))


@contextmanager
def opened_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the files opened through pathlib inside the block, one entry for each time."""
    names: list[str] = []
    original = Path.open

    def counted(self: Path, *args: Any, **kwargs: Any) -> Any:
        names.append(self.name)
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", counted)
        yield names


def forget(caches: Path, key: str) -> Any:
    """Take ``key`` out of what the one cache in ``caches`` is known by, as versions before that key wrote it. Returns
    its value."""
    (file,) = caches.glob(f"*/{PLAN}")
    held = json.loads(file.read_text(encoding="utf-8"))
    found = held["about"].pop(key, None)
    file.write_text(json.dumps(held), encoding="utf-8")
    whole = file.with_name(WHOLE)
    plan = Plan.from_json(held)
    whole.write_text(
        json.dumps({**json.loads(whole.read_text(encoding="utf-8")), "plan": plan.digest}), encoding="utf-8"
    )
    return found

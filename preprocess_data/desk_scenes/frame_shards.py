"""Shards of frames that are drawn or played on the desk, as a raw and a processed split at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from common.files import write_bytes
from preprocess_data.desk_demos.files import npy_bytes, pickled_npy
from training.data.formats.shards import Plan, read_plan


def require_same_settings(folder: Path, plan: Plan, key: str, content: str) -> None:
    """Raise ValueError if ``folder`` holds anything but shards of this plan.

    ``key``: field of ``plan.about`` that only this command writes; ``content``: its frames, for messages.
    """
    found = read_plan(folder)
    if found is not None and key not in found.about:
        raise ValueError(f"--out {folder}: holds shards of another command; give another --out")
    if found is not None and found != plan:
        name = next((name for name in plan.about if found.about.get(name) != plan.about[name]), "format")
        raise ValueError(
            f"--out {folder}: holds {content} with {name} {found.about.get(name)}, now it is {plan.about.get(name)}; "
            "give the same options, or another --out"
        )
    if found is None and folder.is_dir() and any(folder.glob("*.npz")):
        raise ValueError(f"--out {folder}: holds frames of a recording; give another --out")


def write_raw_files(folder: Path, count: int, scenes: Mapping[str, list[int]], env: Mapping[str, Any]) -> None:
    """Write the files of a raw split except its frames: each of ``count`` frames is a stretch of its own.

    ``scenes``: name of a scene -> its first and last frame; ``env``: options of the environment, as CALVIN records
    them.
    """
    rows = np.arange(count)
    write_bytes(folder / "ep_start_end_ids.npy", npy_bytes(np.stack([rows, rows], axis=1)))
    write_bytes(folder / "scene_info.npy", pickled_npy({f"calvin_scene_{name}": ends for name, ends in scenes.items()}))
    (folder / ".hydra").mkdir(exist_ok=True)
    config = {"env": {"_target_": "policy_rollout.desk.DeskEnv", **env}}
    write_bytes(folder / ".hydra" / "merged_config.yaml", yaml.safe_dump(config, sort_keys=False).encode())

"""Record the small desk demonstrations of the project in CALVIN's formats, and check that they are reproducible."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from common.command import as_parts
from preprocess_data import make_desk_demos, process_calvin

RAW = "calvin"
"""Folder of the raw splits: `training`, `validation`."""
TASKS = (
    "open_drawer,close_drawer,move_slider_left,move_slider_right,turn_on_led,lift_red_block_table,push_blue_block_left"
)
EPISODES = {"training": (2, 3), "validation": (1, 3)}
"""(episodes, tasks attempted in each)."""
SIZES = ("--static-size", "96", "--gripper-size", "48")
"""Pixels; CALVIN's 200 and 84 would be four times the megabytes."""
FRAMES_COMPARED = 40
PIXEL_TOLERANCE = 0.5
"""Mean absolute difference of a frame in grey levels: processors round the rays of the renderer differently."""


def write_demonstrations(folder: Path) -> None:
    """Write `folder/calvin/<split>`, and `folder/calvin_processed_<split>` which refers to it, for both splits."""
    for split in EPISODES:
        shutil.rmtree(folder / RAW / split, ignore_errors=True)  # else a complete recording would stay unchanged
        record(folder / RAW, split)
        processed = folder / f"calvin_processed_{split}"
        with as_parts():
            process_calvin.main(["--source-split-dir", str(folder / RAW / split), "--output-dir", str(processed)])


def record(folder: Path, split: str) -> None:
    """Record the raw split `folder/<split>`."""
    episodes, tasks = EPISODES[split]
    made = {"--out": folder, "--episodes": episodes, "--tasks-per-episode": tasks, "--split": split, "--tasks": TASKS}
    with as_parts():
        make_desk_demos.main([*[str(part) for pair in made.items() for part in pair], *SIZES, "--no-preview"])


def differences(committed: Path, scratch: Path) -> list[str]:
    """Record the validation split again into `scratch`, and return how its first frames differ."""
    record(scratch / RAW, "validation")
    problems = []
    remade = sorted((scratch / RAW / "validation").glob("episode_*.npz"))
    existing = sorted((committed / RAW / "validation").glob("episode_*.npz"))
    if [file.name for file in remade] != [file.name for file in existing]:
        return [f"{committed.name}/{RAW}/validation holds {len(existing)} frames, made again it has {len(remade)}"]
    for new, old in list(zip(remade, existing, strict=True))[:FRAMES_COMPARED]:
        with np.load(new) as a, np.load(old) as b:
            for key in sorted(set(a.files) | set(b.files)):
                if key not in a.files or key not in b.files or not _alike(a[key], b[key]):
                    problems.append(f"{old.relative_to(committed.parent)}: {key} differs")
    return problems


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype == np.uint8:
        return float(np.abs(a.astype(int) - b.astype(int)).mean()) <= PIXEL_TOLERANCE
    return bool(np.allclose(a, b, rtol=1e-5, atol=1e-6))

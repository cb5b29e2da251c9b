"""Locate the objects in every frame of a processed split whose frames record the state of the scene.

On the desk these are blocks, handles, button, switch and drawer; in recordings of the real CALVIN, whose furniture is
another, the blocks only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml

from common.command import progress_bar
from policy_rollout.desk.layout import SCENES, layout_of
from preprocess_data.desk_scenes.objects import (
    BLOCKS,
    OBJECTS,
    WORKSPACE,
    block_positions,
    object_of_task,
    object_positions,
)
from preprocess_data.jobs.workers import in_processes
from training.data.episode_index import ProcessedIndex, read_index
from training.data.formats import zip_reader
from training.data.object_positions import Workspace, write_positions
from training.data.readers import read_npz, read_pickled_npy

PART = 1000
"""Frames that a process reads at a time."""
CALVIN = "calvin"
"""Given in place of a layout of the desk for frames of the real CALVIN."""
PREFIX = "calvin_scene_"
Array = npt.NDArray[np.float64]


def locate(root: Path, scene: str | None = None, workers: int = 1, progress: bool = True) -> str:
    """Write the positions of the objects in the processed split ``root``, and return a line to print.

    ``scene``: layout of the desk in all frames, or ``CALVIN``; None takes it from the recordings that the frames belong
    to. Raises ValueError or FileNotFoundError naming a frame that does not record the state, or a recording that does
    not declare its layout.
    """
    index = read_index(root)
    paths = [index.frame_path(frame) for frame in range(len(index))]
    files = sorted(set(paths))
    scenes = scenes_of(files) if scene is None else [None if scene == CALVIN else scene] * len(files)
    names = BLOCKS if None in scenes else OBJECTS
    jobs = [(files[at : at + PART], scenes[at : at + PART], len(names)) for at in range(0, len(files), PART)]
    found: list[Array] = []
    with progress_bar(total=len(files), desc=f"locating objects in {root}", unit="frame", disable=not progress) as bar:
        for part in in_processes(_locate_part, jobs, workers):
            found.append(part)
            bar.update(len(part))
    row_of = {path: row for row, path in enumerate(files)}
    positions = np.concatenate(found)[[row_of[path] for path in paths]]
    objects = _objects(index, names)
    file = write_positions(index, names, Workspace(*WORKSPACE), positions, objects)
    named = int((objects >= 0).sum())
    return f"{file}: {len(names)} objects in {len(index)} frames; {named} of {index.episodes} instructions name one"


def _objects(index: ProcessedIndex, names: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the number of the object that the task of each episode names, -1 for none of ``names``."""
    named = [object_of_task(index.task(episode)) for episode in range(index.episodes)]
    return np.array([names.index(name) if name in names else -1 for name in named])


def _locate_part(job: tuple[Sequence[Path], Sequence[str | None], int]) -> Array:
    """Return the positions [n, K, 3] of the objects in n frames."""
    files, scenes, count = job
    found = np.empty((len(files), count, 3))
    for row, (path, scene) in enumerate(zip(files, scenes, strict=True)):
        if path.suffix != ".npz":
            raise ValueError(f"{path}: an image does not record the state of the scene (scene_obs of CALVIN's frames)")
        state = read_npz(path, ["scene_obs"])["scene_obs"]
        found[row] = block_positions(state) if scene is None else object_positions(layout_of(scene), state)
    return found


def scenes_of(files: Sequence[Path]) -> list[str | None]:
    """Return the layout of the desk in each frame, None for frames of the real CALVIN.

    A frame belongs to the raw split in whose folder it is, or to that of the folder above. Raises ValueError if the
    split does not declare its scenes.
    """
    ranges: dict[Path, list[tuple[int, int, str]] | None] = {}
    found: list[str | None] = []
    for path in files:
        folder = path.parent
        if folder not in ranges:
            ranges[folder] = _ranges(folder)
        scene = ranges[folder]
        found.append(None if scene is None else _scene_of(path, scene))
    return found


def _scene_of(path: Path, ranges: Sequence[tuple[int, int, str]]) -> str:
    number = int(path.stem.removeprefix("episode_"))
    for first, last, scene in ranges:
        if first <= number <= last:
            return scene
    raise ValueError(f"{path}: scene_info.npy of its recording has no range with this frame; give --scene")


def _ranges(folder: Path) -> list[tuple[int, int, str]] | None:
    """Return (first frame, last frame, layout) of a recording of the desk, None for one of the real CALVIN."""
    config, info = folder / ".hydra" / "merged_config.yaml", folder / "scene_info.npy"
    if not zip_reader.is_file(config) or not zip_reader.is_file(info):
        raise ValueError(
            f"{folder} has no .hydra/merged_config.yaml or scene_info.npy, which say where its frames were recorded; "
            f"give --scene ({', '.join(SCENES)}, or {CALVIN})"
        )
    with zip_reader.open_binary(config) as file:
        env = (yaml.safe_load(file) or {}).get("env", {})
    if "desk" not in str(env.get("_target_", "")).lower():
        return None
    content = read_pickled_npy(info)
    return [(int(first), int(last), name.removeprefix(PREFIX)) for name, (first, last) in content.items()]

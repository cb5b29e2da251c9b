"""Read the data sets of other robots for the viewer: BridgeData (raw, RLDS) and LeRobot."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path

import numpy as np

from preprocess_data.dataset_viewer.interface import ACTION_NAMES, EpisodeView, Floats, ImageArray, Label, Source
from preprocess_data.formats.bridge import (
    OBSERVATIONS,
    POLICY,
    POSITION_UNIT,
    RATE,
    ROTATION_UNIT,
    EpisodeSkipped,
    Trajectory,
    find_raw,
    find_rlds,
    read_raw,
    read_shard,
    relative_actions,
    splits_of,
)
from preprocess_data.formats.lerobot import INFO, EpisodeLocation, LerobotData, vectors
from preprocess_data.jobs.convert import Units
from training.data.readers import read_image, read_image_bytes

SHOWN = 200  # trajectories: each costs several files
FOLDERS_SEARCHED = 500
STATE = "observation.state"


class BridgeSource:
    """The first trajectories of BridgeData, with the actions that process_bridge.py makes."""

    rate: float = float(RATE)
    action_names: tuple[str, ...] = ACTION_NAMES

    def __init__(self, path: Path) -> None:
        self.path = path
        packed = find_rlds(path)
        self.kind = "BridgeData, RLDS files" if packed else "BridgeData, raw folders"
        self._folders = [] if packed else find_raw(path)
        shards = [shard for split in splits_of(packed[0]).values() for shard in split] if packed else []
        self._total = sum(shard.episodes for shard in shards) + len(self._folders)
        self._positions = list(islice(((shard, number) for shard in shards for number in range(shard.episodes)), SHOWN))
        self._trajectory = lru_cache(maxsize=4)(self._read)

    def __len__(self) -> int:
        return min(self._total, SHOWN)

    def _read(self, number: int) -> Trajectory:
        if self._folders:
            return read_raw(self._folders[number], (0,))
        shard, wanted = self._positions[number]
        for position, found in enumerate(read_shard(shard, (0,))):
            if position == wanted:
                if isinstance(found, ValueError):
                    raise found
                return found
        raise ValueError(f"{shard.path} has no episode {wanted}")

    def labels(self) -> Iterator[Label]:
        for number in range(len(self)):
            try:
                found = self._trajectory(number)
            except EpisodeSkipped:
                yield Label("", None, 1)
                continue
            yield Label(found.instruction, None, len(found))

    def _actions(self, trajectory: Trajectory) -> Floats:
        return relative_actions(trajectory, Units(POSITION_UNIT, ROTATION_UNIT, 0.5))[0]

    def actions(self) -> tuple[Iterator[Floats], str]:
        whole = len(self) == self._total
        return self._all_actions(), f"{'all' if whole else f'the first {len(self)} of {self._total}'} trajectories"

    def _all_actions(self) -> Iterator[Floats]:
        for number in range(len(self)):
            with suppress(EpisodeSkipped):  # not recorded by this camera: reported when the episode is read
                yield self._actions(self._trajectory(number))

    def notes(self) -> list[str]:
        return (
            [] if len(self) == self._total else [f"only the first {len(self)} of {self._total} trajectories are read"]
        )

    def episode(self, number: int) -> EpisodeView:
        found = self._trajectory(number)

        def image(camera: str, moment: int) -> ImageArray:
            stored = found.images[0][moment]
            return np.asarray(read_image(stored) if isinstance(stored, Path) else read_image_bytes(stored, found.where))

        return EpisodeView(
            number=number,
            title=found.instruction or "(no instruction)",
            note=found.where,
            length=len(found),
            cameras=("camera 0",),
            image=image,
            actions=self._actions(found),
        )


class LerobotSource:
    """A LeRobot data set with its actions as recorded."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = LerobotData(path)
        self.kind = f"LeRobot data set, {self._data.version}"
        self.rate = self._data.fps
        first = self._actions(self._data.episodes[0])
        self.action_names = ACTION_NAMES if first.shape[1] == 7 else tuple(map(str, range(first.shape[1])))

    def __len__(self) -> int:
        return len(self._data.episodes)

    def _actions(self, episode: EpisodeLocation) -> Floats:
        return vectors(self._data.rows(episode, ["action"])["action"], 1, f"{episode.table}: action")

    def _states(self, episode: EpisodeLocation) -> Floats | None:
        stored = self._data.rows(episode, (), (STATE,)).get(STATE)
        return None if stored is None else vectors(stored, 1, f"{episode.table}: {STATE}")

    def labels(self) -> Iterator[Label]:
        return (Label(" / ".join(episode.tasks), None, episode.length) for episode in self._data.episodes)

    def actions(self) -> tuple[Iterator[Floats], str]:
        return (self._actions(episode) for episode in self._data.episodes), "all frames"

    def notes(self) -> list[str]:
        windows = self._data.windows
        return [] if windows is None else [f"{len(windows)} annotated windows share these frames"]

    def episode(self, number: int) -> EpisodeView:
        episode = self._data.episodes[number]

        @cache
        def frames(camera: str) -> list[ImageArray]:
            return list(self._data.images(episode, camera))

        return EpisodeView(
            number=number,
            title=" / ".join(episode.tasks) or "(no task)",
            note=f"episode {episode.number}",
            length=episode.length,
            cameras=tuple(self._data.cameras),
            image=lambda camera, moment: frames(camera)[moment],
            actions=self._actions(episode),
            states=self._states(episode),
        )


def open_bridge(path: Path) -> Source | None:
    """Return BridgeData at ``path``, or None. Only the first folders are searched, since the folder may be large."""
    if not path.is_dir():
        return None
    # BridgeData has traj0 seven folders down: the number of opened folders is limited, not the depth.
    near = any({OBSERVATIONS, POLICY} & set(files) for _, _, files in islice(os.walk(path), FOLDERS_SEARCHED))
    return BridgeSource(path) if find_rlds(path) or (near and find_raw(path)) else None


def open_lerobot(path: Path) -> Source | None:
    """Return the LeRobot data set at ``path``, or None."""
    return LerobotSource(path) if (path / INFO).is_file() else None

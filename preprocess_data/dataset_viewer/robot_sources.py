"""Other robots' data sets to be looked at: BridgeData (raw, RLDS) and LeRobot."""

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
    LeftOut,
    Shard,
    Trajectory,
    find_raw,
    find_rlds,
    read_raw,
    read_shard,
    relative_actions,
    splits_of,
)
from preprocess_data.formats.lerobot import INFO, LerobotData, Place, vectors
from preprocess_data.jobs.convert import Units
from training.data.readers import read_image, read_image_bytes

LOOKED_AT = 200  # trajectories: each costs files
FOLDERS_TRIED = 500


class BridgeSource:
    """The first trajectories of BridgeData; actions as process_bridge.py makes them."""

    rate: float = float(RATE)
    action_names: tuple[str, ...] = ACTION_NAMES

    def __init__(self, path: Path) -> None:
        self.path = path
        packed = find_rlds(path)
        self.kind = "BridgeData, RLDS files" if packed else "BridgeData, raw folders"
        self._folders = [] if packed else find_raw(path)
        shards = [shard for split in splits_of(packed[0]).values() for shard in split] if packed else []
        self._all = sum(shard.episodes for shard in shards) + len(self._folders)
        self._places: list[tuple[Shard, int]] = []
        for shard in shards:
            room = LOOKED_AT - len(self._places)
            self._places += [(shard, number) for number in range(min(shard.episodes, room))]
        self._read = lru_cache(maxsize=4)(self._fresh)

    def __len__(self) -> int:
        return min(self._all, LOOKED_AT)

    def _fresh(self, number: int) -> Trajectory:
        if self._folders:
            return read_raw(self._folders[number], (0,))
        shard, wanted = self._places[number]
        for place, found in enumerate(read_shard(shard, (0,))):
            if place == wanted:
                if isinstance(found, ValueError):
                    raise found
                return found
        raise ValueError(f"{shard.path} has no episode {wanted}")

    def labels(self) -> Iterator[Label]:
        for number in range(len(self)):
            try:
                found = self._read(number)
            except LeftOut:
                yield Label("", None, 1)
                continue
            yield Label(found.instruction, None, len(found))

    def _actions(self, trajectory: Trajectory) -> Floats:
        return relative_actions(trajectory, Units(POSITION_UNIT, ROTATION_UNIT, 0.5))[0]

    def actions(self) -> tuple[Iterator[Floats], str]:
        of = "all trajectories" if len(self) == self._all else f"the first {len(self)} of {self._all} trajectories"
        return self._all_actions(), of

    def _all_actions(self) -> Iterator[Floats]:
        for number in range(len(self)):
            with suppress(LeftOut):  # not recorded by this camera: named when the episode is asked for
                yield self._actions(self._read(number))

    def notes(self) -> list[str]:
        return [] if len(self) == self._all else [f"the first {len(self)} of {self._all} trajectories are looked at"]

    def episode(self, number: int) -> EpisodeView:
        found = self._read(number)

        def image(camera: str, moment: int) -> ImageArray:
            held = found.images[0][moment]
            return np.asarray(read_image(held) if isinstance(held, Path) else read_image_bytes(held, found.where))

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
    """A LeRobot data set; actions as recorded."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = LerobotData(path)
        self.kind = f"LeRobot data set, {self._data.version}"
        self.rate = self._data.fps
        first = self._actions(self._data.episodes[0])
        self.action_names = ACTION_NAMES if first.shape[1] == 7 else tuple(map(str, range(first.shape[1])))

    def __len__(self) -> int:
        return len(self._data.episodes)

    def _actions(self, place: Place) -> Floats:
        return vectors(self._data.rows(place, ["action"])["action"], 1, f"{place.table}: action")

    def labels(self) -> Iterator[Label]:
        return (Label(" / ".join(place.tasks), None, place.length) for place in self._data.episodes)

    def actions(self) -> tuple[Iterator[Floats], str]:
        return (self._actions(place) for place in self._data.episodes), "all frames"

    def notes(self) -> list[str]:
        windows = self._data.windows
        return [] if windows is None else [f"{len(windows)} annotated windows share these frames"]

    def episode(self, number: int) -> EpisodeView:
        place = self._data.episodes[number]

        @cache
        def film(camera: str) -> list[ImageArray]:
            return list(self._data.images(place, camera))

        return EpisodeView(
            number=number,
            title=" / ".join(place.tasks) or "(no task)",
            note=f"episode {place.number}",
            length=place.length,
            cameras=tuple(self._data.cameras),
            image=lambda camera, moment: film(camera)[moment],
            actions=self._actions(place),
        )


def open_bridge(path: Path) -> Source | None:
    """Where one of the first folders is a trajectory: a large folder of something else is not walked through."""
    if not path.is_dir():
        return None
    # BridgeData's own layout has traj0 seven folders down, so what counts is how many are opened, not how deep.
    near = any({OBSERVATIONS, POLICY} & set(files) for _, _, files in islice(os.walk(path), FOLDERS_TRIED))
    return BridgeSource(path) if find_rlds(path) or (near and find_raw(path)) else None


def open_lerobot(path: Path) -> Source | None:
    return LerobotSource(path) if (path / INFO).is_file() else None

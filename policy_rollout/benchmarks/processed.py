"""Frames of a processed split (``dataset_info.json``) for offline evaluation: each episode is one annotated window."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.constants import CAMERAS, STATE_KEY
from training.data.calvin import Annotation, CalvinSplit
from training.data.dataset_spec import read_contract
from training.data.episode_index import INDEX_NAME, read_index
from training.future_view_prediction_w_action_dataset import DataProvider


class ProcessedSplit:
    """A processed split as ``CalvinSplit`` gives a raw one: frames by number, and windows with instructions.

    ``rel_actions`` are the only actions that it has.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.annotation_path = path / INDEX_NAME
        self.index = read_index(path)
        self.contract = read_contract(path).for_actions(self.index.action_dim)

    @cached_property
    def annotations(self) -> tuple[Annotation, ...]:
        """One window for each episode."""
        starts = np.asarray(self.index.starts).tolist()
        return tuple(
            Annotation(start, stop - 1, self.index.instruction(episode), self.index.task(episode))
            for episode, (start, stop) in enumerate(pairwise(starts))
        )

    def crossing(self, windows: Sequence[Annotation]) -> list[Annotation]:
        """Return no window: an episode lies in one recording."""
        return []

    def frame(self, index: int, keys: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Return the images, ``rel_actions`` and ``robot_obs`` of one frame, as far as ``keys`` names them."""
        cameras = [camera for camera in CAMERAS if camera in keys]
        found: dict[str, NDArray[Any]] = {}
        if cameras:
            images = self._provider(CAMERAS.index(cameras[-1]) + 1).images(index)
            found = {camera: images[CAMERAS.index(camera)] for camera in cameras}
        if "rel_actions" in keys:
            found["rel_actions"] = self.index.actions[index]
        if STATE_KEY in keys and self.index.states is not None:
            found[STATE_KEY] = self.index.states[index]
        missing = [key for key in keys if key not in found]
        if missing:
            raise ValueError(f"{self.path}: a processed split has no {missing[0]!r}; allowed: rel_actions")
        return found

    def _provider(self, views: int) -> DataProvider:
        if views not in self._providers:
            self._providers[views] = DataProvider(self.path, act_step=1, resolution=1, num_view=views)
        return self._providers[views]

    @cached_property
    def _providers(self) -> dict[int, DataProvider]:
        return {}


def open_split(path: Path) -> CalvinSplit | ProcessedSplit:
    """Return the split in a folder: processed if it holds ``dataset_info.json``, else raw."""
    return ProcessedSplit(path) if (path / INDEX_NAME).is_file() else CalvinSplit(path)

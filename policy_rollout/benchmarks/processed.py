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

    It has ``rel_actions`` and, if they were recorded, ``expert_actions``.
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

    @property
    def action_keys(self) -> tuple[str, ...]:
        """The actions that its frames have."""
        return ("rel_actions",) if self.index.expert_actions is None else ("rel_actions", "expert_actions")

    def crossing(self, windows: Sequence[Annotation]) -> list[Annotation]:
        """Return no window: an episode lies in one recording."""
        return []

    def frame(self, index: int, keys: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Return the images, actions and ``robot_obs`` of one frame, as far as ``keys`` names them."""
        cameras = [camera for camera in CAMERAS if camera in keys]
        found: dict[str, NDArray[Any]] = {}
        if cameras:
            images = self._provider(CAMERAS.index(cameras[-1]) + 1).images(index)
            found = {camera: images[CAMERAS.index(camera)] for camera in cameras}
        if "rel_actions" in keys:
            found["rel_actions"] = self.index.actions[index]
        for key, column in {STATE_KEY: self.index.states, "expert_actions": self.index.expert_actions}.items():
            if key in keys and column is not None:
                found[key] = column[index]
        missing = [key for key in keys if key not in found]
        if missing:
            allowed = ", ".join(self.action_keys)
            raise ValueError(f"{self.path}: a processed split has no {missing[0]!r}; allowed: {allowed}")
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

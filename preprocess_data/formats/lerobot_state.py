"""Read the robot's state from a column of a LeRobot data set: which of its numbers are position, rotation and gripper.

Shape letters: n frames, S state size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from common.constants import action_layout
from preprocess_data.formats.lerobot import EpisodeLocation, LerobotData
from preprocess_data.formats.lerobot_names import state_declaration

STATE = "observation.state"
NO_STATE = "none"
"""Value of --state-key that leaves the state out."""
LARGEST_ANGLE = 4 * np.pi
"""Radians. A larger Euler angle is in degrees."""


def parse_groups(given: Sequence[str]) -> dict[str, list[int]]:
    """Return the indices by group of texts such as ``position=0,1,2``. Raises ValueError naming --state-groups."""
    groups = {}
    for text in given:
        name, _, indices = text.partition("=")
        try:
            groups[name] = [int(index) for index in indices.split(",")]
        except ValueError:
            raise ValueError(f"--state-groups {text}: give a group and its indices, such as position=0,1,2") from None
    return groups


@dataclass(frozen=True)
class StateColumn:
    """A column with the robot's state. ``declared``: its declaration in a contract."""

    key: str
    declared: Mapping[str, Any]

    @classmethod
    def of(
        cls, data: LerobotData, key: str, groups: Mapping[str, Sequence[int]], rotation: str = "euler_xyz"
    ) -> StateColumn | None:
        """Return the state of a data set; None without one.

        ``groups``: indices by group, their rotation is ``rotation``; empty: as the column's names declare them. Raises
        ValueError naming the option.
        """
        columns = ", ".join(data.features)
        if key == NO_STATE or (key == STATE and key not in data.features):
            if groups:
                raise ValueError(f"--state-groups: no state is read; --state-key names its column, one of {columns}")
            return None
        if key not in data.features:
            raise ValueError(f"--state-key {key}: {data.root} has no such column; it has {columns}")
        dim = data.numbers(data.episodes[0], key, 1).shape[1]
        if not groups:
            return cls(key, state_declaration(data.features[key], dim, str(data.info.get("robot_type"))))
        declared = {"dim": dim, "groups": dict(groups), "rotation": rotation}
        try:
            action_layout(declared, "state")
        except ValueError as error:
            raise ValueError(f"--state-groups: {error}") from None
        return cls(key, declared)

    def read(self, data: LerobotData, episode: EpisodeLocation) -> npt.NDArray[np.float32]:
        """Return the states [n, S] of an episode. Raises ValueError for another S than in the first episode."""
        states, dim = data.numbers(episode, self.key, 1), self.declared["dim"]
        if states.shape[1] != dim:
            raise ValueError(
                f"{episode.table}: {self.key} has {states.shape[1]} numbers in episode {episode.number}, but {dim} in "
                "the first one"
            )
        return states

    def check(self, data: LerobotData, episode: EpisodeLocation) -> None:
        """Raise ValueError if an episode's Euler angles cannot be radians."""
        if not str(self.declared.get("rotation")).startswith("euler"):
            return
        angles = np.abs(self.read(data, episode)[:, list(action_layout(self.declared, "state").rotation)])
        if angles.max(initial=0) > LARGEST_ANGLE:
            raise ValueError(
                f"{episode.table}: {self.key} has an angle of {angles.max():.4g} in frame "
                f"{int(angles.max(axis=1).argmax())} of episode {episode.number}, which is in degrees; convert it to "
                f"radians, or set --state-key {NO_STATE}"
            )

    def __str__(self) -> str:
        groups = self.declared["groups"]
        parts = ", ".join(f"{name} {indices}" for name, indices in groups.items())
        if not parts:
            return (
                f"the {self.declared['dim']} numbers of {self.key}, whose meaning is not declared "
                "(proprioception=pose needs --state-groups)"
            )
        return f"{parts} of the {self.declared['dim']} numbers of {self.key}, rotation {self.declared['rotation']}"

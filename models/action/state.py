"""Features of the robot's state that the network reads in addition to images (``model.vla.proprioception``).

A state is S numbers of one frame, as the robot measures them. ``pose`` features are its position, normalised by the
mean and standard deviation of the training data, the sines and then the cosines of the Euler angles, and the gripper
command.

Legend: S state size, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common.constants import CALVIN_STATE, CALVIN_STATE_DIM, STATE_KEY, action_layout

CONSTANT = 1e-6
"""Largest standard deviation of a constant, relative to its mean: float32 rounds by as much."""


@dataclass(frozen=True)
class StateConvention:
    """Meaning of a state's numbers.

    ``position``, ``rotation``, ``gripper``: indices; ``angles``: name of the rotation's numbers. Names that begin with
    ``euler`` mean angles in radians, which become sines and cosines; other rotations are read as they are. ``mean``,
    ``std``: of each position number, in the robot's units.
    """

    dim: int
    position: tuple[int, ...]
    rotation: tuple[int, ...]
    gripper: tuple[int, ...]
    angles: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, declared: Mapping[str, Any], mean: Mapping[int, float], std: Mapping[int, float]) -> StateConvention:
        """Return the convention of a declaration (``dim``, ``groups``, ``rotation``) and statistics by index.

        Raises ValueError if the declaration is wrong or names no number that ``pose`` reads.
        """
        layout = action_layout(declared, "state")
        position = layout.position
        if not (position or layout.rotation or layout.gripper):
            raise ValueError(
                f"state.groups names no position, rotation or gripper among the {layout.dim} numbers of a state; "
                "declare them, or set model.vla.proprioception=none"
            )
        return cls(
            layout.dim,
            position,
            layout.rotation,
            layout.gripper,
            str(declared.get("rotation", CALVIN_STATE["rotation"])),
            tuple(float(mean[index]) for index in position),
            tuple(float(std[index]) for index in position),
        )

    @property
    def features(self) -> int:
        """F, features of one state."""
        turns = 2 if self._is_euler else 1
        return len(self.position) + turns * len(self.rotation) + len(self.gripper)

    @property
    def _is_euler(self) -> bool:
        return self.angles.startswith("euler")

    def apply(self, states: Tensor) -> Tensor:
        """Return float32 features [..., F] of states [..., S]. A position number that is constant in the data (up to
        rounding) is centred and not scaled."""
        states = states.float()
        mean, std = (torch.tensor(row, device=states.device) for row in (self.mean, self.std))
        position = (states[..., list(self.position)] - mean) / torch.where(
            std > CONSTANT * mean.abs().clamp_min(1), std, 1.0
        )
        rotation = states[..., list(self.rotation)]
        turns = [rotation.sin(), rotation.cos()] if self._is_euler else [rotation]
        return torch.cat([position, *turns, states[..., list(self.gripper)]], dim=-1)

    def read(self, observed: Sequence[object]) -> Tensor:
        """Return the features [B, F] of the states of B observations.

        Raises ValueError for a state that is missing or does not have ``dim`` finite numbers.
        """
        rows = []
        for state in observed:
            if state is None:
                raise ValueError(
                    "this model reads the robot's state (model.vla.proprioception=pose), but the observation has no "
                    f"{STATE_KEY}; send its {self.dim} numbers"
                )
            rows.append(_float32(state))
            if rows[-1].shape != (self.dim,) or not np.isfinite(rows[-1]).all():
                found = " ".join(repr(state).split())  # NumPy breaks lines
                raise ValueError(f"this model reads a {STATE_KEY} of {self.dim} finite numbers, found {found}")
        return self.apply(torch.from_numpy(np.stack(rows)))

    def to_json(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StateConvention:
        """Return the convention of ``to_json``. Raises ValueError if it is none."""
        try:
            position, rotation, gripper = (tuple(map(int, data[name])) for name in ("position", "rotation", "gripper"))
            mean, std = (tuple(map(float, data[name])) for name in ("mean", "std"))
            found = cls(int(data["dim"]), position, rotation, gripper, str(data["angles"]), mean, std)
        except (KeyError, TypeError, ValueError):
            found = None
        if found is None or not len(found.position) == len(found.mean) == len(found.std):
            raise ValueError(
                f"state must have {', '.join(f.name for f in fields(cls))}, with a mean and std of each position number"
            )
        indices = (*found.position, *found.rotation, *found.gripper)
        if not all(0 <= index < found.dim for index in indices):
            raise ValueError(f"state has indices {sorted(indices)}, which must lie between 0 and {found.dim - 1}")
        return found


def _float32(numbers: Any) -> npt.NDArray[np.float32]:
    """Return numbers as float32; an empty array for what is no array of numbers."""
    try:
        with np.errstate(over="ignore"):  # infinity is refused
            return np.array(numbers, dtype=np.float32)
    except (TypeError, ValueError):
        return np.empty(0, dtype=np.float32)


def calvin_state() -> StateConvention:
    """Return the convention of CALVIN's ``robot_obs`` without statistics of data: positions are read in metres."""
    rows = range(CALVIN_STATE_DIM)
    return StateConvention.of(CALVIN_STATE, dict.fromkeys(rows, 0.0), dict.fromkeys(rows, 1.0))

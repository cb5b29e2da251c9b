"""Interface of a policy: observations, action conventions, actions. Imports no torch: simulator processes import it.

Shape letters: B observations, T actions per chunk, A action size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from common.constants import CALVIN_ACTION_DIM, ActionLayout, action_layout
from common.constants import CAMERAS as CAMERAS

ACTION_KEYS = ("rel_actions", "actions", "expert_actions")
"""Recorded actions that offline evaluation compares with."""
ACTION_DECODERS = ("regression", "block_diffusion")
"""Sources of actions: the regression head, or decoded action tokens."""


@dataclass(frozen=True)
class Observation:
    """Observation of one control step.

    `rgb_static`, `rgb_gripper`: uint8 HWC of any size (two-view models alone need the gripper's);
    `robot_obs`: the robot's state, in CALVIN 15 numbers (models with `model.vla.proprioception=pose` alone need it);
    `codes`: int16 [V, n] from a token cache; the images are then not read and may be empty.
    """

    rgb_static: NDArray[np.uint8]
    instruction: str
    rgb_gripper: NDArray[np.uint8] | None = None
    robot_obs: NDArray[np.floating[Any]] | None = None
    codes: NDArray[np.int16] | None = None


@dataclass(frozen=True)
class ActionConvention:
    """Meaning of the numbers of an action. The defaults are CALVIN's `rel_actions`; a saved model has its own
    (`DataSpec.action_convention` has these fields)."""

    kind: str = "relative"
    """relative: added to the last target; relative_to_measured: to the measured pose; absolute: the pose itself."""
    frame: str = "world"
    position_m_per_unit: float = 0.02
    rotation_rad_per_unit: float = 0.05
    rotation: str = "euler_xyz"
    gripper: str = "-1 closed, +1 open"
    rate_hz: float = 30
    """Actions per second."""
    dim: int = CALVIN_ACTION_DIM
    groups: Mapping[str, Sequence[int]] | None = None
    """Indices of ``position``, ``rotation`` and ``gripper``; None: CALVIN's for seven numbers, else not declared."""

    @property
    def layout(self) -> ActionLayout:
        return action_layout({"dim": self.dim, "groups": self.groups})

    def to_json(self) -> dict[str, Any]:
        """Return the fields; without ``dim`` and ``groups`` if they are CALVIN's, as older versions read them."""
        fields = asdict(self)
        if fields["groups"] is None:
            del fields["groups"]
            if fields["dim"] == CALVIN_ACTION_DIM:
                del fields["dim"]
        return fields


def require_same_convention(policy: ActionConvention, benchmark: ActionConvention, name: str) -> None:
    """Raise `ValueError` naming every field in which the conventions of the policy and of benchmark `name` differ.

    Checked before a run, because the effect of a wrong scale or gripper sign looks like a bad policy.
    """
    ours, theirs = asdict(policy), asdict(benchmark)
    differing = [f"{key} {ours[key]} (policy) vs {theirs[key]}" for key in ours if ours[key] != theirs[key]]
    if differing:
        raise ValueError(f"{name} executes another kind of action than the policy returns: {'; '.join(differing)}")


class Policy(Protocol):
    """Anything that returns actions. Takes a batch of observations, so that one forward serves many robots."""

    @property
    def convention(self) -> ActionConvention: ...

    @property
    def act_step(self) -> int:
        """T, actions per chunk."""
        ...

    @property
    def cameras(self) -> tuple[str, ...]:
        """The ones of `CAMERAS` that the policy reads; the others need not be rendered."""
        ...

    def reset(self) -> None:
        """Clear all state. Called before a run starts."""
        ...

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float32]:
        """Return chunks [B, T, A] for B >= 1 observations, independent of each other and of their order."""
        ...

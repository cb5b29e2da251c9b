"""Interface of a policy: observations, action conventions, actions. Imports no torch: simulator processes import it.

Shape letters: B observations, T actions per chunk, A action size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from common.constants import (
    ACTION_GROUPS,
    CALVIN_ACTION_DIM,
    CALVIN_STATE,
    ActionLayout,
    action_layout,
)
from common.constants import CAMERAS as CAMERAS

ACTION_KEYS = ("rel_actions", "actions", "expert_actions")
"""Recorded actions that offline evaluation compares with."""
ACTION_DECODERS = ("regression", "block_diffusion", "language")
"""Sources of actions: the regression head, decoded action tokens, or spoken sentences."""


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


@dataclass(frozen=True)
class StateLayout(ActionLayout):
    """Meaning of the robot's state that a policy reads; its other numbers are not read. ``angles``: the name of the
    rotation's numbers (``euler_xyz``: radians)."""

    angles: str = "euler_xyz"

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> StateLayout:
        """Return the layout of ``to_json`` or of a saved model's ``state``, whose other fields are not used."""
        rows = {name: tuple(map(int, fields[name])) for name in ("position", "rotation", "gripper")}
        return cls(int(fields["dim"]), **rows, angles=str(fields["angles"]))

    def to_json(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def __str__(self) -> str:
        groups = ", ".join(f"{name} {list(getattr(self, name))}" for name in ACTION_GROUPS if getattr(self, name))
        return f"{self.dim} numbers ({groups}; {self.angles})"

    def check(self, state: NDArray[Any] | None, name: str) -> NDArray[Any]:
        """Return the state if it has ``dim`` finite numbers. Raises `ValueError` naming it by ``name``."""
        if state is None:
            raise ValueError(f"{name} is missing: this model reads the robot's state, {self.dim} numbers")
        if not isinstance(state, np.ndarray) or state.dtype.kind not in "fiu" or state.shape != (self.dim,):
            found = f"{state.dtype} {list(state.shape)}" if isinstance(state, np.ndarray) else type(state).__name__
            raise ValueError(f"{name} must be the robot's state, {self.dim} numbers, got {found}")
        with np.errstate(over="ignore"):
            finite = np.isfinite(state.astype(np.float32)).all()  # as the network reads it
        if not finite:
            raise ValueError(f"{name} has a number that is not finite")
        return state


ROBOT_OBS = StateLayout(**asdict(action_layout(CALVIN_STATE, "state")))
"""CALVIN's state."""


def state_read_by(policy: Policy) -> StateLayout | None:
    """Return the state that a policy reads (its ``state``); None if it reads none, as policies without it."""
    found: StateLayout | None = getattr(policy, "state", None)
    return found


def image_rotation_of(policy: Policy) -> int | None:
    """Return the degrees by which the images that a policy was trained on are rotated against those of their camera;
    None for policies that declare none."""
    found: int | None = getattr(policy, "image_rotation", None)
    return found


def require_calvin_state(policy: Policy, name: str) -> None:
    """Raise `ValueError` if a policy reads another state than `robot_obs`, which every environment gives, or rotated
    images.

    A policy may read further numbers of `robot_obs` as positions, such as the distance of the fingers (the desk's
    moments). Checked before a run, as `require_same_convention`, with benchmark ``name``.
    """
    if turned := image_rotation_of(policy):
        raise ValueError(f"{name} gives images as its cameras do; the policy reads images rotated by {turned} degrees")
    layout = state_read_by(policy)
    if layout is None:
        return
    if replace(layout, position=ROBOT_OBS.position) != ROBOT_OBS or not {*ROBOT_OBS.position} <= {*layout.position}:
        raise ValueError(f"{name} gives CALVIN's robot_obs, {ROBOT_OBS}; the policy reads another state, {layout}")


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


@runtime_checkable
class ImagePredictor(Protocol):
    """A policy that predicts image codes of the frames T steps ahead together with its actions."""

    @property
    def predicts_with_actions(self) -> bool:
        """Whether one pass of the network gives both."""
        ...

    def act_with_codes(self, observations: Sequence[Observation]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return (the chunks of `act`, the predicted codes [B, N], camera views in sequence)."""
        ...

    def decode(self, codes: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images of codes [B, N], uint8 [B, V, R, R, 3]."""
        ...

"""What acts and what it sees. No network is needed to know this: simulators in processes of their own import it too.

Shape letters: B observations, T actions per chunk, A action size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from common.robot import CALVIN_ACTION_DIM, ActionLayout, action_layout
from common.robot import CAMERAS as CAMERAS

ACTION_KEYS = ("rel_actions", "actions")
"""Recorded actions that can be compared with."""
ACTION_DECODERS = ("regression", "block_diffusion")
"""What can make actions: the regression head, or the decoding of action tokens."""


@dataclass(frozen=True)
class Observation:
    """What a robot sees at one moment.

    `rgb_static`, `rgb_gripper`: uint8 HWC of any size (the gripper's is needed by two-view models only);
    `robot_obs`: CALVIN's 15 proprioceptive numbers, for policies that want them (UP-VLA does not);
    `codes`: int16 [V, n], what the image tokenizer once made of the images (a token cache); the images are then
    not looked at, and may be empty.
    """

    rgb_static: NDArray[np.uint8]
    instruction: str
    rgb_gripper: NDArray[np.uint8] | None = None
    robot_obs: NDArray[np.floating[Any]] | None = None
    codes: NDArray[np.int16] | None = None


@dataclass(frozen=True)
class ActionConvention:
    """What the numbers of an action mean. The defaults are CALVIN's `rel_actions`; a saved model carries its own
    (`DataSpec.action_convention` has these fields)."""

    kind: str = "relative"
    """relative: added to the last target; relative_to_measured: to where the hand is; absolute: the pose itself."""
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


def require_same_convention(policy: ActionConvention, benchmark: ActionConvention, judge: str) -> None:
    """Raises `ValueError` naming every field in which the policy's actions mean something else than `judge` executes.

    Compared at start, because a wrong scale or gripper sign looks exactly like a bad policy.
    """
    ours, theirs = asdict(policy), asdict(benchmark)
    differing = [f"{name} {ours[name]} (policy) vs {theirs[name]}" for name in ours if ours[name] != theirs[name]]
    if differing:
        raise ValueError(f"{judge} means other actions than the policy produces: {'; '.join(differing)}")


class Policy(Protocol):
    """Anything that acts. A batch of observations, so that one forward can serve many robots."""

    @property
    def convention(self) -> ActionConvention: ...

    @property
    def act_step(self) -> int:
        """T, actions per chunk."""
        ...

    @property
    def cameras(self) -> tuple[str, ...]:
        """Which of `CAMERAS` it looks at; nobody needs to read or render the others."""
        ...

    def reset(self) -> None:
        """Forget everything seen so far. Called before a run starts."""
        ...

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float32]:
        """Chunks [B, T, A] for B >= 1 observations, independent of each other and of their order."""
        ...

"""From an observation to actions: the one path that evaluation, serving and one's own robot use.

    pictures --images.fit--> [3,R,R] --MagVIT--> codes --robot_sequence--> UPVLA.predict --> chunk of T actions

Shape letters: B observations, T actions per chunk, A action size (7), V views, R resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

ACTION_SIZE = 7
CAMERAS = ("rgb_static", "rgb_gripper")
"""In the order of a model's views."""


@dataclass(frozen=True)
class Observation:
    """What a robot sees at one moment.

    `rgb_static`, `rgb_gripper`: uint8 HWC of any size (the gripper's is needed by two-view models only);
    `robot_obs`: CALVIN's 15 proprioceptive numbers, for policies that want them (UP-VLA does not).
    """

    rgb_static: NDArray[np.uint8]
    instruction: str
    rgb_gripper: NDArray[np.uint8] | None = None
    robot_obs: NDArray[np.floating[Any]] | None = None


@dataclass(frozen=True)
class ActionConvention:
    """What the seven numbers of an action mean. The defaults are CALVIN's `rel_actions`; a saved model carries its own
    (`ModelSpec.action_convention` has these fields)."""

    kind: str = "relative"
    """relative: added to the last target pose; absolute: the pose itself."""
    frame: str = "world"
    position_m_per_unit: float = 0.02
    rotation_rad_per_unit: float = 0.05
    rotation: str = "euler_xyz"
    gripper: str = "-1 closed, +1 open"
    rate_hz: float = 30
    """Actions per second."""


def require_same_convention(policy: ActionConvention, benchmark: ActionConvention, judge: str) -> None:
    """Raises `ValueError` naming every field in which the policy's actions mean something else than `judge` executes.

    Compared at start, because a wrong scale or gripper sign looks exactly like a bad policy.
    """
    ours, theirs = asdict(policy), asdict(benchmark)
    differing = [f"{name} {ours[name]} (policy) vs {theirs[name]}" for name in ours if ours[name] != theirs[name]]
    if differing:
        raise ValueError(f"{judge} executes other actions than the policy produces: {'; '.join(differing)}")


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


class ConstantPolicy:
    """Always the same action. With the mean of the training actions it is the baseline that any learner must beat."""

    cameras = CAMERAS[:1]

    def __init__(self, action: NDArray[np.float32], act_step: int, convention: ActionConvention | None = None) -> None:
        if np.shape(action) != (ACTION_SIZE,):
            raise ValueError(f"a constant action has {ACTION_SIZE} numbers, got shape {np.shape(action)}")
        self.action = np.asarray(action, dtype=np.float32)
        self.act_step = act_step
        self.convention = convention or ActionConvention()

    def reset(self) -> None:
        """Nothing to forget."""

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float32]:
        return np.tile(self.action, (len(observations), self.act_step, 1))


class RandomPolicy:
    """Uniform actions in [-1, 1] with a gripper that opens or closes at random: what chance alone achieves."""

    cameras = CAMERAS[:1]

    def __init__(self, act_step: int, seed: int = 0, convention: ActionConvention | None = None) -> None:
        self.act_step = act_step
        self.convention = convention or ActionConvention()
        self._seed = seed
        self.reset()

    def reset(self) -> None:
        """Starts the random numbers again, so that a run can be repeated."""
        self._rng = np.random.default_rng(self._seed)

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float32]:
        shape = (len(observations), self.act_step, ACTION_SIZE)
        chunks = self._rng.uniform(-1, 1, size=shape).astype(np.float32)
        chunks[..., 6] = np.where(chunks[..., 6] >= 0, 1.0, -1.0)
        return chunks

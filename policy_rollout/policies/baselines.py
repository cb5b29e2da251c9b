"""Policies without a network: baselines for every trained one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from policy_rollout.policies.interface import CAMERAS, ActionConvention, Observation


class ConstantPolicy:
    """Always returns one action. With the mean of the training actions it is a baseline for every trained policy."""

    cameras = CAMERAS[:1]

    def __init__(self, action: NDArray[np.float32], act_step: int, convention: ActionConvention | None = None) -> None:
        self.convention = convention or ActionConvention()
        if np.shape(action) != (self.convention.dim,):
            raise ValueError(f"a constant action has {self.convention.dim} numbers, got shape {np.shape(action)}")
        self.action = np.asarray(action, dtype=np.float32)
        self.act_step = act_step

    def reset(self) -> None:
        """Do nothing: there is no state."""

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float32]:
        return np.tile(self.action, (len(observations), self.act_step, 1))


class RandomPolicy:
    """Returns uniform actions in [-1, 1] with a gripper that opens or closes at random: a baseline."""

    cameras = CAMERAS[:1]

    def __init__(self, act_step: int, seed: int = 0, convention: ActionConvention | None = None) -> None:
        self.act_step = act_step
        self.convention = convention or ActionConvention()
        self._seed = seed
        self.reset()

    def reset(self) -> None:
        """Restart the random numbers, so that a run is reproducible."""
        self._rng = np.random.default_rng(self._seed)

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float32]:
        shape = (len(observations), self.act_step, self.convention.dim)
        chunks = self._rng.uniform(-1, 1, size=shape).astype(np.float32)
        gripper = list(self.convention.layout.gripper)
        chunks[..., gripper] = np.where(chunks[..., gripper] >= 0, 1.0, -1.0)
        return chunks

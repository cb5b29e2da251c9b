"""Blind controls of a policy: part of its observation is exchanged, to measure what its actions depend on."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from common.command import phase_bar
from policy_rollout.policies.interface import ActionConvention, Observation, Policy


def with_images_of(observation: Observation, other: Observation) -> Observation:
    """Return the observation with the images of another one."""
    return replace(observation, rgb_static=other.rgb_static, rgb_gripper=other.rgb_gripper, codes=other.codes)


class ExchangedImages:
    """A policy that gets images of other frames, with the instruction and the state of the true observation.

    ``others``: observations whose images replace the true ones. Which of them is determined by the true image, so that
    outcomes do not depend on the order of observations. One observation: its images always, and the policy acts by
    instruction and state alone.
    """

    def __init__(self, policy: Policy, others: Sequence[Observation]) -> None:
        if not others:
            raise ValueError("images of other frames are needed, got none")
        self.policy = policy
        self.others = others

    @property
    def convention(self) -> ActionConvention:
        return self.policy.convention

    @property
    def act_step(self) -> int:
        return self.policy.act_step

    @property
    def cameras(self) -> tuple[str, ...]:
        return self.policy.cameras

    def reset(self) -> None:
        self.policy.reset()

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float32]:
        return self.policy.act([with_images_of(one, self._other(one)) for one in observations])

    def _other(self, observation: Observation) -> Observation:
        image = np.ascontiguousarray(observation.rgb_static)
        return self.others[zlib.crc32(image.tobytes()) % len(self.others)]


def action_change(
    policy: Policy, observations: Sequence[Observation], exchanged: Sequence[Observation]
) -> tuple[float, float]:
    """Return the RMS change of the actions if observations are exchanged, and the RMS of the actions themselves.

    All numbers of whole chunks but the gripper's, in units of the actions. 0: the policy ignores what is exchanged.
    """
    moving = list(policy.convention.layout.motion)
    true, other = (np.concatenate(list(_chunks(policy, some)))[..., moving] for some in (observations, exchanged))
    return _rms(other - true), _rms(true)


def _chunks(policy: Policy, observations: Sequence[Observation], batch: int = 32) -> list[NDArray[np.float32]]:
    starts = phase_bar(range(0, len(observations), batch), desc="exchanged inputs", unit="batch")
    return [policy.act(observations[start : start + batch]) for start in starts]


def _rms(values: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))

"""Blind controls: what a policy sees is exchanged, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from policy_rollout.policies.controls import ExchangedImages, action_change, with_images_of
from policy_rollout.policies.interface import Observation
from tests.policy.counting import Still


class Brightness(Still):
    """Acts by the mean of the image; the instruction adds 1 if it is `up`."""

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float32]:
        chunks = super().act(observations)
        for chunk, seen in zip(chunks, observations, strict=True):
            chunk[:, :6] = seen.rgb_static.mean() + (seen.instruction == "up")
            chunk[:, 6] = 100 * seen.rgb_static.mean()
        return chunks


def seen(value: int, instruction: str = "") -> Observation:
    return Observation(np.full((2, 2, 3), value, np.uint8), instruction, robot_obs=np.full(15, value))


def test_images_are_exchanged_by_those_of_the_pool_whatever_the_order() -> None:
    policy = ExchangedImages(Brightness(), [seen(v) for v in (50, 60, 70)])
    observations = [seen(v, "up") for v in range(8)]
    forward, backward = policy.act(observations), policy.act(observations[::-1])
    assert np.array_equal(forward, backward[::-1])
    assert {float(value) for value in forward[:, 0, 0]} <= {51.0, 61.0, 71.0}
    assert len({float(value) for value in forward[:, 0, 0]}) > 1


def test_one_image_in_the_pool_blinds_the_policy() -> None:
    policy = ExchangedImages(Brightness(), [seen(50)])
    assert np.ptp(policy.act([seen(v) for v in range(8)])) == np.ptp(policy.act([seen(0)]))
    assert (policy.act_step, policy.cameras, policy.convention) == (Still.act_step, Still.cameras, Still().convention)
    with pytest.raises(ValueError, match="images of other frames are needed"):
        ExchangedImages(Brightness(), [])


def test_instruction_and_state_stay_when_images_are_exchanged() -> None:
    found = with_images_of(seen(1, "up"), seen(2, "down"))
    assert found.instruction == "up"
    assert found.robot_obs is not None
    assert found.robot_obs[0] == 1
    assert found.rgb_static[0, 0, 0] == 2


def test_the_change_of_actions_is_measured_without_the_gripper() -> None:
    down, up = [seen(v) for v in (0, 2)], [seen(v, "up") for v in (0, 2)]
    change, size = action_change(Brightness(), down, up)
    assert change == pytest.approx(1)
    assert size == pytest.approx(2**0.5)
    assert action_change(Brightness(), down, [seen(v, "other") for v in (0, 2)])[0] == 0

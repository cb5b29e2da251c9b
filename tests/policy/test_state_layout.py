"""Which states a policy may read in a rollout."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policy_rollout.policies.interface import ROBOT_OBS, StateLayout, require_calvin_state
from tests.policy.counting import Still


class Reader(Still):
    state: StateLayout | None = None


@pytest.mark.parametrize(
    ("layout", "accepted"),
    [
        (None, True),
        (ROBOT_OBS, True),
        (replace(ROBOT_OBS, position=(0, 1, 2, 6)), True),  # moments declare the distance of the fingers too
        (replace(ROBOT_OBS, position=(0, 1)), False),
        (replace(ROBOT_OBS, rotation=()), False),
        (replace(ROBOT_OBS, angles="quaternion_xyzw"), False),
        (StateLayout(7, (0, 1, 2), (3, 4, 5), (6,)), False),
    ],
)
def test_a_policy_may_read_more_of_the_calvin_state_and_no_other_state(
    layout: StateLayout | None, accepted: bool
) -> None:
    policy = Reader()
    policy.state = layout
    if accepted:
        require_calvin_state(policy, "the desk")
        return
    with pytest.raises(ValueError, match="the policy reads another state"):
        require_calvin_state(policy, "the desk")

"""The embedded desk, put into CALVIN's initial states, reads as those states, and idling does no task."""

from __future__ import annotations

import numpy as np
import pytest

from policy_rollout.calvin.initial_states import INITIAL_STATES, initial_state
from policy_rollout.calvin.oracle import TaskOracle
from policy_rollout.calvin.scene_state import Regions, symbolic_state
from policy_rollout.calvin.symbolic import thaw
from policy_rollout.desk.env import DeskEnv
from policy_rollout.desk.layout import SLIDE_RANGE, layout_of


@pytest.mark.parametrize("scene", ["A", "B", "C", "D"])
def test_an_initial_state_on_the_desk_reads_as_itself(scene):
    env = DeskEnv(scene=scene)
    regions = Regions(shelf_split_x=layout_of(scene).door_x - SLIDE_RANGE[1] / 2)
    for state in INITIAL_STATES[::19]:
        robot_obs, scene_obs = initial_state(thaw(state))
        env.reset(robot_obs=robot_obs, scene_obs=scene_obs)
        start = env.get_info()
        for _ in range(3):
            env.step(np.array([0, 0, 0, 0, 0, 0, 1.0]), render=False)
        obs, info = env.get_obs(render=False), env.get_info()
        assert symbolic_state(obs["scene_obs"], info=info, regions=regions) == thaw(state)
        assert symbolic_state(obs["scene_obs"], obs["robot_obs"], regions=regions) == thaw(state)
        assert TaskOracle().tasks_done(start, info) == set()
    env.close()

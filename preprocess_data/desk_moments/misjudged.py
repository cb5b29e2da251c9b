"""Attempts that fail as those of a network do: an expert with wrong positions of the blocks, and the right actions.

A network estimates the position of a block from images, to some centimetres. It grasps beside the block, and continues
from states that no expert reaches. Here an expert plays with wrong positions, and another one, which has the right
ones, observes every frame. The labels are the actions of the second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from policy_rollout.desk import layout as L
from policy_rollout.desk.experts.motion import DeskState
from policy_rollout.desk.experts.policy import ScriptedExpert
from policy_rollout.desk.layout import Layout

POSITION_ERROR = 0.03
"""Standard deviation of a block's wrong x and y, metres: the error of a trained network in the first image."""
YAW_ERROR = 0.2
"""Standard deviation of a block's wrong yaw, rad."""
AGAIN = 0.6
"""Factor of both after each missed grasp: a hand that is near sees more."""
EMPTY = 0.01
"""Metres between the fingers, below which a closed hand holds nothing."""
GRASPING = ("lift", "rotate", "unstack")

Observation = Mapping[str, Any]


class MisjudgingExpert:
    """An expert of `task` with wrong positions of the blocks, and the labels of the expert with the right ones.

    Args:
        make: returns a new expert of the task.
        layout: that of the desk.
        rng: random generator of the errors. They stay the same until a grasp misses.
    """

    def __init__(self, make: Callable[[], ScriptedExpert], task: str, layout: Layout, rng: np.random.Generator) -> None:
        self._make, self._layout, self._rng = make, layout, rng
        self._is_grasping = task.startswith(GRASPING)
        self._driver, self._scale = make(), 1.0
        self._errors = self._draw()
        self._seen: list[tuple[Observation, bool]] = []
        self._was_empty: bool | None = None

    def _draw(self) -> npt.NDArray[np.float64]:
        """Return errors [3 blocks, 6] of positions and Euler angles."""
        errors = np.zeros((len(L.BLOCKS), 6))
        errors[:, :2] = self._rng.normal(0.0, POSITION_ERROR * self._scale, (len(L.BLOCKS), 2))
        errors[:, 5] = self._rng.normal(0.0, YAW_ERROR * self._scale, len(L.BLOCKS))
        return errors

    def corrected(self) -> ScriptedExpert:
        """Return a new expert that has observed the attempt so far, except for the current observation."""
        expert = self._make()
        for obs, has_missed in self._seen:
            if has_missed:
                expert.restart()
            expert.act(obs)
        return expert

    def act(self, obs: Observation) -> npt.NDArray[np.float64]:
        """Return the next action (7,) of the expert with the wrong positions."""
        state = DeskState.of(obs, self._layout)
        is_empty = state.closing and state.width < EMPTY
        has_missed = self._is_grasping and is_empty and self._was_empty is False
        self._was_empty = is_empty
        if has_missed:
            self._scale *= AGAIN
            self._errors = self._draw()
        self._seen.append(({key: obs[key] for key in ("robot_obs", "scene_obs")}, has_missed))
        scene = np.array(obs["scene_obs"], np.float64)
        held = state.held_block
        for number, name in enumerate(L.BLOCKS):
            if held is None or held.name != name:
                scene[6 + 6 * number : 12 + 6 * number] += self._errors[number]
        return self._driver.act({**obs, "scene_obs": scene})

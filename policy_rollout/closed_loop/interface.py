"""What a closed loop needs of the world: an environment, an oracle, and the way between them and a policy."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from policy_rollout.policies.interface import Observation

Info = Mapping[str, Any]
Render = bool | Collection[str]


class Env(Protocol):
    """CALVIN's environment interface, as the embedded desk and the real simulator speak it.

    `render` says which cameras are needed: none (False), all (True) or those named, of "static" and "gripper". Where
    one costs as much as both, an environment may draw more than it was asked for.
    """

    def reset(self, robot_obs: NDArray[Any] | None = None, scene_obs: NDArray[Any] | None = None) -> dict[str, Any]: ...
    def step(self, action: NDArray[Any], render: Render = True) -> tuple[dict[str, Any], Any, bool, Info]: ...
    def get_obs(self, render: Render = True) -> dict[str, Any]: ...
    def get_info(self) -> Info: ...
    def close(self) -> None: ...


class Oracle(Protocol):
    """Says which tasks were done between two states of the world."""

    def tasks_done(self, start_info: Info, end_info: Info, among: Collection[str] | None = None) -> set[str]: ...


def observation(obs: Mapping[str, Any], instruction: str) -> Observation:
    """The policy's view of a CALVIN observation dictionary."""
    images = obs["rgb_obs"]
    return Observation(
        rgb_static=images["rgb_static"],
        rgb_gripper=images.get("rgb_gripper"),
        robot_obs=obs.get("robot_obs"),
        instruction=instruction,
    )


def binary_gripper(action: NDArray[np.float32]) -> NDArray[np.float64]:
    """The action [A] with its gripper at exactly +1 (open) above 0, else -1 (closed), as CALVIN's wrapper does."""
    out = np.array(action, dtype=np.float64)
    out[6] = 1.0 if out[6] > 0 else -1.0
    return out

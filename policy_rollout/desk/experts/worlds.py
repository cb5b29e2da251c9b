"""The two worlds that the scripted experts act in: the embedded desk and the real CALVIN."""

from __future__ import annotations

from typing import Any, Protocol

import numpy.typing as npt

from policy_rollout.calvin.initial_states import SHELF_SPOTS
from policy_rollout.calvin.scene_state import CALVIN_REGIONS, Regions
from policy_rollout.closed_loop.interface import Env, Render
from policy_rollout.desk.env import DeskEnv
from policy_rollout.desk.layout import Layout

ENVIRONMENTS = ("desk", "calvin")


class ExpertEnv(Env, Protocol):
    """A scene that the experts know by its layout."""

    @property
    def scene(self) -> str: ...
    @property
    def layout(self) -> Layout: ...
    def reset(
        self,
        robot_obs: npt.ArrayLike | None = None,
        scene_obs: npt.ArrayLike | None = None,
        seed: int | None = None,
        render: Render = False,
    ) -> dict[str, Any]: ...


_calvin: Any = None


def make_env(environment: str, scene: str) -> ExpertEnv:
    """Return a scene of a world, without images.

    A process has one simulator of the real CALVIN; a second call with the same scene returns the same one. Raises
    ``ValueError`` for an unknown world, or in one line if calvin_env is not installed.
    """
    global _calvin
    if environment == "desk":
        return DeskEnv(scene)
    if environment != "calvin":
        raise ValueError(f"--environment is {environment!r}; allowed are {', '.join(ENVIRONMENTS)}")
    from policy_rollout.calvin.scenes.env import SceneEnv

    if _calvin is None or _calvin.scene != scene:
        if _calvin is not None:
            _calvin.close()
        _calvin = SceneEnv(scene)
    env: ExpertEnv = _calvin
    return env


def check_world(environment: str) -> None:
    """Raise ``ValueError`` in one line if a world cannot be used here."""
    if environment == "calvin":
        from policy_rollout.calvin.installation import check_packages
        from policy_rollout.calvin.scenes.configuration import configuration_folder

        configuration_folder()
        check_packages()


def regions_of(layout: Layout) -> Regions:
    """Return where table, cabinet and drawer of a scene are, for its symbolic state."""
    if layout.spaces is None:
        return CALVIN_REGIONS
    left, right = (layout.compartments[f"slider_{side}"] for side in ("left", "right"))
    furniture = layout.furniture
    return Regions(
        shelf_split_x=float(left[1][0] + right[0][0]) / 2,
        drawer_z=furniture.drawer_floor_z + furniture.block_height / 2,
        slide_travel=furniture.slide_travel,
        drawer_travel=furniture.drawer_travel,
    )


def has_official_states(layout: Layout) -> bool:
    """Return whether CALVIN's initial states are possible in a real scene: whether blocks start in its cabinet."""
    spaces = layout.compartments
    return all(spaces[name][0][0] <= x <= spaces[name][1][0] for name, (x, _, _) in SHELF_SPOTS.items())

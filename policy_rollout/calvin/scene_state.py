"""Compute the symbolic state of a scene, which determines the feasible tasks.

With an `info` dictionary, contacts determine what a block stands on, as in the oracle. Without one, positions in
`scene_obs` do; `robot_obs` is then needed to detect a block in the gripper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from policy_rollout.calvin.symbolic import State
from policy_rollout.calvin.tasks import BLOCKS

Array = NDArray[np.float64]
KEYS = ("red_block", "blue_block", "pink_block")  # keys of BLOCKS in a state, in the order of scene_obs

GRASP_RADIUS = 0.05  # metres between a block's middle and the tool centre point
OPEN_WIDTH, SHUT_WIDTH = 0.075, 0.005  # metres between the fingers; in between they hold an object
STACK_HEIGHT = (0.03, 0.05)  # metres between the centres of two stacked blocks
STACK_OFFSET = 0.05  # metres, largest horizontal distance of their centres
REST = 0.015  # metres, largest distance of a resting block from its resting height


@dataclass(frozen=True)
class Regions:
    """Positions of table, cabinet and drawer in metres. The defaults are those of CALVIN's scene D."""

    shelf_y: float = 0.03  # a block further back is in the cabinet
    shelf_split_x: float = -0.085  # ... and behind the left or the right position of the door
    block_z: float = 0.46  # middle of a block on the table or in the cabinet
    drawer_z: float = 0.36  # middle of a block in the drawer
    slide_travel: float = 0.28  # joint at "left"; 0 is "right"
    drawer_travel: float = 0.22  # joint at "open"; 0 is "closed"
    slide_needed: float = 0.16  # movement that is certainly a task (the oracle needs more than 0.15)
    drawer_needed: float = 0.13  # (0.12)


CALVIN_REGIONS = Regions()


def symbolic_state(
    scene_obs: ArrayLike,
    robot_obs: ArrayLike | None = None,
    info: Mapping[str, Any] | None = None,
    regions: Regions = CALVIN_REGIONS,
) -> State:
    """Return the state of a scene_obs [24] (blocks red, blue, pink) for `feasible_tasks`.

    A door is "partway" if neither of its tasks has enough travel left. A block that is neither held nor at rest at a
    place of the tasks (in the air, over an edge, in a tower of three) is "elsewhere".
    """
    scene = np.asarray(scene_obs, np.float64)
    if scene.shape != (24,):
        raise ValueError(f"scene_obs has the shape {scene.shape}; expected (24,)")
    positions = scene[6:].reshape(3, 6)[:, :3]
    if info is None:
        places = _places_by_position(positions, None if robot_obs is None else np.asarray(robot_obs), regions)
    else:
        places = _places_by_contact(positions, info, regions)
    return {
        "led": int(scene[5] > 0.5),
        "lightbulb": int(scene[4] > 0.5),
        "slider": _door(scene[0], regions.slide_travel, regions.slide_needed, "right", "left"),
        "drawer": _door(scene[1], regions.drawer_travel, regions.drawer_needed, "closed", "open"),
        **dict(zip(KEYS, places, strict=True)),
        "grasped": int("grasped" in places),
    }


def _door(joint: float, travel: float, needed: float, low: str, high: str) -> str:
    if joint <= travel - needed:
        return low
    return high if joint >= needed else "partway"


def _places_by_contact(positions: Array, info: Mapping[str, Any], regions: Regions) -> list[str]:
    objects, table = info["scene_info"]["movable_objects"], info["scene_info"]["fixed_objects"]["table"]
    robot = info["robot_info"]["uid"]
    uids = [objects[name]["uid"] for name in BLOCKS]
    link = {table["links"][name]: name for name in ("base_link", "plank_link", "drawer_link") if name in table["links"]}
    places: list[str] = []
    under: dict[int, list[int]] = {}  # block on blocks only -> the blocks below it
    for i, name in enumerate(BLOCKS):
        contacts = objects[name]["contacts"]
        bodies = {contact[2] for contact in contacts}
        links = {link.get(contact[4]) for contact in contacts if contact[2] == table["uid"]}
        if bodies == {robot}:
            places.append("grasped")
        elif "plank_link" in links:
            places.append(_shelf_side(positions[i], regions))
        elif "drawer_link" in links and positions[i][2] < (regions.drawer_z + regions.block_z) / 2:
            places.append("drawer")
        elif "base_link" in links:
            places.append("table")
        else:
            places.append("elsewhere")
            if bodies and bodies <= set(uids):
                under[i] = [k for k, uid in enumerate(uids) if uid in bodies and positions[k][2] < positions[i][2]]
    return _with_stacks(places, under)


def _places_by_position(positions: Array, robot_obs: Array | None, regions: Regions) -> list[str]:
    under = {i: _blocks_below(i, positions) for i in range(len(positions))}
    places = [
        _place(position, not under[i] and _in_gripper(position, robot_obs), regions)
        for i, position in enumerate(positions)
    ]
    return _with_stacks(places, {i: below for i, below in under.items() if below})


def _place(position: Array, in_gripper: bool, regions: Regions) -> str:
    height = position[2]
    if abs(height - regions.drawer_z) < REST:
        return "drawer"
    if abs(height - regions.block_z) < REST:
        return _shelf_side(position, regions) if position[1] > regions.shelf_y else "table"
    return "grasped" if in_gripper else "elsewhere"


def _shelf_side(position: Array, regions: Regions) -> str:
    return "slider_left" if position[0] < regions.shelf_split_x else "slider_right"


def _in_gripper(position: Array, robot_obs: Array | None) -> bool:
    if robot_obs is None:
        return False
    near = float(np.linalg.norm(position - robot_obs[:3])) < GRASP_RADIUS
    return near and SHUT_WIDTH < robot_obs[6] < OPEN_WIDTH and robot_obs[14] < 0


def _blocks_below(i: int, positions: Array) -> list[int]:
    """Return the blocks that block `i` may stand on."""
    low, high = STACK_HEIGHT
    return [
        k
        for k, other in enumerate(positions)
        if low < positions[i][2] - other[2] < high and np.linalg.norm((positions[i] - other)[:2]) < STACK_OFFSET
    ]


def _with_stacks(places: list[str], under: Mapping[int, list[int]]) -> list[str]:
    """Set the places of stacked blocks: one top on one bottom; blocks of any other pile are "elsewhere"."""
    places = list(places)
    is_pair = len(under) == 1
    for top, below in under.items():
        is_pair = is_pair and len(below) == 1
        places[top] = "stacked_top" if is_pair else "elsewhere"
        for bottom in below:
            places[bottom] = "stacked_bottom" if is_pair else "elsewhere"
    return places

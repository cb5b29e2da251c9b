"""A hand-made `env.get_info()`: three blocks on a table, in CALVIN's schema, for tests to change."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

ROBOT, TABLE, RED, BLUE, PINK = 0, 1, 2, 3, 4
BASE, DRAWER, PLANK, SLIDE = -1, 3, 4, 2  # links of the table
BLOCK_UIDS = {"block_red": RED, "block_blue": BLUE, "block_pink": PINK}
SHELF_Z, TABLE_Z, DRAWER_Z = 0.46, 0.46, 0.36


def contact(me: int, other: int, link: int = -1) -> tuple[Any, ...]:
    """One row of pybullet's getContactPoints: [2] is the other body, [4] its link."""
    return (0, me, other, -1, link, (0.0, 0.0, 0.0))


def new_info() -> dict[str, Any]:
    """Everything at rest: red, blue and pink on the table, doors shut, lights out, gripper empty."""
    blocks = {
        name: {
            "uid": uid,
            "current_pos": (0.1 * i, -0.1, TABLE_Z),
            "current_orn": (0.0, 0.0, 0.0, 1.0),
            "current_lin_vel": (0.0, 0.0, 0.0),
            "current_ang_vel": (0.0, 0.0, 0.0),
            "contacts": (contact(uid, TABLE, BASE),),
        }
        for i, (name, uid) in enumerate(BLOCK_UIDS.items())
    }
    links = {"base_link": BASE, "drawer_link": DRAWER, "plank_link": PLANK, "slide_link": SLIDE}
    return {
        "robot_info": {"uid": ROBOT, "contacts": ()},
        "scene_info": {
            "fixed_objects": {"table": {"uid": TABLE, "links": links}},
            "movable_objects": blocks,
            "doors": {"base__slide": {"current_state": 0.0}, "base__drawer": {"current_state": 0.0}},
            "buttons": {"base__button": {}},
            "switches": {"base__switch": {}},
            "lights": {"lightbulb": {"logical_state": 0}, "led": {"logical_state": 0}},
        },
    }


def changed(info: dict[str, Any], block: str | None = None, **entries: Any) -> dict[str, Any]:
    """A copy with some fields of a block replaced, or with doors (`base__*`) and lights set."""
    info = deepcopy(info)
    scene = info["scene_info"]
    for name, value in entries.items():
        if block is not None:
            scene["movable_objects"][block][name] = value
        elif name in scene["doors"]:
            scene["doors"][name]["current_state"] = value
        else:
            scene["lights"][name]["logical_state"] = value
    return info


def standing_on(info: dict[str, Any], block: str, *others: tuple[int, int]) -> dict[str, Any]:
    """A copy in which the block touches exactly these (uid, link)."""
    uid = BLOCK_UIDS[block]
    return changed(info, block, contacts=tuple(contact(uid, *other) for other in others))


def moved(info: dict[str, Any], block: str, dx: float = 0.0, dy: float = 0.0, dz: float = 0.0) -> dict[str, Any]:
    """A copy in which the block is displaced by metres."""
    x, y, z = info["scene_info"]["movable_objects"][block]["current_pos"]
    return changed(info, block, current_pos=(x + dx, y + dy, z + dz))


def held(info: dict[str, Any], block: str) -> dict[str, Any]:
    """A copy in which the gripper holds the block, and nothing else touches it."""
    info = standing_on(info, block, (ROBOT, 10), (ROBOT, 12))
    uid = BLOCK_UIDS[block]
    info["robot_info"]["contacts"] = (contact(ROBOT, uid), contact(ROBOT, uid))
    return info

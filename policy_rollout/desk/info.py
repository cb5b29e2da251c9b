"""`info` as returned by CALVIN's `env.get_info()`: poses, states and contacts that the task oracle reads.

Ids as assigned by pybullet in CALVIN: the robot first, then red, blue, pink, the table, the floor. A contact is
pybullet's tuple: [1] this body, [2] the other body, [3] and [4] their links, [5] and [6] the position in the world on
each, [7] the normal, [8] the distance in metres (negative when they overlap), [9] the normal force, left at 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from policy_rollout.desk.layout import BLOCKS

Array = npt.NDArray[np.float64]
Contact = tuple[Any, ...]

ROBOT_UID = 0
BLOCK_UIDS = dict(zip(BLOCKS, (2, 3, 4), strict=True))
TABLE_UID = 5
FLOOR_UID = 6
TABLE_LINKS = {
    "base_link": -1,
    "button_link": 0,
    "switch_link": 1,
    "slide_link": 2,
    "drawer_link": 3,
    "led_link": 4,
    "light_link": 5,
    "plank_link": 6,
}
_ROBOT_LINKS = {"hand": 8, "finger_left": 9, "finger_right": 11}


def owners(body_names: list[str]) -> list[tuple[int, int]]:
    """Return (uid, link) of every MuJoCo body, by body id."""
    table: list[tuple[int, int]] = []
    for name in body_names:
        if name in BLOCK_UIDS:
            table.append((BLOCK_UIDS[name], -1))
        elif name in _ROBOT_LINKS:
            table.append((ROBOT_UID, _ROBOT_LINKS[name]))
        elif name in TABLE_LINKS:
            table.append((TABLE_UID, TABLE_LINKS[name]))
        elif name == "front":  # the leaning part of the cabinet, fixed to the table
            table.append((TABLE_UID, -1))
        else:
            assert name == "world"
            table.append((FLOOR_UID, -1))
    return table


def contacts_by_uid(data: Any, geom_owner: list[tuple[int, int]]) -> dict[int, tuple[Contact, ...]]:
    """Return all contacts, listed under each of the two bodies."""
    found: dict[int, list[Contact]] = {}
    contact = data.contact
    frames = contact.frame.reshape(-1, 9)[:, :3]
    rows = zip(
        contact.geom.tolist(),
        contact.dist.tolist(),
        contact.pos.tolist(),
        frames.tolist(),
        (-frames).tolist(),
        strict=True,
    )
    for (first, second), distance, position, out, back in rows:
        (uid_a, link_a), (uid_b, link_b) = geom_owner[first], geom_owner[second]
        spot = tuple(position)
        found.setdefault(uid_a, []).append((0, uid_a, uid_b, link_a, link_b, spot, spot, tuple(back), distance, 0.0))
        found.setdefault(uid_b, []).append((0, uid_b, uid_a, link_b, link_a, spot, spot, tuple(out), distance, 0.0))
    return {uid: tuple(items) for uid, items in found.items()}

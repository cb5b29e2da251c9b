"""Positions of the desk's objects, and the object that an instruction of each task names."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from policy_rollout.calvin.tasks import COLOURS
from policy_rollout.desk import layout as L
from policy_rollout.desk.layout import Layout

Array = npt.NDArray[np.float64]

BLOCKS = tuple(f"{colour} block" for colour in COLOURS)
OBJECTS = (*BLOCKS, "drawer handle", "door handle", "button", "switch", "drawer")
"""Objects with a position. The order is that of the positions in files."""
WORKSPACE = L.WORKSPACE
"""Lower and upper corner of the positions of the hand, metres; positions are scaled by it."""

_FURNITURE_TASKS = {
    "open_drawer": "drawer handle",
    "close_drawer": "drawer handle",
    "move_slider_left": "door handle",
    "move_slider_right": "door handle",
    "turn_on_lightbulb": "switch",
    "turn_off_lightbulb": "switch",
    "turn_on_led": "button",
    "turn_off_led": "button",
    "place_in_drawer": "drawer",
}


def object_of_task(task: str | None) -> str | None:
    """Return the object that the instructions of a task name; None if they name none of ``OBJECTS``.

    "Put the block you hold on another block" names no particular object.
    """
    if task is None:
        return None
    colour = next((colour for colour in COLOURS if f"_{colour}_block" in task), None)
    return f"{colour} block" if colour else _FURNITURE_TASKS.get(task)


def block_positions(scene_obs: npt.ArrayLike) -> Array:
    """Return the centres [3, 3] of the red, blue and pink block in metres, from ``scene_obs`` [24]."""
    return np.asarray(scene_obs, np.float64)[6:].reshape(3, 6)[:, :3]


def object_positions(layout: Layout, scene_obs: npt.ArrayLike) -> Array:
    """Return the positions [8, 3] of ``OBJECTS`` in metres: centres of blocks and handles, the middle of the drawer."""
    scene = np.asarray(scene_obs, np.float64)
    slide, drawer, button, switch = scene[:4].tolist()
    furniture = (
        layout.drawer_handle_at(drawer),
        layout.door_handle_at(slide),
        layout.button - (0.0, 0.0, button),
        layout.switch_handle_at(switch),
        np.mean(layout.drawer_space_at(drawer), axis=0),
    )
    return np.concatenate([block_positions(scene), furniture])

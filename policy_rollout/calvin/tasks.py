"""CALVIN's 34 tasks as a table: `task: (function, *arguments)`, the form of `tasks:` in CALVIN's merged_config.yaml.

The order is CALVIN's and must not change: the chain generator draws tasks by their index.
Units: degrees for rotations, metres for pushes, lifts and doors. Positive x is right when facing the desk,
a positive rotation about z is counter-clockwise ("left"), the slider joint grows to the left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TaskRow = tuple[Any, ...]  # (function name, *arguments)
TaskTable = Mapping[str, TaskRow]

COLOURS = ("red", "blue", "pink")
BLOCKS = tuple(f"block_{colour}" for colour in COLOURS)
SURFACES = {  # name in the task -> (height of a lift in metres, link of the table)
    "table": (0.05, "base_link"),
    "slider": (0.03, "plank_link"),
    "drawer": (0.05, "drawer_link"),
}


def _calvin_tasks() -> dict[str, TaskRow]:
    table: dict[str, TaskRow] = {}
    for colour in COLOURS:
        for side, degrees in (("right", -60), ("left", 60)):
            table[f"rotate_{colour}_block_{side}"] = ("rotate_object", f"block_{colour}", degrees)
    for colour in COLOURS:
        for side, metres in (("right", 0.1), ("left", -0.1)):
            table[f"push_{colour}_block_{side}"] = ("push_object", f"block_{colour}", metres, 0)
    table["move_slider_left"] = ("move_door_rel", "base__slide", 0.15)
    table["move_slider_right"] = ("move_door_rel", "base__slide", -0.15)
    table["open_drawer"] = ("move_door_rel", "base__drawer", 0.12)
    table["close_drawer"] = ("move_door_rel", "base__drawer", -0.12)
    for colour in COLOURS:
        for surface, (height, link) in SURFACES.items():
            table[f"lift_{colour}_block_{surface}"] = ("lift_object", f"block_{colour}", height, "table", link)
    table["place_in_slider"] = ("place_object", "table", "plank_link")
    table["place_in_drawer"] = ("place_object", "table", "drawer_link")
    table["stack_block"] = ("stack_objects",)
    table["unstack_block"] = ("unstack_objects",)
    for light in ("lightbulb", "led"):
        table[f"turn_on_{light}"] = ("toggle_light", light, 0, 1)
        table[f"turn_off_{light}"] = ("toggle_light", light, 1, 0)
    table["push_into_drawer"] = ("push_object_into", BLOCKS, "table", "base_link", "table", "drawer_link")
    return table


CALVIN_TASKS: TaskTable = _calvin_tasks()
TASK_NAMES: tuple[str, ...] = tuple(CALVIN_TASKS)  # 34, in CALVIN's order
DOORS_AND_LIGHTS: tuple[str, ...] = (
    "open_drawer",
    "close_drawer",
    "move_slider_left",
    "move_slider_right",
    "turn_on_led",
    "turn_off_led",
    "turn_on_lightbulb",
    "turn_off_lightbulb",
)
"""The tasks of four kinds that need no grasping of blocks."""

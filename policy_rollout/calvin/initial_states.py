"""Initial states of chains: from symbols ("the red block is behind the left door") to numbers, exactly as in CALVIN."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product

import numpy as np
from numpy.typing import NDArray

from policy_rollout.calvin.symbolic import Frozen, Value, freeze

Array = NDArray[np.float64]

# tcp xyz [m], euler xyz [rad], gripper width [m], 7 joints [rad], last gripper command
ROBOT_START = (
    0.02586889, -0.2313129, 0.5712808, 3.09045411, -0.02908596, 1.50013585, 0.07999963,
    -1.21779124, 1.03987629, 2.11978254, -2.34205014, -0.87015899, 1.64119093, 0.55344928, 1.0,
)  # fmt: skip
SHELF_SPOTS = {
    "slider_left": (-0.240851662, 0.0924044687, 0.460990009),
    "slider_right": (0.070341633, 0.0924044687, 0.460990009),
}
TABLE_SPOTS = ((0.0500000896, -0.120000177, 0.459990009), (0.229995412, -0.11999514, 0.45999001))
YAW_RANGE = (math.pi / 2 - math.pi / 8, math.pi / 2 + math.pi / 8)
SLIDER_LEFT, DRAWER_OPEN, SWITCH_UP = 0.28, 0.22, 0.088  # joint positions in metres

FNV_PRIME = 0x01000193


def _all_initial_states() -> tuple[Frozen, ...]:
    places = ("table", "slider_right", "slider_left")
    states = product((0, 1), (0, 1), ("right", "left"), ("closed", "open"), places, places, places, (0,))
    return tuple(
        state
        for state in states
        if state.count("table") in (1, 2) and state.count("slider_right") < 2 and state.count("slider_left") < 2
    )


INITIAL_STATES: tuple[Frozen, ...] = _all_initial_states()  # 192, in the order that seeds CALVIN's chains


def hash_input(condition: Mapping[str, Value]) -> str:
    """Return the text whose hash seeds the blocks' positions: Python's text of the values, in CALVIN's key order."""
    return str(dict(enumerate(freeze(condition))).values())


def initial_seed(condition: Mapping[str, Value]) -> int:
    """Return the 32-bit FNV-1 hash with start value 0 of the UTF-16-LE bytes of `hash_input`.

    That is what pyhash.fnv1_32 computes for a Python 3 string. Over UTF-8 every block's yaw differs, and in 107 of the
    192 conditions the blocks on the table change places.
    """
    value = 0
    for byte in hash_input(condition).encode("utf-16-le"):
        value = ((value * FNV_PRIME) & 0xFFFFFFFF) ^ byte
    return value


def initial_state(condition: Mapping[str, Value]) -> tuple[Array, Array]:
    """Return `(robot_obs [15], scene_obs [24])` of a condition, equal to CALVIN's for its 192 conditions.

    Raises ValueError for a block that is neither on the table nor in the cabinet.
    """
    random = np.random.RandomState(initial_seed(condition))
    spots = [np.array(spot) for spot in TABLE_SPOTS]
    random.shuffle(spots)
    scene = np.zeros(24)
    scene[0] = SLIDER_LEFT if condition["slider"] == "left" else 0.0
    scene[1] = DRAWER_OPEN if condition["drawer"] == "open" else 0.0
    scene[3] = SWITCH_UP if condition["lightbulb"] == 1 else 0.0
    scene[4], scene[5] = condition["lightbulb"], condition["led"]
    # On the table, red takes the first spot, pink the second, blue the one that red does not use.
    spot_of = {"red_block": spots[0], "blue_block": spots[condition["red_block"] == "table"], "pink_block": spots[1]}
    for i, (block, spot) in enumerate(spot_of.items()):
        place = condition[block]
        if place not in ("table", *SHELF_SPOTS):
            raise ValueError(f"initial {block} is {place!r}; allowed are 'table', 'slider_left', 'slider_right'")
        scene[6 + 6 * i : 9 + 6 * i] = spot if place == "table" else SHELF_SPOTS[str(place)]
        scene[11 + 6 * i] = random.uniform(*YAW_RANGE)
    return np.array(ROBOT_START), scene

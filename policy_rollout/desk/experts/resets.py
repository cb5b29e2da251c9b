"""Random initial states in which a task is feasible."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from policy_rollout.calvin.tasks import BLOCKS
from policy_rollout.desk import layout as L
from policy_rollout.desk.experts.motion import hand_euler
from policy_rollout.desk.layout import Layout, layout_of

Array = npt.NDArray[np.float64]

TOUCH = 1e-5  # metres of overlap, so that bodies are in contact from the start, as in CALVIN's states
CLEAR = 0.10  # metres between the centres of two blocks


def task_resets(task: str, seed: int, scene: str | Layout) -> tuple[Array, Array]:
    """Return `(robot_obs [15], scene_obs [24])` in which `task` is feasible; deterministic.

    `scene`: a scene of the desk, or any layout. The joint angles in `robot_obs` are zeros.
    """
    rng = np.random.default_rng([seed, *task.encode()])
    layout = scene if isinstance(scene, Layout) else layout_of(scene)
    fixed = _furniture(layout, task, rng)
    places = _places(task, rng, fixed[0] > layout.furniture.slide_travel / 2)
    poses = _poses(layout, places, float(fixed[1]), rng)
    if task.startswith("push_") and task.endswith(("_left", "_right")):
        while not _has_push_room(task, layout, poses):
            poses = _poses(layout, places, float(fixed[1]), rng)
    robot = _robot(layout, rng)
    held = next((name for name, place in places.items() if place == "held"), None)
    if held is not None:
        robot = _holding(held, poses, rng)
    return robot, np.concatenate([fixed, *(poses[name] for name in BLOCKS)])


def _furniture(layout: Layout, task: str, rng: np.random.Generator) -> Array:
    """Return slider, drawer, button, switch, lightbulb, led: as the task needs them, the rest at random."""
    slide, drawer, bulb, led = (int(v) for v in rng.integers(0, 2, 4))
    slide = {"move_slider_left": 0, "move_slider_right": 1}.get(task, slide)
    needs_drawer = {"open_drawer": 0, "close_drawer": 1, "place_in_drawer": 1, "push_into_drawer": 1}
    drawer = 1 if task.startswith("lift_") and task.endswith("_drawer") else needs_drawer.get(task, drawer)
    bulb = {"turn_on_lightbulb": 0, "turn_off_lightbulb": 1}.get(task, bulb)
    led = {"turn_on_led": 0, "turn_off_led": 1}.get(task, led)
    f = layout.furniture
    return np.array([slide * f.slide_travel, drawer * f.drawer_travel, 0.0, bulb * f.switch_travel, bulb, led])


def _places(task: str, rng: np.random.Generator, slide_left: bool) -> dict[str, str]:
    """Return the place of each block: "table", a compartment, "drawer", "held", or "on <block>"."""
    open_side, hidden = ("slider_right", "slider_left") if slide_left else ("slider_left", "slider_right")
    common = ["table", "table", open_side, hidden]
    rng.shuffle(common)
    names = [BLOCKS[i] for i in rng.permutation(len(BLOCKS))]
    places = dict(zip(names, common, strict=False))
    named = next((name for name in BLOCKS if name.removeprefix("block_") in task), None)
    if named is not None:
        surface = task.rsplit("_", 1)[1]
        place = {"slider": open_side, "drawer": "drawer"}.get(surface, "table")
        _swap(places, named, place)
    elif task in ("place_in_slider", "place_in_drawer", "stack_block", "unstack_block"):
        others = names[1:]
        if task in ("stack_block", "unstack_block"):
            places[others[0]] = "table"
            places[others[1]] = str(rng.choice([open_side, hidden, "table"]))
        places[names[0]] = f"on {others[0]}" if task == "unstack_block" else "held"
    elif task == "push_into_drawer":
        places = dict(zip(names, ("table", open_side, hidden), strict=True))
    return places


def _swap(places: dict[str, str], name: str, place: str) -> None:
    """Move `name` to `place`; a block that is in that compartment takes its former place."""
    for other, occupied in places.items():
        if occupied == place and place not in ("table", "drawer"):
            places[other] = places[name]
    places[name] = place


def _poses(layout: Layout, places: dict[str, str], drawer: float, rng: np.random.Generator) -> dict[str, Array]:
    """Return xyz and Euler angles (6,) of every block, with a minimum distance between blocks."""
    loose = [name for name, place in places.items() if not place.startswith("on ")]
    for _ in range(2000):
        poses = {name: _pose(layout, places[name], drawer, rng) for name in loose}
        spots = np.array([pose[:2] for pose in poses.values()])
        distances = np.linalg.norm(spots[:, None] - spots[None], axis=-1)[np.triu_indices(len(spots), 1)]
        if distances.min() > CLEAR:
            break
    else:
        raise AssertionError("there is room for three blocks")
    for name, place in places.items():
        if place.startswith("on "):
            base = poses[place.removeprefix("on ")]
            shift = np.array([*rng.uniform(-0.006, 0.006, 2), layout.furniture.block_height - TOUCH])
            poses[name] = np.concatenate([base[:3] + shift, [0, 0, base[5] + rng.uniform(-0.2, 0.2)]])
    return poses


def _has_push_room(task: str, layout: Layout, poses: dict[str, Array]) -> bool:
    _, colour, _, side = task.split("_")
    low, high = layout.table_space[0][0], layout.furniture.table_x[1] - 0.18
    x = poses[f"block_{colour}"][0]
    return bool(x < high if side == "right" else x > low + 0.02)


def _pose(layout: Layout, place: str, drawer: float, rng: np.random.Generator) -> Array:
    if place == "held":
        spot = rng.uniform((-0.05, -0.2, 0.53), (0.25, -0.1, 0.58))
        return np.array([*spot, 0.0, 0.0, math.pi / 2 + rng.uniform(-0.6, 0.6)])
    furniture = layout.furniture
    if place == "drawer":
        low, high = layout.drawer_space_at(drawer)
        spot = rng.uniform(low[:2] + 0.06, high[:2] - (0.06, 0.075))
        yaw = math.pi / 2 + rng.uniform(-0.8, 0.8)
        return np.array([*spot, furniture.drawer_floor_z + furniture.block_height / 2 - TOUCH, 0.0, 0.0, yaw])
    low, high = layout.table_space if place == "table" else layout.compartments[place]
    yaw = rng.uniform(-math.pi, math.pi) if place == "table" else math.pi / 2 + rng.uniform(-1, 1) * math.pi / 8
    surface = furniture.table_z if place == "table" else furniture.plank_z
    return np.array([*rng.uniform(low[:2], high[:2]), surface + furniture.block_height / 2 - TOUCH, 0.0, 0.0, yaw])


def _robot(layout: Layout, rng: np.random.Generator) -> Array:
    """Return an open hand above the table, near CALVIN's initial pose."""
    pos = np.array(L.HOME_TCP) + rng.uniform((-0.12, -0.05, -0.02), (0.15, 0.10, 0.05))
    euler = hand_euler(math.pi / 2 + rng.uniform(-0.3, 0.3))
    return np.array([*pos, *euler, layout.hand.open_width, *([0.0] * 7), 1.0])


def _holding(name: str, poses: dict[str, Array], rng: np.random.Generator) -> Array:
    """Return a closed hand around a block in the air."""
    pose = poses[name]
    slip = np.array([0.0, 0.0, rng.uniform(-0.004, 0.006)])
    width = 0.04 - 2 * TOUCH
    return np.array([*(pose[:3] + slip), *hand_euler(float(pose[5])), width, *([0.0] * 7), -1.0])

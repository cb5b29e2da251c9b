"""Random states of the desk: furniture, blocks on every surface and in the hand, poses of the hand.

A state is drawn until no two bodies overlap. Nothing is simulated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from policy_rollout.calvin.tasks import BLOCKS
from policy_rollout.desk import DeskEnv
from policy_rollout.desk import layout as L
from policy_rollout.desk.experts.motion import hand_euler
from policy_rollout.desk.layout import Layout
from preprocess_data.desk_scenes.objects import OBJECTS, object_of_task, object_positions

Array = npt.NDArray[np.float64]

PLACES = ("table", "slider_left", "slider_right", "drawer", "stack", "hand")
"""Places of a block: the table, the two compartments of the cabinet, the drawer, on another block, in the hand."""
OTHERS = (0.5, 0.15, 0.15, 0.12, 0.08)
"""Shares of the places of blocks that the instruction does not name; the hand holds the named block only."""
ENDS = 0.35
"""Share of doors and drawers at each end of their range; the others are between the ends."""
WIDE = 0.3
"""Share of blocks on the table outside the range in which episodes begin, as pushed blocks are."""
NEAR = 0.5
"""Share of hands near the named object."""
OVERLAP = 0.001
"""Metres that two bodies may overlap."""
HELD_WIDTH = 0.04 - 2e-5
"""Metres between the fingers around a block."""
_HAND_SPACE = np.array([(-0.38, -0.36, 0.40), (0.38, 0.0, 0.68)])
_TABLE = np.array([(-0.40, -0.155), (0.40, 0.0)])
_HELD_SPACE = np.array([(-0.34, -0.34, 0.46), (0.34, -0.02, 0.66)])


@dataclass(frozen=True)
class SceneDraw:
    """A drawn state: ``robot_obs`` [15], ``scene_obs`` [24], and the place of the named block (None without one)."""

    robot_obs: Array
    scene_obs: Array
    place: str | None


def draw_scene(env: DeskEnv, rng: np.random.Generator, task: str, place: str) -> SceneDraw:
    """Set ``env`` to a random state in which the block that ``task`` names is at ``place``, and return the state.

    Tasks that name no block ignore ``place``. Jitter of camera and light is drawn too, as ``env`` declares it.
    """
    target, seed = object_of_task(task), int(rng.integers(2**31))
    named = None if target is None or not target.endswith(" block") else OBJECTS.index(target)
    for _ in range(2000):
        wanted = [str(rng.choice(PLACES[:5], p=OTHERS)) for _ in BLOCKS]
        if named is not None:
            wanted[named] = place
        scene = _scene(env.layout, wanted, rng)
        if scene is None:
            continue
        focus = object_positions(env.layout, scene)[OBJECTS.index(target)] if target else None
        if "hand" in wanted:
            robot = _holding(scene[6 + 6 * wanted.index("hand") :][:6], rng)
        else:
            robot = _hand(focus, rng)
        env.reset(robot, scene, seed=seed)
        if not overlaps(env):
            return SceneDraw(robot, scene, None if named is None else place)
    raise AssertionError(f"no state of scene {env.scene} without an overlap for {task} with the block at {place}")


def overlaps(env: DeskEnv) -> bool:
    """Return True if two bodies of the desk overlap by more than ``OVERLAP``."""
    contacts: Any = env.data.contact
    return env.data.ncon > 0 and float(contacts.dist[: env.data.ncon].min()) < -OVERLAP


def _scene(layout: Layout, places: list[str], rng: np.random.Generator) -> Array | None:
    """Return ``scene_obs`` with the blocks at ``places``; None if a draw does not fit."""
    slide, drawer, switch = (_joint(rng, high) for _, high in (L.SLIDE_RANGE, L.DRAWER_RANGE, L.SWITCH_RANGE))
    if "drawer" in places:
        drawer = float(rng.uniform(0.15, L.DRAWER_RANGE[1])) if rng.random() > 0.5 else L.DRAWER_RANGE[1]
    if rng.random() < 0.8:  # a door that does not hide the block
        for place, end in (("slider_left", L.SLIDE_RANGE[0]), ("slider_right", L.SLIDE_RANGE[1])):
            slide = end if place in places else slide
    button = float(rng.uniform(*L.BUTTON_RANGE)) if rng.random() < 0.1 else 0.0
    fixed = [slide, drawer, button, switch, float(switch > L.SWITCH_THRESHOLD), float(rng.integers(2))]
    poses: list[Array | None] = [None if place == "stack" else _block(layout, place, drawer, rng) for place in places]
    for i in rng.permutation(len(places)):
        if poses[i] is None:
            bases = [pose for k, pose in enumerate(poses) if pose is not None and places[k] in ("table", *PLACES[1:4])]
            if not bases:
                return None
            base = bases[int(rng.integers(len(bases)))]
            shift = [*rng.uniform(-0.008, 0.008, 2), L.BLOCK_HEIGHT]
            poses[i] = np.concatenate([base[:3] + shift, [0.0, 0.0, base[5] + rng.normal(0, 0.3)]])
    return np.concatenate([fixed, *(pose for pose in poses if pose is not None)])


def _joint(rng: np.random.Generator, high: float) -> float:
    share = rng.random()
    return 0.0 if share < ENDS else high if share < 2 * ENDS else float(rng.uniform(0.0, high))


def _block(layout: Layout, place: str, drawer: float, rng: np.random.Generator) -> Array:
    """Return position and Euler angles (6,) of a block that rests at ``place`` or is in the hand."""
    near_front = math.pi / 2 + float(rng.uniform(-0.8, 0.8))
    if place == "hand":
        return np.array([*rng.uniform(*_HELD_SPACE), 0.0, 0.0, math.pi / 2 + rng.normal(0, 0.7)])
    if place == "drawer":
        low, high = layout.drawer_space_at(drawer)
        spot = rng.uniform(low[:2] + np.array([0.05, 0.045]), high[:2] - 0.05)
        return np.array([*spot, L.DRAWER_FLOOR_Z + L.BLOCK_HEIGHT / 2, 0.0, 0.0, near_front])
    if place == "table":
        low, high = (bound[:2] for bound in layout.table_space)
        spot = rng.uniform(*_TABLE) if rng.random() < WIDE else rng.uniform(low, high)
        return np.array([*spot, L.TABLE_Z + L.BLOCK_HEIGHT / 2, 0.0, 0.0, rng.uniform(-math.pi, math.pi)])
    low, high = layout.compartments[place]
    return np.array([*rng.uniform(low, high), 0.0, 0.0, math.pi / 2 + (near_front - math.pi / 2) / 2])


def _hand(focus: Array | None, rng: np.random.Generator) -> Array:
    """Return ``robot_obs`` of an empty hand, near ``focus`` (3,) or anywhere over the desk."""
    if focus is not None and rng.random() < NEAR:
        pos = focus + np.array([*rng.normal(0, 0.035, 2), rng.exponential(0.06) - 0.005])
    else:
        pos = rng.uniform(*_HAND_SPACE)
    tilt = float(rng.uniform(0.0, 0.6)) if rng.random() < 0.2 else 0.0
    euler = hand_euler(math.pi / 2 + float(rng.normal(0, 0.5)), tilt) + rng.normal(0, 0.03, 3)
    is_open = rng.random() < 0.7
    width = L.GRIPPER_RANGE[1] if is_open else 0.0
    if rng.random() < 0.1:  # fingers in motion
        width = float(rng.uniform(*L.GRIPPER_RANGE))
    return np.array([*pos, *euler, width, *([0.0] * 7), 1.0 if is_open else -1.0])


def _holding(pose: Array, rng: np.random.Generator) -> Array:
    """Return ``robot_obs`` of a closed hand around the block with ``pose`` (6,)."""
    slip = float(rng.uniform(-0.008, 0.008))  # along the block
    yaw = float(pose[5])
    pos = pose[:3] + np.array([slip * math.cos(yaw), slip * math.sin(yaw), rng.uniform(-0.006, 0.008)])
    return np.array([*pos, *hand_euler(yaw), HELD_WIDTH, *([0.0] * 7), -1.0])

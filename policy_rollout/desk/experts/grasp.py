"""Where and how to take hold of a block: hand yaw across one of its sides, clear of what stands around it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from policy_rollout.desk import layout as L
from policy_rollout.desk.experts.motion import Block, Desk, half_turn_near, moved, turn_cost
from policy_rollout.desk.layout import Layout

Array = npt.NDArray[np.float64]

WIDEST = 0.062  # metres between the open fingers that a block may fill
FINGER_REACH = L.GRIPPER_RANGE[1] / 2 + L.FINGER_HALF[1]  # from the hand's middle to the middle of an open finger
SHELF_EDGE_Y = L.PLANK_Y[0]


@dataclass(frozen=True)
class Grasp:
    """tcp position (3,) and hand yaw of a grasp; `cost` says how unwelcome it is."""

    tcp: Array
    yaw: float
    cost: float


def in_cabinet(block: Block) -> bool:
    return bool(block.pos[1] > SHELF_EDGE_Y)


def in_drawer(block: Block) -> bool:
    return bool(block.pos[2] < 0.42)


def gaps(layout: Layout, slide: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """The openings of the cabinet left and right of the door, each (x from, x to)."""
    (left, right), door = layout.opening_x, layout.door_x - slide
    return (left, door - L.DOOR_HALF_WIDTH), (door + L.DOOR_HALF_WIDTH, right)


def distance_to(block: Block, points: Array) -> Array:
    """Horizontal distance (N,) of points (N, 2) from a block's box, 0 inside."""
    local = np.abs((np.c_[points - block.pos[:2], np.zeros(len(points))]) @ block.matrix)
    outside = np.maximum(local - block.size / 2, 0.0)
    return np.asarray(np.linalg.norm(outside, axis=1))


def grasp_of(desk: Desk, name: str, turn_by: float = 0.0) -> Grasp:
    """The best grasp of a block; `turn_by` is how far the hand will turn while holding it, rad."""
    sight = desk.sight
    block = sight.blocks[name]
    upright = int(np.abs(block.matrix[2]).argmax())
    height = block.half_extent((0, 0, 1))
    middle = moved(block.pos, 0, 0, height - 0.024 if height > 0.024 else -0.003)
    options = []
    for axis in range(3):
        if axis == upright or block.size[axis] > WIDEST:
            continue
        direction = block.matrix[:2, axis]
        yaw = half_turn_near(math.atan2(direction[1], direction[0]) + math.pi / 2 + turn_by / 2, sight.yaw)
        yaw -= turn_by / 2
        cost = turn_cost(yaw + turn_by / 2, sight.yaw) + 10 * max(0.0, float(block.size[axis]) - 0.04)
        across = np.array([math.sin(yaw), -math.cos(yaw), 0.0])
        slack = L.GRIPPER_RANGE[1] / 2 - float(block.size[axis]) / 2 - 0.005
        for shift in (0.0, 0.5, -0.5, 1.0, -1.0):  # an open hand need not be in the middle, where there is no room
            tcp = middle + across * slack * shift
            options.append(Grasp(tcp, yaw, cost + 0.2 * abs(shift) + _crowding(desk, block, tcp, yaw)))
    return min(options, key=lambda grasp: grasp.cost)


def _crowding(desk: Desk, block: Block, tcp: Array, yaw: float) -> float:
    """Cost of open fingers that would come down on something, and of a palm that sticks into the cabinet."""
    across = np.array([math.sin(yaw), -math.cos(yaw)])
    along = np.array([math.cos(yaw), math.sin(yaw)])
    corners = [s * across * FINGER_REACH + t * along * L.FINGER_HALF[0] for s in (-1, 1) for t in (-1, 1)]
    fingers = tcp[:2] + np.array(corners)
    cost = 0.0
    for other in desk.sight.blocks.values():
        if other.name != block.name and abs(other.pos[2] - block.pos[2]) < 0.03:
            cost += 3.0 * float(np.clip(1 - distance_to(other, fingers) / 0.014, 0, 1).max())
    if in_drawer(block):
        low, high = desk.layout.drawer_space_at(desk.sight.drawer)
        beyond = np.maximum(low[:2] + 0.009 - fingers, fingers - high[:2] + 0.009).max()
        cost += 100 * max(0.0, float(beyond))
    elif in_cabinet(block):
        cost += 6 * abs(math.cos(yaw))  # the palm's wide side must stay along the opening
    else:
        ring = np.linalg.norm(fingers - desk.layout.button[:2], axis=1).min()
        cost += 100 * max(0.0, L.BUTTON_RING[0] + 0.009 - float(ring))
        palm = float(tcp[1]) + L.PALM_HALF[1] * abs(math.cos(yaw)) + L.PALM_HALF[0] * abs(math.sin(yaw))
        cost += 20 * max(0.0, palm - 0.02)
    return cost


def on_table(desk: Desk, block: Block) -> list[Block]:
    """The other blocks on the table."""
    return [b for b in desk.sight.blocks.values() if b.name != block.name and not in_cabinet(b) and not in_drawer(b)]


def free_spot(desk: Desk, block: Block, xs: Array) -> tuple[tuple[float, float], float]:
    """The best place on the table at one of these x for a block, and its cost."""
    half = float(np.linalg.norm(block.size[:2])) / 2 + 0.008
    others = on_table(desk, block)

    def cost(spot: tuple[float, float]) -> float:
        point = np.array([spot])
        room = min((float(distance_to(other, point)[0]) for other in others), default=1.0)
        room = min(room, float(np.linalg.norm(point[0] - desk.layout.button[:2])) - L.BUTTON_RING[0])
        over = abs(spot[0]) + half - L.TABLE_X[1]
        return 50 * max(0.0, half - room) + 50 * max(0.0, over) + math.dist(spot, block.pos[:2].tolist())

    best = min(((float(x), y) for x in xs for y in (-0.13, -0.11, -0.09, -0.07, -0.05)), key=cost)
    return best, cost(best)

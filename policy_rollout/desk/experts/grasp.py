"""Grasp poses of a block: hand yaw across one of its sides, clear of other objects."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from policy_rollout.desk import layout as L
from policy_rollout.desk.experts.motion import Block, Desk, nearest_yaw, shifted, yaw_cost
from policy_rollout.desk.layout import Layout

Array = npt.NDArray[np.float64]

WIDEST = 0.062  # largest width of a block between the open fingers, metres
SHELF_EDGE_Y = L.PLANK_Y[0]


@dataclass(frozen=True)
class Grasp:
    """tcp position (3,), hand yaw and cost of a grasp."""

    tcp: Array
    yaw: float
    cost: float


def in_cabinet(block: Block) -> bool:
    return bool(block.pos[1] > SHELF_EDGE_Y)


def in_drawer(block: Block) -> bool:
    return bool(block.pos[2] < 0.42)


def openings(layout: Layout, slide: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the openings of the cabinet left and right of the door, each (x from, x to)."""
    (left, right), door = layout.opening_x, layout.door_x - slide
    half = layout.furniture.door_half_width
    return (left, door - half), (door + half, right)


def distance_to(block: Block, points: Array) -> Array:
    """Return the horizontal distance (N,) of points (N, 2) from a block's box, 0 inside."""
    local = np.abs((np.c_[points - block.pos[:2], np.zeros(len(points))]) @ block.matrix)
    outside = np.maximum(local - block.size / 2, 0.0)
    return np.asarray(np.linalg.norm(outside, axis=1))


def grasp_of(desk: Desk, name: str, rotation: float = 0.0) -> Grasp:
    """Return the best grasp of a block; `rotation`: how far the hand will rotate with the block, rad."""
    state = desk.state
    block = state.blocks[name]
    upright = int(np.abs(block.matrix[2]).argmax())
    height = block.half_extent((0, 0, 1))
    middle = shifted(block.pos, 0, 0, height - 0.024 if height > 0.024 else -0.003)
    options = []
    for axis in range(3):
        if axis == upright or block.size[axis] > WIDEST:
            continue
        direction = block.matrix[:2, axis]
        yaw = nearest_yaw(math.atan2(direction[1], direction[0]) + math.pi / 2 + rotation / 2, state.yaw)
        yaw -= rotation / 2
        cost = yaw_cost(yaw + rotation / 2, state.yaw) + 10 * max(0.0, float(block.size[axis]) - 0.04)
        across = np.array([math.sin(yaw), -math.cos(yaw), 0.0])
        slack = desk.layout.hand.open_width / 2 - float(block.size[axis]) / 2 - 0.005
        for shift in (0.0, 0.5, -0.5, 1.0, -1.0):  # off centre, if there is no space in the centre
            tcp = middle + across * slack * shift
            options.append(Grasp(tcp, yaw, cost + 0.2 * abs(shift) + _crowding(desk, block, tcp, yaw)))
    return min(options, key=lambda grasp: grasp.cost)


def _crowding(desk: Desk, block: Block, tcp: Array, yaw: float) -> float:
    """Return the cost of open fingers above other objects, and of a palm inside the cabinet."""
    across = np.array([math.sin(yaw), -math.cos(yaw)])
    along = np.array([math.cos(yaw), math.sin(yaw)])
    hand, ring_radius = desk.layout.hand, desk.layout.furniture.button_ring[0]
    reach = hand.open_width / 2 + hand.finger_half[1]  # from the hand's middle to the middle of an open finger
    corners = [s * across * reach + t * along * hand.finger_half[0] for s in (-1, 1) for t in (-1, 1)]
    fingers = tcp[:2] + np.array(corners)
    cost = 0.0
    for other in desk.state.blocks.values():
        if other.name != block.name and abs(other.pos[2] - block.pos[2]) < 0.03:
            cost += 3.0 * float(np.clip(1 - distance_to(other, fingers) / 0.014, 0, 1).max())
    if in_drawer(block):
        low, high = desk.layout.drawer_space_at(desk.state.drawer)
        beyond = np.maximum(low[:2] + 0.009 - fingers, fingers - high[:2] + 0.009).max()
        cost += 100 * max(0.0, float(beyond))
    elif in_cabinet(block):
        cost += 6 * abs(math.cos(yaw))  # the palm's wide side must be along the opening
    else:
        ring = np.linalg.norm(fingers - desk.layout.button[:2], axis=1).min()
        cost += 100 * max(0.0, ring_radius + 0.009 - float(ring))
        palm = float(tcp[1]) + hand.palm_half[1] * abs(math.cos(yaw)) + hand.palm_half[0] * abs(math.sin(yaw))
        cost += 20 * max(0.0, palm - 0.02)
    return cost


def on_table(desk: Desk, block: Block) -> list[Block]:
    """Return the other blocks on the table."""
    return [b for b in desk.state.blocks.values() if b.name != block.name and not in_cabinet(b) and not in_drawer(b)]


def free_spot(desk: Desk, block: Block, xs: Array) -> tuple[tuple[float, float], float]:
    """Return the best spot on the table for a block at one of these x, and its cost."""
    half = float(np.linalg.norm(block.size[:2])) / 2 + 0.008
    others = on_table(desk, block)

    def cost(spot: tuple[float, float]) -> float:
        point = np.array([spot])
        room = min((float(distance_to(other, point)[0]) for other in others), default=1.0)
        room = min(
            room, float(np.linalg.norm(point[0] - desk.layout.button[:2])) - desk.layout.furniture.button_ring[0]
        )
        excess = abs(spot[0]) + half - desk.layout.furniture.table_x[1]
        return 50 * max(0.0, half - room) + 50 * max(0.0, excess) + math.dist(spot, block.pos[:2].tolist())

    best = min(((float(x), y) for x in xs for y in (-0.13, -0.11, -0.09, -0.07, -0.05)), key=cost)
    return best, cost(best)

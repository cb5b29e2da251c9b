"""Plans for blocks in the hand: grasp, lift, place, stack. Each is a generator of moves.

A plan returns after a failure (a missed grasp, a lost block); the expert then restarts the task's plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from policy_rollout.desk.experts.furniture import free_hand, slide_left, slide_right
from policy_rollout.desk.experts.grasp import Grasp, grasp_of, in_cabinet, in_drawer, openings
from policy_rollout.desk.experts.motion import (
    CLEAR_Y,
    CLOSED,
    HOME_YAW,
    OPEN,
    TRAVEL_Z,
    Block,
    Desk,
    DeskState,
    Move,
    Plan,
    approach,
    finger_direction,
    hand_euler,
    nearest_yaw,
    raise_hand,
    shifted,
    wait,
)
from policy_rollout.desk.layout import Hand
from policy_rollout.desk.rotation import euler_of, matrix_of

Array = npt.NDArray[np.float64]


def grasp_block(desk: Desk, name: str, grasp: Grasp | None = None) -> Plan:
    """Grasp a block on the table or in the drawer; plan the grasp again if the block moves."""
    yield from raise_hand(desk)
    if desk.attempt > 0:
        yield from _slide_bar_aside(desk, name)
    for _ in range(3):
        grasp = grasp or grasp_of(desk, name)
        euler = hand_euler(grasp.yaw)
        moved = is_displaced(desk, name)
        yield approach(grasp.tcp, euler, OPEN, near=0.008, near_angle=0.08, limit=45, until=moved)
        if not moved(desk.state):
            break
        grasp = None
    yield wait(desk, CLOSED, 5)


def _slide_bar_aside(desk: Desk, name: str) -> Plan:
    """Slide the door if its bar blocks the palm, but so little that both door tasks stay feasible."""
    pos, bar = desk.state.blocks[name].pos, desk.layout.door_handle_at(desk.state.slide)
    if -0.08 < pos[1] < 0.02 and abs(float(pos[0] - bar[0])) < desk.layout.hand.palm_half[1] + 0.02:
        yield from (
            slide_left(desk, 0.09)
            if desk.state.slide < desk.layout.furniture.slide_travel / 2
            else slide_right(desk, 0.09)
        )
        yield from raise_hand(desk)


def is_displaced(desk: Desk, name: str) -> Callable[[DeskState], bool]:
    """Return a condition: the block has moved from its current position."""
    pos = desk.state.blocks[name].pos.copy()
    return lambda state: float(np.linalg.norm(state.blocks[name].pos - pos)) > 0.012


def lift(desk: Desk, name: str) -> Plan:
    """Grasp a block and raise it."""
    if in_cabinet(desk.state.blocks[name]):
        yield from _lift_from_cabinet(desk, name)
        return
    if desk.state.held_block is None or desk.state.held_block.name != name:
        if desk.state.held_block is not None:
            yield from free_hand(desk)
        yield from grasp_block(desk, name)
    height = 0.16 if in_drawer(desk.state.blocks[name]) else 0.10
    yield Move(shifted(desk.state.tcp, 0, 0, height), CLOSED, near=0.01, limit=14, until=is_lost(name))


def is_lost(name: str) -> Callable[[DeskState], bool]:
    """Return a condition: the block is no longer near the hand."""
    return lambda state: float(np.linalg.norm(state.blocks[name].pos - state.tcp)) > 0.06


def cabinet_tilt(hand: Hand, x: float, gap: tuple[float, float]) -> float:
    """Return the tilt of the hand to reach into the cabinet at `x`; a palm that does not fit in stays outside."""
    space = min(x - gap[0], gap[1] - x)
    return 0.0 if space > hand.palm_half[1] + 0.008 else 0.8


def _approach_cabinet(desk: Desk, x: float, euler: Array, gripper: float) -> Plan:
    """Move in front of the cabinet, clear of the bars at its front."""
    if abs(float(desk.state.tcp[0]) - x) > 0.04:
        target = np.array([x, CLEAR_Y, TRAVEL_Z + 0.025])
        yield Move(target, gripper, euler, near=0.04, near_angle=0.5)


def _lift_from_cabinet(desk: Desk, name: str) -> Plan:
    block = desk.state.blocks[name]
    x = float(block.pos[0])
    left, right = openings(desk.layout, desk.state.slide)
    margin = 0.045
    gap = next((g for g in (left, right) if g[0] + margin < x < g[1] - margin), None)
    if gap is None:  # the door covers the block
        slide = slide_left if x > (desk.layout.opening_x[0] + desk.layout.opening_x[1]) / 2 else slide_right
        yield from slide(desk)
        return
    yield from raise_hand(desk)
    grasp = grasp_of(desk, name)
    tilt = cabinet_tilt(desk.layout.hand, float(grasp.tcp[0]), gap)
    euler = hand_euler(grasp.yaw, tilt)
    yield from _approach_cabinet(desk, float(grasp.tcp[0]), euler, OPEN)
    back = -finger_direction(max(tilt, 0.5))
    yield approach(shifted(grasp.tcp, 0, 0, 0.003), euler, OPEN, back, near=0.008, near_angle=0.10, height=0.11)
    yield wait(desk, CLOSED, 5)
    direction = 0.6 * np.array([0, 0, 1.0]) - finger_direction(tilt)
    yield Move(
        desk.state.tcp + 0.11 * direction / np.linalg.norm(direction), CLOSED, near=0.01, limit=14, until=is_lost(name)
    )


# ---- with a block in the hand ----


def _fetch_lost_block(desk: Desk) -> Plan:
    """Lift the block that was held at the start, if it was lost."""
    lost_block = desk.start.held_block
    if desk.state.held_block is None and lost_block is not None:
        yield from lift(desk, lost_block.name)


def _level_euler(desk: Desk, block: Block) -> Array:
    """Return Euler angles (3,) of the hand that make the held block level, the hand's wide side across the desk."""
    up = int(np.abs(block.matrix[2]).argmax())
    tip = block.matrix[:, up] * math.copysign(1.0, block.matrix[2, up])
    axis = np.cross(tip, (0.0, 0.0, 1.0))  # its norm is the sine of the angle
    lean = math.atan2(float(np.linalg.norm(axis)), float(tip[2]))
    hand = desk.state.hand
    if lean > 1e-6:
        axis = axis / np.linalg.norm(axis)
        cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
        hand = (np.eye(3) + math.sin(lean) * cross + (1 - math.cos(lean)) * cross @ cross) @ hand
    yaw = math.atan2(float(hand[1, 1]), float(hand[0, 1])) + math.pi / 2
    target_yaw = nearest_yaw(HOME_YAW, desk.state.yaw) if lean < 0.15 else HOME_YAW
    return np.array(euler_of(matrix_of(np.array([0.0, 0.0, target_yaw - yaw])) @ hand))


def _offset(desk: Desk, block: Block, euler: Array) -> Array:
    """Return the vector from the block's centre to the tcp, with the hand at these Euler angles."""
    return np.asarray(matrix_of(euler) @ (desk.state.hand.T @ (desk.state.tcp - block.pos)))


def place_in_drawer(desk: Desk) -> Plan:
    """Put the held block into the open drawer, away from other blocks."""
    yield from _fetch_lost_block(desk)
    yield from raise_hand(desk)
    block = desk.state.held_block
    if block is None:
        return
    low, high = desk.layout.drawer_space_at(desk.state.drawer)
    euler = _level_euler(desk, block)
    y = max(float(low[1]) + 0.05, min(float(high[1]) - 0.07, float(low[1] + high[1]) / 2))
    x = _clear_x(desk, block, (float(low[0]) + 0.065, float(high[0]) - 0.065), y)
    floor = desk.layout.furniture.drawer_floor_z
    spot = np.array([x, y, floor + block.half_extent((0, 0, 1)) + 0.008]) + _offset(desk, block, euler)
    yield approach(spot, euler, CLOSED, near=0.012, near_angle=0.15, limit=60, until=is_lost(block.name))
    yield wait(desk, OPEN, 4)
    yield Move(shifted(desk.state.tcp, 0, 0, 0.12), OPEN, near=0.02, limit=12)


def _clear_x(desk: Desk, block: Block, span: tuple[float, float], y: float) -> float:
    """Return the x in `span` that is near the hand and away from the other blocks at this y."""
    others = [b for b in desk.state.blocks.values() if b.name != block.name and abs(b.pos[1] - y) < 0.10]
    others = [b for b in others if in_drawer(b) or in_cabinet(b)]
    hand_x = float(desk.state.tcp[0])
    options = np.linspace(span[0], span[1], 15) if span[1] > span[0] else np.array([sum(span) / 2])
    space = [min((abs(x - float(b.pos[0])) for b in others), default=1.0) for x in options]
    cost = [5 * max(0.0, 0.11 - s) + 0.3 * abs(float(x) - hand_x) for x, s in zip(options, space, strict=True)]
    return float(options[int(np.argmin(cost))])


def _distance_to_others(desk: Desk, block: Block, x: float) -> float:
    """Return the distance of the nearest other block in the cabinet, metres along x."""
    others = [b for b in desk.state.blocks.values() if b.name != block.name and in_cabinet(b)]
    return min((abs(x - float(b.pos[0])) for b in others), default=1.0)


def place_in_slider(desk: Desk) -> Plan:
    """Put the held block into the open part of the cabinet."""
    yield from _fetch_lost_block(desk)
    yield from raise_hand(desk)
    block = desk.state.held_block
    if block is None:
        return
    gap = max(openings(desk.layout, desk.state.slide), key=lambda g: g[1] - g[0])
    margin = min(0.075, (gap[1] - gap[0]) / 2)
    x = _clear_x(desk, block, (gap[0] + margin, gap[1] - margin), 0.092)
    if gap[1] - gap[0] < 0.22 and _distance_to_others(desk, block, x) < 0.07:
        yield from free_hand(desk)  # the restarted plan lifts the block again
        yield from slide_left(desk) if gap[0] > desk.layout.opening_x[0] + 0.01 else slide_right(desk)
        return
    tilt = cabinet_tilt(desk.layout.hand, x, gap)
    euler = hand_euler(nearest_yaw(HOME_YAW, desk.state.yaw), tilt)
    yield from _approach_cabinet(desk, x, euler, CLOSED)
    block, furniture = desk.state.blocks[block.name], desk.layout.furniture
    # The block keeps its tilt relative to the hand: place its centre so that it drops a little.
    spot = np.array([x, 0.094, furniture.plank_z + furniture.block_height / 2]) + _offset(desk, block, euler)
    spot[2] += _extra_height(desk, block, euler) + 0.005
    back = np.array([0.0, -0.75, 0.66])
    yield approach(
        spot, euler, CLOSED, back, near=0.012, near_angle=0.15, height=0.12, limit=60, until=is_lost(block.name)
    )
    yield wait(desk, OPEN, 4)
    yield Move(desk.state.tcp - finger_direction(tilt) * 0.10, OPEN, near=0.02, limit=12)


def _extra_height(desk: Desk, block: Block, euler: Array) -> float:
    """Return the extra height that a tilted block needs above the floor, compared with a level one."""
    down = desk.state.hand @ matrix_of(euler).T @ np.array([0.0, 0.0, 1.0])
    return block.half_extent(down) - desk.layout.furniture.block_height / 2


def stack(desk: Desk) -> Plan:
    """Put the held block on a block on the table."""
    yield from _fetch_lost_block(desk)
    yield from raise_hand(desk, 0.56)
    block = desk.state.held_block
    if block is None:
        return
    base = _base_for(desk, block)
    if base is None:
        return
    euler = _level_euler(desk, block)
    top = base.pos[2] + base.half_extent((0, 0, 1))
    spot = np.array([base.pos[0], base.pos[1], top + block.half_extent((0, 0, 1)) + 0.003])
    yield approach(spot + _offset(desk, block, euler), euler, CLOSED, near=0.006, near_angle=0.1, limit=60)
    yield wait(desk, OPEN, 4)
    yield Move(shifted(desk.state.tcp, 0, 0, 0.10), OPEN, near=0.02, limit=12)


def _base_for(desk: Desk, block: Block) -> Block | None:
    """Return the nearest block to stack on, preferably one on the table."""
    options = [b for b in desk.state.blocks.values() if b.name != block.name and not in_cabinet(b)]
    if not options:
        return None
    return min(options, key=lambda b: (in_drawer(b), float(np.linalg.norm(b.pos - desk.state.tcp))))


def find_stack(state: DeskState) -> tuple[Block, Block] | None:
    """Return (top, bottom) of a stack, None without one."""
    for top in state.blocks.values():
        for bottom in state.blocks.values():
            offset = top.pos - bottom.pos
            if top is not bottom and 0.03 < offset[2] < 0.065 and np.linalg.norm(offset[:2]) < 0.05:
                return top, bottom
    return None


def unstack(desk: Desk) -> Plan:
    """Grasp the upper block and raise it."""
    pair = find_stack(desk.state)
    if pair is None:
        yield from free_hand(desk)
        return
    name = pair[0].name
    yield from raise_hand(desk, 0.57)
    yield from grasp_block(desk, name)
    yield Move(shifted(desk.state.tcp, 0, 0, 0.08), CLOSED, near=0.01, limit=14, until=is_lost(name))

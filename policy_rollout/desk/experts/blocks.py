"""Plans for the blocks: lift, place, stack, rotate, push. Each is a generator of moves.

A plan that sees that something went wrong (a missed grasp, a lost block) returns; the expert then plans anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from policy_rollout.desk import layout as L
from policy_rollout.desk.experts.furniture import free_hand, slide_left, slide_right
from policy_rollout.desk.experts.grasp import Grasp, gaps, grasp_of, in_cabinet, in_drawer
from policy_rollout.desk.experts.motion import (
    CLEAR_Y,
    CLOSED,
    HOME_YAW,
    OPEN,
    TRAVEL_Z,
    Block,
    Desk,
    Move,
    Plan,
    Sight,
    funnel,
    half_turn_near,
    hand_turn,
    moved,
    reach_of,
    rise,
    wait,
)
from policy_rollout.desk.rotation import euler_of, matrix_of

Array = npt.NDArray[np.float64]


def take(desk: Desk, name: str, grasp: Grasp | None = None) -> Plan:
    """Close the fingers around a block that stands free or in the drawer; look again if it moves meanwhile."""
    yield from rise(desk)
    if desk.attempt > 0:
        yield from _clear_bar(desk, name)
    for _ in range(3):
        grasp = grasp or grasp_of(desk, name)
        turn = hand_turn(grasp.yaw)
        moves_away = displaced(desk, name)
        yield funnel(grasp.tcp, turn, OPEN, near=0.008, near_turn=0.08, limit=45, until=moves_away)
        if not moves_away(desk.sight):
            break
        grasp = None
    yield wait(desk, CLOSED, 5)


def _clear_bar(desk: Desk, name: str) -> Plan:
    """Slide the door if its bar is in the palm's way, but so little that it can still be told to go either way."""
    pos, bar = desk.sight.blocks[name].pos, desk.layout.door_handle_at(desk.sight.slide)
    if -0.08 < pos[1] < 0.02 and abs(float(pos[0] - bar[0])) < L.PALM_HALF[1] + 0.02:
        yield from slide_left(desk, 0.09) if desk.sight.slide < L.SLIDE_RANGE[1] / 2 else slide_right(desk, 0.09)
        yield from rise(desk)


def displaced(desk: Desk, name: str) -> Callable[[Sight], bool]:
    """Whether the block is no longer where it is now."""
    place = desk.sight.blocks[name].pos.copy()
    return lambda sight: float(np.linalg.norm(sight.blocks[name].pos - place)) > 0.012


def lift(desk: Desk, name: str) -> Plan:
    """Take a block and raise it."""
    if in_cabinet(desk.sight.blocks[name]):
        yield from _lift_from_cabinet(desk, name)
        return
    if desk.sight.held is None or desk.sight.held.name != name:
        if desk.sight.held is not None:
            yield from free_hand(desk)
        yield from take(desk, name)
    height = 0.16 if in_drawer(desk.sight.blocks[name]) else 0.10
    yield Move(moved(desk.sight.tcp, 0, 0, height), CLOSED, near=0.01, limit=14, until=lost(name))


def lost(name: str) -> Callable[[Sight], bool]:
    """Whether the block is no longer near the hand."""
    return lambda sight: float(np.linalg.norm(sight.blocks[name].pos - sight.tcp)) > 0.06


def cabinet_tilt(x: float, gap: tuple[float, float]) -> float:
    """How far the hand leans to reach into the cabinet at `x`: where the palm does not fit in, it must stay outside."""
    room = min(x - gap[0], gap[1] - x)
    return 0.0 if room > L.PALM_HALF[1] + 0.008 else 0.8


def _enter(desk: Desk, x: float, turn: Array, gripper: float) -> Plan:
    """Go before the cabinet, clear of the bars that stick out of its front."""
    if abs(float(desk.sight.tcp[0]) - x) > 0.04:
        place = np.array([x, CLEAR_Y, TRAVEL_Z + 0.025])
        yield Move(place, gripper, turn, near=0.04, near_turn=0.5)


def _lift_from_cabinet(desk: Desk, name: str) -> Plan:
    block = desk.sight.blocks[name]
    x = float(block.pos[0])
    left, right = gaps(desk.layout, desk.sight.slide)
    reach = 0.045
    gap = next((g for g in (left, right) if g[0] + reach < x < g[1] - reach), None)
    if gap is None:  # behind the door
        move = slide_left if x > (desk.layout.opening_x[0] + desk.layout.opening_x[1]) / 2 else slide_right
        yield from move(desk)
        return
    yield from rise(desk)
    grasp = grasp_of(desk, name)
    tilt = cabinet_tilt(float(grasp.tcp[0]), gap)
    turn = hand_turn(grasp.yaw, tilt)
    yield from _enter(desk, float(grasp.tcp[0]), turn, OPEN)
    back = -reach_of(max(tilt, 0.5))
    yield funnel(moved(grasp.tcp, 0, 0, 0.003), turn, OPEN, back, near=0.008, near_turn=0.10, height=0.11)
    yield wait(desk, CLOSED, 5)
    away = 0.6 * np.array([0, 0, 1.0]) - reach_of(tilt)
    yield Move(desk.sight.tcp + 0.11 * away / np.linalg.norm(away), CLOSED, near=0.01, limit=14, until=lost(name))


# ---- with a block in the hand ----


def _regain(desk: Desk) -> Plan:
    """If the block that was held at the start has been lost, fetch it."""
    lost_one = desk.start.held
    if desk.sight.held is None and lost_one is not None:
        yield from lift(desk, lost_one.name)


def _level(desk: Desk, block: Block) -> Array:
    """Euler angles (3,) of the hand that make the held block level, the hand's wide side across the desk."""
    up = int(np.abs(block.matrix[2]).argmax())
    tip = block.matrix[:, up] * math.copysign(1.0, block.matrix[2, up])
    axis = np.cross(tip, (0.0, 0.0, 1.0))  # as long as the sine of the lean
    lean = math.atan2(float(np.linalg.norm(axis)), float(tip[2]))
    hand = desk.sight.hand
    if lean > 1e-6:
        axis = axis / np.linalg.norm(axis)
        cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
        hand = (np.eye(3) + math.sin(lean) * cross + (1 - math.cos(lean)) * cross @ cross) @ hand
    yaw = math.atan2(float(hand[1, 1]), float(hand[0, 1])) + math.pi / 2
    wanted = half_turn_near(HOME_YAW, desk.sight.yaw) if lean < 0.15 else HOME_YAW
    return np.array(euler_of(matrix_of(np.array([0.0, 0.0, wanted - yaw])) @ hand))


def _offset(desk: Desk, block: Block, turn: Array) -> Array:
    """From the block's middle to the tcp once the hand has this turn."""
    return np.asarray(matrix_of(turn) @ (desk.sight.hand.T @ (desk.sight.tcp - block.pos)))


def place_in_drawer(desk: Desk) -> Plan:
    """Lower the held block into the open drawer, away from the blocks in it."""
    yield from _regain(desk)
    yield from rise(desk)
    block = desk.sight.held
    if block is None:
        return
    low, high = desk.layout.drawer_space_at(desk.sight.drawer)
    turn = _level(desk, block)
    y = max(float(low[1]) + 0.05, min(float(high[1]) - 0.07, float(low[1] + high[1]) / 2))
    x = _clear_x(desk, block, (float(low[0]) + 0.065, float(high[0]) - 0.065), y)
    spot = np.array([x, y, L.DRAWER_FLOOR_Z + block.half_extent((0, 0, 1)) + 0.008]) + _offset(desk, block, turn)
    yield funnel(spot, turn, CLOSED, near=0.012, near_turn=0.15, limit=60, until=lost(block.name))
    yield wait(desk, OPEN, 4)
    yield Move(moved(desk.sight.tcp, 0, 0, 0.12), OPEN, near=0.02, limit=12)


def _clear_x(desk: Desk, block: Block, span: tuple[float, float], y: float) -> float:
    """The x in `span` nearest to the hand that keeps away from the other blocks at this y."""
    others = [b for b in desk.sight.blocks.values() if b.name != block.name and abs(b.pos[1] - y) < 0.10]
    others = [b for b in others if in_drawer(b) or in_cabinet(b)]
    at = float(desk.sight.tcp[0])
    options = np.linspace(span[0], span[1], 15) if span[1] > span[0] else np.array([sum(span) / 2])
    room = [min((abs(x - float(b.pos[0])) for b in others), default=1.0) for x in options]
    cost = [5 * max(0.0, 0.11 - r) + 0.3 * abs(float(x) - at) for x, r in zip(options, room, strict=True)]
    return float(options[int(np.argmin(cost))])


def _room_at(desk: Desk, block: Block, x: float) -> float:
    """How far the nearest other block in the cabinet is, metres along x."""
    others = [b for b in desk.sight.blocks.values() if b.name != block.name and in_cabinet(b)]
    return min((abs(x - float(b.pos[0])) for b in others), default=1.0)


def place_in_slider(desk: Desk) -> Plan:
    """Put the held block into the opening of the cabinet that the door leaves free."""
    yield from _regain(desk)
    yield from rise(desk)
    block = desk.sight.held
    if block is None:
        return
    gap = max(gaps(desk.layout, desk.sight.slide), key=lambda g: g[1] - g[0])
    margin = min(0.075, (gap[1] - gap[0]) / 2)
    x = _clear_x(desk, block, (gap[0] + margin, gap[1] - margin), 0.092)
    if gap[1] - gap[0] < 0.22 and _room_at(desk, block, x) < 0.07:  # make more: put it down, move the door, come back
        yield from free_hand(desk)
        yield from slide_left(desk) if gap[0] > desk.layout.opening_x[0] + 0.01 else slide_right(desk)
        return
    tilt = cabinet_tilt(x, gap)
    turn = hand_turn(half_turn_near(HOME_YAW, desk.sight.yaw), tilt)
    yield from _enter(desk, x, turn, CLOSED)
    block = desk.sight.blocks[block.name]
    # the block keeps the lean it was grasped with relative to the hand: let its middle be where it may drop a little
    held = _offset(desk, block, turn)
    spot = np.array([x, 0.094, L.PLANK_Z + L.BLOCK_HEIGHT / 2]) + held
    spot[2] += _sink(desk, block, turn) + 0.005
    back = np.array([0.0, -0.75, 0.66])
    yield funnel(spot, turn, CLOSED, back, near=0.012, near_turn=0.15, height=0.12, limit=60, until=lost(block.name))
    yield wait(desk, OPEN, 4)
    yield Move(desk.sight.tcp - reach_of(tilt) * 0.10, OPEN, near=0.02, limit=12)


def _sink(desk: Desk, block: Block, turn: Array) -> float:
    """How much higher a block that hangs askew must be held to clear the floor, compared with a flat one."""
    down = desk.sight.hand @ matrix_of(turn).T @ np.array([0.0, 0.0, 1.0])
    return block.half_extent(down) - L.BLOCK_HEIGHT / 2


def stack(desk: Desk) -> Plan:
    """Put the held block on another one that stands on the table."""
    yield from _regain(desk)
    yield from rise(desk, 0.56)
    block = desk.sight.held
    if block is None:
        return
    base = _base_for(desk, block)
    if base is None:
        return
    turn = _level(desk, block)
    top = base.pos[2] + base.half_extent((0, 0, 1))
    spot = np.array([base.pos[0], base.pos[1], top + block.half_extent((0, 0, 1)) + 0.003])
    yield funnel(spot + _offset(desk, block, turn), turn, CLOSED, near=0.006, near_turn=0.1, limit=60)
    yield wait(desk, OPEN, 4)
    yield Move(moved(desk.sight.tcp, 0, 0, 0.10), OPEN, near=0.02, limit=12)


def _base_for(desk: Desk, block: Block) -> Block | None:
    """The block to stack on: flat, on the table if there is one, near."""
    options = [b for b in desk.sight.blocks.values() if b.name != block.name and not in_cabinet(b)]
    if not options:
        return None
    return min(options, key=lambda b: (in_drawer(b), float(np.linalg.norm(b.pos - desk.sight.tcp))))


def find_stack(sight: Sight) -> tuple[Block, Block] | None:
    """(top, bottom) of a stack."""
    for top in sight.blocks.values():
        for bottom in sight.blocks.values():
            apart = top.pos - bottom.pos
            if top is not bottom and 0.03 < apart[2] < 0.065 and np.linalg.norm(apart[:2]) < 0.05:
                return top, bottom
    return None


def unstack(desk: Desk) -> Plan:
    """Take the upper block off and put it on the table."""
    pair = find_stack(desk.sight)
    if pair is None:
        yield from free_hand(desk)
        return
    name = pair[0].name
    yield from rise(desk, 0.57)
    yield from take(desk, name)
    yield Move(moved(desk.sight.tcp, 0, 0, 0.08), CLOSED, near=0.01, limit=14, until=lost(name))

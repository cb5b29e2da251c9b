"""Plans for the blocks: lift, place, stack, rotate, push. Each is a generator of moves.

A plan that sees that something went wrong (a missed grasp, a lost block) returns; the expert then plans anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from policy_rollout.desk import layout as L
from policy_rollout.desk.experts_furniture import free_hand, slide_left, slide_right
from policy_rollout.desk.experts_grasp import Grasp, distance_to, gaps, grasp_of, in_cabinet, in_drawer
from policy_rollout.desk.experts_motion import (
    CLOSED,
    HOME_YAW,
    OPEN,
    Block,
    Desk,
    Move,
    Plan,
    Sight,
    funnel,
    half_turn_near,
    hand_turn,
    home_turn,
    moved,
    reach_of,
    rise,
    wait,
)
from policy_rollout.desk.rotation import euler_of, matrix_of

Array = npt.NDArray[np.float64]

TURN = math.radians(82)  # of a rotation; the oracle wants more than 60 degrees
PUSH_BEHIND = 0.026  # from a block's side to the middle of the fingers before they push
PUSH_SPEED = 0.75  # of the fastest
COAST_FROM = 0.090  # metres of a push after which the hand stops and the block slides on alone
BLOCKED = 1.2  # cost of a way to push from which on there is none
PUSH_ANGLES = tuple(math.radians(a) for a in (0, 10, -10, 20, -20, 30, -30))


def take(desk: Desk, name: str, grasp: Grasp | None = None) -> Plan:
    """Close the fingers around a block that stands free or in the drawer."""
    yield from rise(desk)
    grasp = grasp or grasp_of(desk, name)
    turn = hand_turn(grasp.yaw)
    yield funnel(grasp.tcp, turn, OPEN, near=0.008, near_turn=0.08)
    yield wait(desk, CLOSED, 5)


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
    yield Move(moved(desk.sight.tcp, 0, 0, height), CLOSED, near=0.01, limit=14, until=_lost(name))


def _lost(name: str) -> Callable[[Sight], bool]:
    """Whether the block is no longer near the hand."""
    return lambda sight: float(np.linalg.norm(sight.blocks[name].pos - sight.tcp)) > 0.06


def cabinet_tilt(width: float) -> float:
    """How far the hand leans: in a narrow opening the palm must stay outside."""
    return 0.5 if width > 0.22 else 0.8


def _lift_from_cabinet(desk: Desk, name: str) -> Plan:
    block = desk.sight.blocks[name]
    x = float(block.pos[0])
    left, right = gaps(desk.layout, desk.sight.slide)
    reach = 0.048
    gap = next((g for g in (left, right) if g[0] + reach < x < g[1] - reach), None)
    if gap is None:  # behind the door
        move = slide_left if x > (desk.layout.opening_x[0] + desk.layout.opening_x[1]) / 2 else slide_right
        yield from move(desk)
        return
    yield from rise(desk)
    grasp = grasp_of(desk, name)
    tilt = cabinet_tilt(gap[1] - gap[0])
    turn = hand_turn(grasp.yaw, tilt)
    yield funnel(moved(grasp.tcp, 0, 0, 0.004), turn, OPEN, -reach_of(tilt), near=0.008, near_turn=0.10, height=0.11)
    yield wait(desk, CLOSED, 5)
    away = 0.6 * np.array([0, 0, 1.0]) - reach_of(tilt)
    yield Move(desk.sight.tcp + 0.11 * away / np.linalg.norm(away), CLOSED, near=0.01, limit=14, until=_lost(name))


# ---- with a block in the hand ----


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
    yield from rise(desk)
    block = desk.sight.held
    if block is None:
        return
    low, high = desk.layout.drawer_space_at(desk.sight.drawer)
    turn = _level(desk, block)
    y = max(float(low[1]) + 0.05, min(float(high[1]) - 0.07, float(low[1] + high[1]) / 2))
    x = _clear_x(desk, block, (float(low[0]) + 0.065, float(high[0]) - 0.065), y)
    spot = np.array([x, y, L.DRAWER_FLOOR_Z + block.half_extent((0, 0, 1)) + 0.008]) + _offset(desk, block, turn)
    yield funnel(spot, turn, CLOSED, near=0.012, near_turn=0.15, height=0.20, limit=60, until=_lost(block.name))
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


def place_in_slider(desk: Desk) -> Plan:
    """Put the held block into the opening of the cabinet that the door leaves free."""
    yield from rise(desk)
    block = desk.sight.held
    if block is None:
        return
    gap = max(gaps(desk.layout, desk.sight.slide), key=lambda g: g[1] - g[0])
    tilt = cabinet_tilt(gap[1] - gap[0])
    turn = hand_turn(half_turn_near(HOME_YAW, desk.sight.yaw), tilt)
    margin = min(0.07, (gap[1] - gap[0]) / 2)
    x = _clear_x(desk, block, (gap[0] + margin, gap[1] - margin), 0.092)
    # the block keeps the lean it was grasped with relative to the hand: let its middle be where it may drop a little
    held = _offset(desk, block, turn)
    spot = np.array([x, 0.094, L.PLANK_Z + L.BLOCK_HEIGHT / 2]) + held
    spot[2] += _sink(desk, block, turn) + 0.005
    back = np.array([0.0, -0.75, 0.66])
    yield funnel(spot, turn, CLOSED, back, near=0.012, near_turn=0.15, height=0.12, limit=60, until=_lost(block.name))
    yield wait(desk, OPEN, 4)
    yield Move(desk.sight.tcp - reach_of(tilt) * 0.10, OPEN, near=0.02, limit=12)


def _sink(desk: Desk, block: Block, turn: Array) -> float:
    """How much higher a block that hangs askew must be held to clear the floor, compared with a flat one."""
    down = desk.sight.hand @ matrix_of(turn).T @ np.array([0.0, 0.0, 1.0])
    return block.half_extent(down) - L.BLOCK_HEIGHT / 2


def stack(desk: Desk) -> Plan:
    """Put the held block on another one that stands on the table."""
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
    yield Move(moved(desk.sight.tcp, 0, 0, 0.08), CLOSED, near=0.01, limit=14, until=_lost(name))


# ---- on the table ----


def rotate(desk: Desk, name: str, left: bool) -> Plan:
    """Take the block, raise it a little, turn it, and let it down."""
    if desk.sight.held is not None:
        yield from free_hand(desk)
    by = TURN if left else -TURN
    yield from rise(desk)
    grasp = grasp_of(desk, name, by)
    yield from take(desk, name, grasp)
    tcp = desk.sight.tcp
    there = np.array([tcp[0], float(np.clip(tcp[1], -0.14, -0.075)), tcp[2] + 0.012])
    yield Move(there, CLOSED, near=0.02, limit=4, near_turn=9.0)
    yield Move(there, CLOSED, hand_turn(grasp.yaw + by), near=0.02, limit=50, until=_lost(name))
    yield Move(moved(there, 0, 0, -0.007), CLOSED, hand_turn(grasp.yaw + by), near=0.004, limit=5)
    yield wait(desk, OPEN, 4)
    yield Move(moved(desk.sight.tcp, 0, 0, 0.09), OPEN, near=0.02, limit=10)


def push(desk: Desk, name: str, left: bool) -> Plan:
    """Shove the block aside with closed fingers; the last bit it slides alone."""
    yield from free_hand(desk)
    block = desk.sight.blocks[name]
    way, cost = _free_way(desk, block, left)
    if cost > BLOCKED or desk.attempt > 3:
        yield from _carry_aside(desk, block, left)
        return
    start_x = float(desk.start.blocks[name].pos[0])
    behind = block.pos - way * (block.half_extent(way) + PUSH_BEHIND)
    behind[2] = L.TABLE_Z + 0.017
    turn = home_turn(desk)
    yield funnel(behind, turn, CLOSED, near=0.010, near_turn=0.2)
    sign = -1.0 if left else 1.0
    stop = COAST_FROM if desk.attempt == 0 else 0.105
    begin = block.pos.copy()

    def goal(sight: Sight) -> Array:
        """A little ahead of the hand, steered so that the block comes back to the line it was to go along."""
        now = sight.blocks[name].pos
        off = (now - begin) - way * float((now - begin) @ way)
        wanted = way - 5.0 * off * [1, 1, 0]
        wanted /= np.linalg.norm(wanted)
        apart = now - sight.tcp
        aside = apart - wanted * float(apart @ wanted)
        target = sight.tcp + wanted * 0.05 + aside * 1.2
        target[2] = behind[2]
        return np.asarray(target)

    def far(sight: Sight) -> bool:
        return bool((sight.blocks[name].pos[0] - start_x) * sign > stop)

    yield Move(goal, CLOSED, turn, limit=20, speed=PUSH_SPEED, until=far, arrive=False)
    yield Move(moved(desk.sight.tcp - way * 0.02, 0, 0, 0.08), CLOSED, near=0.02, limit=10)


def _carry_aside(desk: Desk, block: Block, left: bool) -> Plan:
    """Where there is no way to push: over whatever is in the way; if there is no free place either, make one."""
    begin = float(desk.start.blocks[block.name].pos[0])
    away = np.arange(0.12, 0.36, 0.02) * (-1.0 if left else 1.0)
    spot, cost = _free_spot(desk, block, begin + away)
    if cost < BLOCKED:
        yield from _carry(desk, block, spot)
        return
    others = _on_table(desk, block)
    if others:
        other = min(others, key=lambda b: abs(float(b.pos[0]) - spot[0]))
        yield from _carry(desk, other, _free_spot(desk, other, begin - away)[0])


def _on_table(desk: Desk, block: Block) -> list[Block]:
    """The other blocks on the table."""
    return [b for b in desk.sight.blocks.values() if b.name != block.name and not in_cabinet(b) and not in_drawer(b)]


def _free_spot(desk: Desk, block: Block, xs: Array) -> tuple[tuple[float, float], float]:
    """The best place on the table at one of these x for a block, and its cost."""
    half = float(np.linalg.norm(block.size[:2])) / 2 + 0.008
    others = _on_table(desk, block)

    def cost(spot: tuple[float, float]) -> float:
        point = np.array([spot])
        room = min((float(distance_to(other, point)[0]) for other in others), default=1.0)
        room = min(room, float(np.linalg.norm(point[0] - desk.layout.button[:2])) - L.BUTTON_RING[0])
        over = abs(spot[0]) + half - L.TABLE_X[1]
        return 50 * max(0.0, half - room) + 50 * max(0.0, over) + math.dist(spot, block.pos[:2].tolist())

    best = min(((float(x), y) for x in xs for y in (-0.13, -0.11, -0.09, -0.07, -0.05)), key=cost)
    return best, cost(best)


def _carry(desk: Desk, block: Block, spot: tuple[float, float]) -> Plan:
    """Take a block to a place on the table and drop it from a little above."""
    yield from take(desk, block.name)
    z = float(desk.sight.tcp[2])
    yield Move(moved(desk.sight.tcp, 0, 0, 0.06), CLOSED, near=0.015, limit=8, until=_lost(block.name))
    yield funnel((*spot, z + 0.005), desk.sight.euler, CLOSED, near=0.006, limit=40, until=_lost(block.name))
    yield wait(desk, OPEN, 4)
    yield Move(moved(desk.sight.tcp, 0, 0, 0.08), OPEN, near=0.02, limit=10)


def _free_way(desk: Desk, block: Block, left: bool) -> tuple[Array, float]:
    """Unit vector (3,) of the push and its cost: to the side, slanted where a block or the button is in the way."""
    best, best_cost = np.array([-1.0 if left else 1.0, 0, 0]), math.inf
    for angle in PUSH_ANGLES:
        way = np.array([(-1 if left else 1) * math.cos(angle), math.sin(angle), 0.0])
        length = 0.125 / math.cos(angle)
        start = block.pos - way * (block.half_extent(way) + PUSH_BEHIND + 0.012)
        path = np.linspace(start[:2], (block.pos + way * (length + block.half_extent(way)))[:2], 15)
        half = block.half_extent((-way[1], way[0], 0)) + 0.006
        cost = abs(angle)
        for other in desk.sight.blocks.values():
            if other.name != block.name and not in_cabinet(other) and not in_drawer(other):
                cost += 100 * max(0.0, half - float(distance_to(other, path).min()))
        ring = float(np.linalg.norm(path - desk.layout.button[:2], axis=1).min())
        cost += 100 * max(0.0, half + L.BUTTON_RING[0] - ring)
        end_y = float(path[-1, 1])
        cost += 60 * max(0.0, end_y + 0.01) + 60 * max(0.0, L.TABLE_FRONT_Y + 0.03 - end_y)
        if cost < best_cost:
            best, best_cost = way, cost
    return best, best_cost


def push_into_drawer(desk: Desk) -> Plan:
    """Sweep a block over the table's front edge into the open drawer; carry it there if there is no room to push."""
    if desk.sight.held is not None:
        yield from place_in_drawer(desk)
        return
    yield from free_hand(desk)
    block = _sweepable(desk)
    if block is None:
        return
    low, high = desk.layout.drawer_space_at(desk.sight.drawer)
    way = np.array([0.0, -1.0, 0.0])
    half = block.half_extent((1, 0, 0))
    behind = block.pos - way * (block.half_extent(way) + PUSH_BEHIND - 0.004)
    inside = low[0] + half + 0.008 < block.pos[0] < high[0] - half - 0.008
    others = _on_table(desk, block)
    crowded = any(float(distance_to(b, behind[None, :2]).min()) < 0.025 for b in others)
    if desk.attempt > 1 or not inside or crowded or behind[1] > 0.002:
        yield from take(desk, block.name)
        yield Move(moved(desk.sight.tcp, 0, 0, 0.08), CLOSED, near=0.02, limit=10)
        yield from place_in_drawer(desk)
        return
    behind[2] = L.TABLE_Z + 0.017
    turn = home_turn(desk)
    yield funnel(behind, turn, CLOSED, near=0.010, near_turn=0.2)
    name = block.name

    def goal(sight: Sight) -> Array:
        aside = float(sight.blocks[name].pos[0] - sight.tcp[0])
        return np.array([sight.tcp[0] + aside * 1.5, sight.tcp[1] - 0.05, behind[2]])

    yield Move(goal, CLOSED, turn, limit=25, speed=0.7, until=lambda s: s.blocks[name].pos[2] < 0.42, arrive=False)
    yield Move(moved(desk.sight.tcp, 0, 0, 0.08), CLOSED, near=0.02, limit=10)


def _sweepable(desk: Desk) -> Block | None:
    """The block on the table that is easiest to get into the drawer."""
    low, high = desk.layout.drawer_space_at(desk.sight.drawer)
    blocks = [b for b in desk.sight.blocks.values() if not in_cabinet(b) and not in_drawer(b)]
    outside = {b.name: max(float(low[0] - b.pos[0]), float(b.pos[0] - high[0]), 0.0) for b in blocks}
    return min(blocks, key=lambda b: (outside[b.name], float(b.pos[1])), default=None)

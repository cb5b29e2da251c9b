"""Plans for blocks that stay on the table: rotate, push, sweep into the drawer. Each is a generator of moves.

A plan that sees that something went wrong (a missed grasp, a lost block) returns; the expert then plans anew.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from policy_rollout.desk import layout as L
from policy_rollout.desk.experts.blocks import lost, place_in_drawer, take
from policy_rollout.desk.experts.furniture import free_hand
from policy_rollout.desk.experts.grasp import distance_to, free_spot, grasp_of, in_cabinet, in_drawer, on_table
from policy_rollout.desk.experts.motion import (
    CLOSED,
    OPEN,
    Block,
    Desk,
    Move,
    Plan,
    Sight,
    funnel,
    hand_turn,
    home_turn,
    moved,
    rise,
    wait,
)

Array = npt.NDArray[np.float64]

TURN = math.radians(82)  # of a rotation; the oracle wants more than 60 degrees
PUSH_BEHIND = 0.022  # from a block's side to the middle of the fingers before they push
PUSH_AHEAD = (0.008, 0.019)  # metres that the hand is asked to go per step, at first and when the block is moving
COAST_FROM = 0.090  # metres of a push after which the hand stops and the block slides on alone
BLOCKED = 1.2  # cost of a way to push from which on there is none
PUSH_ANGLES = tuple(math.radians(a) for a in (0, 10, -10, 20, -20, 30, -30))


def rotate(desk: Desk, name: str, left: bool) -> Plan:
    """Take the block, raise it a little, turn it, and let it down."""
    if desk.sight.held is not None:
        yield from free_hand(desk)
    by = TURN if left else -TURN
    yield from rise(desk)
    grasp = grasp_of(desk, name, by)
    yield from take(desk, name, grasp)
    tcp = desk.sight.tcp
    there = np.array([tcp[0], float(np.clip(tcp[1], -0.14, -0.075)), tcp[2] + 0.014])
    yield Move(there, CLOSED, near=0.02, limit=4, near_turn=9.0)
    yield Move(there, CLOSED, hand_turn(grasp.yaw + by), near=0.02, limit=50, until=lost(name))
    yield Move(moved(there, 0, 0, -0.005), CLOSED, hand_turn(grasp.yaw + by), near=0.004, limit=5)
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
    behind[2] = L.TABLE_Z + 0.021
    turn = home_turn(desk)
    yield funnel(behind, turn, CLOSED, near=0.008, near_turn=0.2)
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
        ahead = min(PUSH_AHEAD[1], PUSH_AHEAD[0] + 0.35 * float((now - begin) @ way))
        target = sight.tcp + wanted * max(PUSH_AHEAD[0], ahead) + aside * 1.2
        target[2] = behind[2]
        return np.asarray(target)

    def far(sight: Sight) -> bool:
        return bool((sight.blocks[name].pos[0] - start_x) * sign > stop)

    yield Move(goal, CLOSED, turn, limit=30, until=far, arrive=False)
    yield Move(moved(desk.sight.tcp - way * 0.02, 0, 0, 0.08), CLOSED, near=0.02, limit=10)


def _carry_aside(desk: Desk, block: Block, left: bool) -> Plan:
    """Where there is no way to push: over whatever is in the way; if there is no free place either, make one."""
    begin = float(desk.start.blocks[block.name].pos[0])
    away = np.arange(0.12, 0.36, 0.02) * (-1.0 if left else 1.0)
    spot, cost = free_spot(desk, block, begin + away)
    if cost < BLOCKED:
        yield from _carry(desk, block, spot)
        return
    others = on_table(desk, block)
    if others:
        other = min(others, key=lambda b: abs(float(b.pos[0]) - spot[0]))
        yield from _carry(desk, other, free_spot(desk, other, begin - away)[0])


def _carry(desk: Desk, block: Block, spot: tuple[float, float]) -> Plan:
    """Take a block to a place on the table and drop it from a little above."""
    yield from take(desk, block.name)
    z = float(desk.sight.tcp[2])
    yield Move(moved(desk.sight.tcp, 0, 0, 0.06), CLOSED, near=0.015, limit=8, until=lost(block.name))
    yield funnel((*spot, z + 0.005), desk.sight.euler, CLOSED, near=0.006, limit=40, until=lost(block.name))
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
        cost += 20 * max(0.0, L.TABLE_FRONT_Y + 0.05 - float(block.pos[1] + way[1] * length))  # near the front edge
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
    behind = block.pos - way * (block.half_extent(way) + PUSH_BEHIND - 0.002)
    inside = low[0] + half + 0.008 < block.pos[0] < high[0] - half - 0.008
    others = on_table(desk, block)
    crowded = any(float(distance_to(b, behind[None, :2]).min()) < 0.025 for b in others)
    if desk.attempt > 1 or not inside or crowded or behind[1] > 0.002:
        yield from take(desk, block.name)
        yield Move(moved(desk.sight.tcp, 0, 0, 0.08), CLOSED, near=0.02, limit=10)
        yield from place_in_drawer(desk)
        return
    behind[2] = L.TABLE_Z + 0.021
    turn = home_turn(desk)
    yield funnel(behind, turn, CLOSED, near=0.008, near_turn=0.2)
    name = block.name

    def goal(sight: Sight) -> Array:
        now = sight.blocks[name].pos
        aside = float(now[0] - sight.tcp[0])
        ahead = min(PUSH_AHEAD[1], PUSH_AHEAD[0] + 0.35 * max(0.0, float(block.pos[1] - now[1])))
        return np.array([sight.tcp[0] + aside * 1.2, sight.tcp[1] - ahead, behind[2]])

    yield Move(goal, CLOSED, turn, limit=40, until=lambda s: s.blocks[name].pos[2] < 0.42, arrive=False)
    yield Move(moved(desk.sight.tcp, 0, 0, 0.08), CLOSED, near=0.02, limit=10)


def _sweepable(desk: Desk) -> Block | None:
    """The block on the table that is easiest to get into the drawer."""
    low, high = desk.layout.drawer_space_at(desk.sight.drawer)
    blocks = [b for b in desk.sight.blocks.values() if not in_cabinet(b) and not in_drawer(b)]
    outside = {b.name: max(float(low[0] - b.pos[0]), float(b.pos[0] - high[0]), 0.0) for b in blocks}
    return min(blocks, key=lambda b: (outside[b.name], float(b.pos[1])), default=None)

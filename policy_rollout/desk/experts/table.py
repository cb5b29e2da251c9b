"""Plans for blocks on the table: rotate, push, push into the drawer. Each is a generator of moves.

A plan returns after a failure (a missed grasp, a lost block); the expert then restarts the task's plan.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from policy_rollout.desk.experts.blocks import grasp_block, is_lost, place_in_drawer
from policy_rollout.desk.experts.furniture import free_hand
from policy_rollout.desk.experts.grasp import distance_to, free_spot, grasp_of, in_cabinet, in_drawer, on_table
from policy_rollout.desk.experts.motion import (
    CLOSED,
    OPEN,
    Block,
    Desk,
    DeskState,
    Move,
    Plan,
    approach,
    hand_euler,
    home_euler,
    raise_hand,
    shifted,
    wait,
)

Array = npt.NDArray[np.float64]

ROTATION = math.radians(82)  # of a rotation; the oracle needs more than 60 degrees
PUSH_BEHIND = 0.022  # from a block's side to the centre of the fingers before a push
PUSH_AHEAD = (0.008, 0.019)  # target distance per step in metres, at first and when the block moves
COAST_FROM = 0.090  # metres of a push after which the hand stops and the block slides on
BLOCKED = 1.2  # cost from which on a push is impossible
PUSH_ANGLES = tuple(math.radians(a) for a in (0, 10, -10, 20, -20, 30, -30))


def rotate(desk: Desk, name: str, left: bool) -> Plan:
    """Grasp the block, raise it a little, rotate it, and put it down."""
    if desk.state.held_block is not None:
        yield from free_hand(desk)
    by = ROTATION if left else -ROTATION
    yield from raise_hand(desk)
    grasp = grasp_of(desk, name, by)
    yield from grasp_block(desk, name, grasp)
    tcp = desk.state.tcp
    raised = np.array([tcp[0], float(np.clip(tcp[1], -0.14, -0.075)), tcp[2] + 0.014])
    yield Move(raised, CLOSED, near=0.02, limit=4, near_angle=9.0)
    yield Move(raised, CLOSED, hand_euler(grasp.yaw + by), near=0.02, limit=50, until=is_lost(name))
    yield Move(shifted(raised, 0, 0, -0.005), CLOSED, hand_euler(grasp.yaw + by), near=0.004, limit=5)
    yield wait(desk, OPEN, 4)
    yield Move(shifted(desk.state.tcp, 0, 0, 0.09), OPEN, near=0.02, limit=10)


def push(desk: Desk, name: str, left: bool) -> Plan:
    """Push the block sideways with closed fingers; it slides the last centimetres."""
    yield from free_hand(desk)
    block = desk.state.blocks[name]
    direction, cost = _push_direction(desk, block, left)
    if cost > BLOCKED or desk.attempt > 3:
        yield from _carry_to_side(desk, block, left)
        return
    start_x = float(desk.start.blocks[name].pos[0])
    push_start = block.pos - direction * (block.half_extent(direction) + PUSH_BEHIND)
    push_start[2] = desk.layout.furniture.table_z + 0.021
    euler = home_euler(desk)
    yield approach(push_start, euler, CLOSED, near=0.008, near_angle=0.2)
    sign = -1.0 if left else 1.0
    stop = COAST_FROM if desk.attempt == 0 else 0.105
    start = block.pos.copy()

    def goal(state: DeskState) -> Array:
        """Return a target a little in front of the hand that steers the block back to its line."""
        now = state.blocks[name].pos
        deviation = (now - start) - direction * float((now - start) @ direction)
        push_direction = direction - 5.0 * deviation * [1, 1, 0]
        push_direction /= np.linalg.norm(push_direction)
        offset = now - state.tcp
        lateral = offset - push_direction * float(offset @ push_direction)
        lead = min(PUSH_AHEAD[1], PUSH_AHEAD[0] + 0.35 * float((now - start) @ direction))
        target = state.tcp + push_direction * max(PUSH_AHEAD[0], lead) + lateral * 1.2
        target[2] = push_start[2]
        return np.asarray(target)

    def is_far_enough(state: DeskState) -> bool:
        return bool((state.blocks[name].pos[0] - start_x) * sign > stop)

    if desk.endless:
        yield Move(goal, CLOSED, euler, limit=1000, arrive=False, endless=True)
    yield Move(goal, CLOSED, euler, limit=30, until=is_far_enough, arrive=False)
    yield Move(shifted(desk.state.tcp - direction * 0.02, 0, 0, 0.08), CLOSED, near=0.02, limit=10)


def _carry_to_side(desk: Desk, block: Block, left: bool) -> Plan:
    """Carry the block, as a push is impossible; without a free spot, carry another block out of the way."""
    start = float(desk.start.blocks[block.name].pos[0])
    distances = np.arange(0.12, 0.36, 0.02) * (-1.0 if left else 1.0)
    spot, cost = free_spot(desk, block, start + distances)
    if cost < BLOCKED:
        yield from _carry(desk, block, spot)
        return
    others = on_table(desk, block)
    if others:
        other = min(others, key=lambda b: abs(float(b.pos[0]) - spot[0]))
        yield from _carry(desk, other, free_spot(desk, other, start - distances)[0])


def _carry(desk: Desk, block: Block, spot: tuple[float, float]) -> Plan:
    """Carry a block to a spot on the table and release it a little above."""
    yield from grasp_block(desk, block.name)
    z = float(desk.state.tcp[2])
    yield Move(shifted(desk.state.tcp, 0, 0, 0.06), CLOSED, near=0.015, limit=8, until=is_lost(block.name))
    yield approach((*spot, z + 0.005), desk.state.euler, CLOSED, near=0.006, limit=40, until=is_lost(block.name))
    yield wait(desk, OPEN, 4)
    yield Move(shifted(desk.state.tcp, 0, 0, 0.08), OPEN, near=0.02, limit=10)


def _push_direction(desk: Desk, block: Block, left: bool) -> tuple[Array, float]:
    """Return the unit vector (3,) of a push and its cost: to the side, slanted to avoid blocks and the button."""
    furniture = desk.layout.furniture
    best, best_cost = np.array([-1.0 if left else 1.0, 0, 0]), math.inf
    for angle in PUSH_ANGLES:
        direction = np.array([(-1 if left else 1) * math.cos(angle), math.sin(angle), 0.0])
        length = 0.125 / math.cos(angle)
        start = block.pos - direction * (block.half_extent(direction) + PUSH_BEHIND + 0.012)
        path = np.linspace(start[:2], (block.pos + direction * (length + block.half_extent(direction)))[:2], 15)
        half = block.half_extent((-direction[1], direction[0], 0)) + 0.006
        cost = abs(angle)
        for other in desk.state.blocks.values():
            if other.name != block.name and not in_cabinet(other) and not in_drawer(other):
                cost += 100 * max(0.0, half - float(distance_to(other, path).min()))
        ring = float(np.linalg.norm(path - desk.layout.button[:2], axis=1).min())
        cost += 100 * max(0.0, half + furniture.button_ring[0] - ring)
        end_y = float(path[-1, 1])
        cost += 60 * max(0.0, end_y + 0.01) + 60 * max(0.0, furniture.table_front_y + 0.03 - end_y)
        cost += 20 * max(0.0, furniture.table_front_y + 0.05 - float(block.pos[1] + direction[1] * length))
        if cost < best_cost:
            best, best_cost = direction, cost
    return best, best_cost


def push_into_drawer(desk: Desk) -> Plan:
    """Push a block over the table's front edge into the open drawer; carry it if there is no space to push."""
    if desk.state.held_block is not None:
        yield from place_in_drawer(desk)
        return
    yield from free_hand(desk)
    block = _easiest_block(desk)
    if block is None:
        return
    low, high = desk.layout.drawer_space_at(desk.state.drawer)
    direction = np.array([0.0, -1.0, 0.0])
    half = block.half_extent((1, 0, 0))
    push_start = block.pos - direction * (block.half_extent(direction) + PUSH_BEHIND - 0.002)
    is_above_drawer = low[0] + half + 0.008 < block.pos[0] < high[0] - half - 0.008
    others = on_table(desk, block)
    is_crowded = any(float(distance_to(b, push_start[None, :2]).min()) < 0.025 for b in others)
    if desk.attempt > 1 or not is_above_drawer or is_crowded or push_start[1] > 0.002:
        yield from grasp_block(desk, block.name)
        yield Move(shifted(desk.state.tcp, 0, 0, 0.08), CLOSED, near=0.02, limit=10)
        yield from place_in_drawer(desk)
        return
    push_start[2] = desk.layout.furniture.table_z + 0.021
    euler = home_euler(desk)
    yield approach(push_start, euler, CLOSED, near=0.008, near_angle=0.2)
    name = block.name

    def goal(state: DeskState) -> Array:
        now = state.blocks[name].pos
        lateral = float(now[0] - state.tcp[0])
        lead = min(PUSH_AHEAD[1], PUSH_AHEAD[0] + 0.35 * max(0.0, float(block.pos[1] - now[1])))
        return np.array([state.tcp[0] + lateral * 1.2, state.tcp[1] - lead, push_start[2]])

    yield Move(goal, CLOSED, euler, limit=40, until=lambda s: s.blocks[name].pos[2] < 0.42, arrive=False)
    yield Move(shifted(desk.state.tcp, 0, 0, 0.08), CLOSED, near=0.02, limit=10)


def _easiest_block(desk: Desk) -> Block | None:
    """Return the block on the table that is easiest to push into the drawer, None without one."""
    low, high = desk.layout.drawer_space_at(desk.state.drawer)
    blocks = [b for b in desk.state.blocks.values() if not in_cabinet(b) and not in_drawer(b)]
    outside = {b.name: max(float(low[0] - b.pos[0]), float(b.pos[0] - high[0]), 0.0) for b in blocks}
    return min(blocks, key=lambda b: (outside[b.name], float(b.pos[1])), default=None)

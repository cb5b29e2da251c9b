"""Plans for what is fixed to the desk: drawer, sliding door, button, switch. Each is a generator of moves."""

from __future__ import annotations

import numpy as np

from policy_rollout.desk import layout as L
from policy_rollout.desk.experts.grasp import free_spot
from policy_rollout.desk.experts.motion import (
    CLOSED,
    OPEN,
    TRAVEL_Z,
    Desk,
    Move,
    Plan,
    funnel,
    home_turn,
    moved,
    rise,
    wait,
)

SWITCH_TILT = 0.9  # the fingers must get under the bar
UP = np.array([0.0, *L.FRONT_UP])
OUT = np.array([0.0, *L.FRONT_OUT])


def free_hand(desk: Desk) -> Plan:
    """Rise; a block that is still in the hand is put down on the table first."""
    yield from rise(desk)
    block = desk.sight.held
    if block is not None:
        low, high = desk.layout.table_space
        drop = float(desk.sight.tcp[2] - block.pos[2]) + block.half_extent((0, 0, 1)) + L.TABLE_Z + 0.004
        spot = np.array([*free_spot(desk, block, np.arange(low[0], high[0], 0.03))[0], 0.0])
        turn = home_turn(desk)
        yield Move(moved(spot, 0, 0, TRAVEL_Z), CLOSED, turn, near=0.02, near_turn=0.3)
        yield Move(moved(spot, 0, 0, drop), CLOSED, turn, limit=20)
        yield wait(desk, OPEN, 4)
        yield from rise(desk)


def open_drawer(desk: Desk) -> Plan:
    """Hook the closed fingers behind the bar and pull."""
    yield from free_hand(desk)
    layout, turn = desk.layout, home_turn(desk)
    bar = layout.drawer_handle_at(desk.sight.drawer)
    yield funnel(moved(bar, 0, 0.026, -0.004), turn, CLOSED, near=0.010, near_turn=0.15, steep=4.0)
    end = moved(layout.drawer_handle_at(L.DRAWER_RANGE[1]), 0, -0.02, -0.004)
    yield Move(end, CLOSED, turn, limit=30, until=lambda s: s.drawer > 0.215, arrive=False)


def close_drawer(desk: Desk) -> Plan:
    """Push the bar from the front."""
    yield from free_hand(desk)
    layout, turn = desk.layout, home_turn(desk)
    bar = layout.drawer_handle_at(desk.sight.drawer)
    yield funnel(moved(bar, 0, -0.036, 0.004), turn, CLOSED, near=0.012, near_turn=0.3)
    end = moved(layout.drawer_handle_at(0.0), 0, 0.02, 0.004)
    yield Move(end, CLOSED, turn, limit=30, until=lambda s: s.drawer < 0.004, arrive=False)


def _slide(desk: Desk, left: bool, by: float) -> Plan:
    yield from free_hand(desk)
    layout, turn = desk.layout, home_turn(desk)
    side = 1.0 if left else -1.0  # the fingers push from the other side
    begin = desk.sight.slide
    bar = layout.door_handle_at(begin)
    yield funnel(moved(bar, side * 0.036, 0, 0), turn, CLOSED, np.array([0.0, -0.8, 0.6]), near=0.012, near_turn=0.3)
    last = min(begin + by, L.SLIDE_RANGE[1]) if left else max(begin - by, 0.0)
    end = moved(layout.door_handle_at(last), -side * 0.02, 0, 0)
    yield Move(end, CLOSED, turn, limit=40, until=lambda s: (s.slide - last) * side > -0.005, arrive=False)


def slide_left(desk: Desk, by: float = 1.0) -> Plan:
    """Push the door's bar from the right; `by` is how far, metres, at most to the end."""
    yield from _slide(desk, True, by)


def slide_right(desk: Desk, by: float = 1.0) -> Plan:
    """Push the door's bar from the left."""
    yield from _slide(desk, False, by)


def press_button(desk: Desk) -> Plan:
    """Press with closed fingers and let go: every press toggles the LED."""
    yield from free_hand(desk)
    turn = home_turn(desk)
    tip = np.array([0, 0, L.FINGER_TIP])
    top = desk.layout.button + tip
    lit = desk.sight.led
    yield funnel(moved(top, 0, 0, 0.012), turn, CLOSED, near=0.012, near_turn=0.4)
    yield Move(moved(top, 0, 0, -0.03), CLOSED, turn, limit=10, until=lambda s: s.led != lit, arrive=False)
    yield Move(moved(top, 0, 0, 0.04), CLOSED, turn, near=0.01, limit=10)


def switch_up(desk: Desk) -> Plan:
    """Get under the bar with a tilted hand and push it up along the cabinet's front."""
    yield from free_hand(desk)
    layout, turn = desk.layout, home_turn(desk, SWITCH_TILT)
    bar = layout.switch_handle_at(desk.sight.switch)
    below = bar - UP * 0.030 + OUT * 0.006
    yield funnel(below, turn, CLOSED, OUT * 0.8 - UP * 0.6, near=0.012, near_turn=0.3)
    end = layout.switch_handle_at(L.SWITCH_RANGE[1]) + OUT * 0.006
    yield Move(end, CLOSED, turn, limit=25, until=lambda s: s.switch > 0.084, arrive=False)
    yield Move(end + OUT * 0.07, CLOSED, turn, near=0.02, limit=8)


def switch_down(desk: Desk) -> Plan:
    """Push the bar down from above with an upright hand."""
    yield from free_hand(desk)
    layout, turn = desk.layout, home_turn(desk)
    bar = layout.switch_handle_at(desk.sight.switch)
    yield funnel(moved(bar, 0, 0, 0.034), turn, CLOSED, np.array([0.0, -0.8, 0.6]), near=0.012, near_turn=0.3)
    end = moved(layout.switch_handle_at(0.0), 0, 0, -0.005)
    yield Move(end, CLOSED, turn, limit=25, until=lambda s: s.switch < 0.004, arrive=False)

"""Plans for drawer, sliding door, button and switch. Each is a generator of moves."""

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
    approach,
    home_euler,
    raise_hand,
    shifted,
    wait,
)

SWITCH_TILT = 0.9  # the fingers must get under the bar
UP = np.array([0.0, *L.FRONT_UP])
OUT = np.array([0.0, *L.FRONT_OUT])


def free_hand(desk: Desk) -> Plan:
    """Raise the hand; put a held block down on the table first."""
    yield from raise_hand(desk)
    block = desk.state.held_block
    if block is not None:
        low, high = desk.layout.table_space
        height = (
            float(desk.state.tcp[2] - block.pos[2])
            + block.half_extent((0, 0, 1))
            + desk.layout.furniture.table_z
            + 0.004
        )
        spot = np.array([*free_spot(desk, block, np.arange(low[0], high[0], 0.03))[0], 0.0])
        euler = home_euler(desk)
        yield Move(shifted(spot, 0, 0, TRAVEL_Z), CLOSED, euler, near=0.02, near_angle=0.3)
        yield Move(shifted(spot, 0, 0, height), CLOSED, euler, limit=20)
        yield wait(desk, OPEN, 4)
        yield from raise_hand(desk)


def open_drawer(desk: Desk) -> Plan:
    """Pull the bar from behind with closed fingers."""
    yield from free_hand(desk)
    layout, euler = desk.layout, home_euler(desk)
    bar = layout.drawer_handle_at(desk.state.drawer)
    yield approach(shifted(bar, 0, 0.026, -0.004), euler, CLOSED, near=0.010, near_angle=0.15, slope=4.0)
    end = shifted(layout.drawer_handle_at(layout.furniture.drawer_travel), 0, -0.02, -0.004)
    yield Move(end, CLOSED, euler, limit=30, until=lambda s: s.drawer > 0.215, arrive=False)


def close_drawer(desk: Desk) -> Plan:
    """Push the bar from the front."""
    yield from free_hand(desk)
    layout, euler = desk.layout, home_euler(desk)
    bar = layout.drawer_handle_at(desk.state.drawer)
    yield approach(shifted(bar, 0, -0.036, 0.004), euler, CLOSED, near=0.012, near_angle=0.3)
    end = shifted(layout.drawer_handle_at(0.0), 0, 0.02, 0.004)
    yield Move(end, CLOSED, euler, limit=30, until=lambda s: s.drawer < 0.004, arrive=False)


def _slide(desk: Desk, left: bool, by: float) -> Plan:
    yield from free_hand(desk)
    layout, euler = desk.layout, home_euler(desk)
    side = 1.0 if left else -1.0  # the fingers push from the other side
    start = desk.state.slide
    bar = layout.door_handle_at(start)
    yield approach(
        shifted(bar, side * 0.036, 0, 0), euler, CLOSED, np.array([0.0, -0.8, 0.6]), near=0.012, near_angle=0.3
    )
    last = min(start + by, layout.furniture.slide_travel) if left else max(start - by, 0.0)
    end = shifted(layout.door_handle_at(last), -side * 0.02, 0, 0)
    yield Move(end, CLOSED, euler, limit=40, until=lambda s: (s.slide - last) * side > -0.005, arrive=False)


def slide_left(desk: Desk, by: float = 1.0) -> Plan:
    """Push the door's bar from the right, by at most `by` metres."""
    yield from _slide(desk, True, by)


def slide_right(desk: Desk, by: float = 1.0) -> Plan:
    """Push the door's bar from the left, by at most `by` metres."""
    yield from _slide(desk, False, by)


def press_button(desk: Desk) -> Plan:
    """Press the button with closed fingers and release it: every press toggles the LED."""
    yield from free_hand(desk)
    euler = home_euler(desk)
    tip = np.array([0, 0, desk.layout.hand.finger_tip])
    top = desk.layout.button + tip
    lit = desk.state.led
    yield approach(shifted(top, 0, 0, 0.012), euler, CLOSED, near=0.012, near_angle=0.4)
    yield Move(shifted(top, 0, 0, -0.03), CLOSED, euler, limit=10, until=lambda s: s.led != lit, arrive=False)
    yield Move(shifted(top, 0, 0, 0.04), CLOSED, euler, near=0.01, limit=10)


def switch_up(desk: Desk) -> Plan:
    """Push the bar up along the cabinet's front, from below with a tilted hand."""
    yield from free_hand(desk)
    layout, euler = desk.layout, home_euler(desk, SWITCH_TILT)
    bar = layout.switch_handle_at(desk.state.switch)
    below = bar - UP * 0.030 + OUT * 0.006
    yield approach(below, euler, CLOSED, OUT * 0.8 - UP * 0.6, near=0.012, near_angle=0.3)
    end = layout.switch_handle_at(layout.furniture.switch_travel) + OUT * 0.006
    yield Move(end, CLOSED, euler, limit=25, until=lambda s: s.switch > 0.084, arrive=False)
    yield Move(end + OUT * 0.07, CLOSED, euler, near=0.02, limit=8)


def switch_down(desk: Desk) -> Plan:
    """Push the bar down from above, with a vertical hand if it reaches that far."""
    yield from free_hand(desk)
    layout, tilt = desk.layout, desk.layout.hand.far_tilt
    euler = home_euler(desk, tilt)
    bar, last = layout.switch_handle_at(desk.state.switch), layout.switch_handle_at(0.0)
    if tilt:  # along the front, the fingers above the bar
        above = layout.furniture.switch_bar_half[1] + layout.hand.finger_half[0]
        start, end = bar + UP * (above + 0.012) + OUT * 0.006, last + UP * (above - 0.02) + OUT * 0.006
    else:
        start, end = shifted(bar, 0, 0, 0.034), shifted(last, 0, 0, -0.005)
    yield approach(start, euler, CLOSED, np.array([0.0, -0.8, 0.6]), near=0.012, near_angle=0.3)
    yield Move(end, CLOSED, euler, limit=25, until=lambda s: s.switch < 0.004, arrive=False)

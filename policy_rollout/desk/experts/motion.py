"""State and motions of the scripted experts, independent of tasks.

An expert reads `robot_obs`, `scene_obs` and the layout's constants, and returns relative actions (7,). Directions and
positions are in the world frame, metres; angles in rad.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from policy_rollout.desk import layout as L
from policy_rollout.desk.control import MAX_REL_ORN, MAX_REL_POS
from policy_rollout.desk.layout import Layout
from policy_rollout.desk.rotation import euler_of, matrix_of, nearest_angle

Array = npt.NDArray[np.float64]

HOME_YAW = math.pi / 2
CLEAR_Y = -0.065  # in front of this there is no part of the cabinet
TRAVEL_Z = 0.535  # height of the tcp above blocks and button
OPEN, CLOSED = 1.0, -1.0
FAR = 0.04  # metres from the goal of a move that was not followed
GAIN = 0.8  # fraction of the remaining distance per step, so that the servos do not overshoot
BIAS_GAIN = 0.3  # part of the last error by which the estimated error of the arm changes
LARGEST_BIAS = 0.02  # metres; the arm is off by more out of its reach and against obstacles only
SLOW = 0.6  # actions below are small enough to estimate the error of the arm
ARM_GAIN = 0.5  # the same for an arm that lags behind its target
_FLIP = matrix_of(np.array([math.pi, 0.0, 0.0]))


@dataclass(frozen=True)
class Block:
    """One block: centre (3,), Euler angles (3,), full edge lengths (3,)."""

    name: str
    pos: Array
    euler: Array
    size: Array

    @cached_property
    def matrix(self) -> Array:
        """Rotation matrix (3, 3)."""
        return matrix_of(self.euler)

    def half_extent(self, direction: npt.ArrayLike) -> float:
        """Return half of its width along a unit vector of the world."""
        return float(np.abs(self.matrix.T @ np.asarray(direction)) @ self.size) / 2


@dataclass(frozen=True)
class DeskState:
    """A parsed observation."""

    tcp: Array
    euler: Array
    hand: Array  # rotation matrix
    width: float
    closing: bool
    slide: float
    drawer: float
    button: float
    switch: float
    bulb: bool
    led: bool
    blocks: dict[str, Block]

    @classmethod
    def of(cls, obs: Mapping[str, Any], layout: Layout) -> DeskState:
        robot, scene = np.asarray(obs["robot_obs"], np.float64), np.asarray(obs["scene_obs"], np.float64)
        blocks = {}
        for name, values in zip(L.BLOCKS, scene[6:].reshape(3, 6), strict=True):
            blocks[name] = Block(name, values[:3], values[3:], np.array(layout.blocks[name]))
        slide, drawer, button, switch, bulb, led = scene[:6].tolist()
        hand = matrix_of(robot[3:6])
        closing = bool(robot[14] < 0)
        lights = bulb > 0.5, led > 0.5
        return cls(
            robot[:3], robot[3:6], hand, float(robot[6]), closing, slide, drawer, button, switch, *lights, blocks
        )

    @property
    def yaw(self) -> float:
        """Yaw of the hand: the angle of the direction in which the fingers open, plus pi / 2."""
        return math.atan2(float(self.hand[1, 1]), float(self.hand[0, 1])) + math.pi / 2

    @property
    def held_block(self) -> Block | None:
        """The block between the closed fingers, None without one."""
        if not self.closing or not 0.01 < self.width < 0.075:
            return None
        for block in self.blocks.values():
            x, y, z = np.abs(self.hand.T @ (block.pos - self.tcp)).tolist()
            if x < 0.04 and y < 0.02 and z < 0.035:
                return block
        return None


def hand_euler(yaw: float, tilt: float = 0.0) -> Array:
    """Return Euler angles (3,) of a hand with this `yaw` that points down and, with `tilt`, away from the viewer."""
    turned = matrix_of(np.array([0.0, 0.0, yaw])) @ _FLIP
    return np.array(euler_of(matrix_of(np.array([tilt, 0.0, 0.0])) @ turned))


def finger_direction(tilt: float) -> Array:
    """Return the direction of the fingers of a hand with this tilt."""
    return np.array([0.0, math.sin(tilt), -math.cos(tilt)])


def shifted(point: Array, x: float, y: float, z: float) -> Array:
    """Return `point` (3,) shifted by metres along the axes of the world."""
    return np.asarray(point + np.array([x, y, z]))


def nearest_yaw(yaw: float, current: float) -> float:
    """Return the equivalent of `yaw` (modulo pi, as the hand is symmetric) with the lowest cost from `current`."""
    options = [yaw + k * math.pi for k in range(-3, 4)]
    return min(options, key=lambda option: yaw_cost(option, current))


def yaw_cost(yaw: float, current: float) -> float:
    """Return the cost of a rotation from `current` to `yaw`, in rad."""
    return abs(_wrap(yaw - current)) + 0.3 * abs(_wrap(yaw - HOME_YAW))


def _wrap(angle: float) -> float:
    return (angle + math.pi) % (2 * math.pi) - math.pi


Goal = Array | Callable[[DeskState], Array]


@dataclass(frozen=True)
class Move:
    """Move to a goal, until close enough, until a condition holds, or until a time limit.

    `goal` may depend on the state; without `euler` the hand keeps its orientation at the start of the move.
    """

    goal: Goal
    gripper: float
    euler: Array | None = None
    near: float = 0.006  # metres, distance at which the move ends
    near_angle: float = 0.06  # rad
    limit: int = 40  # steps
    speed: float = 1.0  # largest component of the action
    until: Callable[[DeskState], bool] | None = None
    arrive: bool = True  # False: only `until` and `limit` end it
    endless: bool = False  # continues when the task has succeeded

    def target(self, state: DeskState) -> Array:
        return self.goal(state) if callable(self.goal) else self.goal

    def is_over(self, state: DeskState, euler: Array) -> bool:
        if self.until is not None and self.until(state):
            return True
        if not self.arrive:
            return False
        close = float(np.linalg.norm(self.target(state) - state.tcp)) < self.near
        return close and angle_error(state, euler) < self.near_angle

    def is_far(self, state: DeskState) -> bool:
        """Return whether a move that should arrive is far from its goal."""
        return self.arrive and float(np.linalg.norm(self.target(state) - state.tcp)) > FAR

    def action(self, state: DeskState, euler: Array, gain: float = GAIN) -> Array:
        """Return the relative action (7,): straight in space, all angles simultaneously."""
        step = (self.target(state) - state.tcp) * (gain / MAX_REL_POS)
        step *= min(1.0, self.speed / max(1e-9, float(np.abs(step).max())))
        spin = (nearest_angle(euler, state.euler) - state.euler) * (gain / MAX_REL_ORN)
        return np.concatenate([step, np.clip(spin, -1.0, 1.0), [self.gripper]])


def angle_error(state: DeskState, euler: Array) -> float:
    """Return the largest difference of angles, rad."""
    return float(np.abs(nearest_angle(euler, state.euler) - state.euler).max())


Plan = Iterator[Move]


@dataclass
class Desk:
    """Context of a plan: layout, current state, state at the start of the task."""

    layout: Layout
    state: DeskState
    start: DeskState
    rng: np.random.Generator
    attempt: int = 0
    endless: bool = False  # motions whose start a later image does not show have no end


def approach(point: npt.ArrayLike, euler: Array, gripper: float, back: Array | None = None, **options: Any) -> Move:
    """Approach `point` against the direction `back` (default: from above), as far as position and angles are aligned.

    The hand starts `height` away (default from above: at travelling height) and comes `slope` metres nearer with every
    metre of lateral alignment.
    """
    target = np.asarray(point, np.float64)
    along = np.array([0.0, 0.0, 1.0]) if back is None else back
    lowest = 0.075 if back is not None else max(0.075, TRAVEL_Z - float(target[2]))
    height = float(options.pop("height", lowest))
    slope = float(options.pop("slope", 2.0))

    def goal(state: DeskState) -> Array:
        off = state.tcp - target
        lateral = float(np.linalg.norm(off - along * float(off @ along)))
        distance = slope * (lateral - 0.008) + 0.25 * (angle_error(state, euler) - 0.10)
        return target + along * min(height, max(0.0, distance))

    return Move(goal, gripper, euler, **options)


def wait(desk: Desk, gripper: float, steps: int, until: Callable[[DeskState], bool] | None = None) -> Move:
    """Keep the hand still and move only the fingers."""
    return Move(desk.state.tcp.copy(), gripper, limit=steps, until=until, arrive=False)


def home_euler(desk: Desk, tilt: float = 0.0) -> Array:
    """Return Euler angles of the hand with its wide side across the desk, by the shorter rotation."""
    return hand_euler(nearest_yaw(HOME_YAW, desk.state.yaw), tilt)


def raise_hand(desk: Desk, height: float = TRAVEL_Z) -> Plan:
    """Retract the hand from any position and raise it to travelling height, without moving the fingers."""
    state = desk.state
    gripper = CLOSED if state.closing else OPEN
    tcp = state.tcp
    for block in state.blocks.values():  # clear a stack without moving its top
        if block is not state.held_block and float(np.linalg.norm(block.pos[:2] - tcp[:2])) < 0.07:
            height = max(
                height, float(block.pos[2]) + block.half_extent((0, 0, 1)) + desk.layout.hand.finger_tip + 0.028
            )
    if tcp[1] > -0.03 and tcp[2] < 0.64:  # near or in the cabinet: retract against the direction of the fingers
        direction = 0.4 * np.array([0.0, 0.0, 1.0]) - state.hand[:, 2]
        direction = direction / np.linalg.norm(direction)
        if direction[1] > -0.2:  # a vertical hand retracts towards the viewer and up
            direction = np.array([0.0, -0.6, 0.8])
        yield Move(tcp + direction * 0.10, gripper, near=0.02, near_angle=9.0, limit=10)
        tcp = desk.state.tcp
    if tcp[1] > CLEAR_Y + 0.02 and tcp[2] < 0.64:  # in front of the bars of door and switch
        yield Move(np.array([tcp[0], CLEAR_Y, max(tcp[2], height)]), gripper, near=0.025, near_angle=9.0, limit=12)
    elif tcp[2] < height - 0.01:
        yield Move(np.array([tcp[0], tcp[1], height]), gripper, near=0.015, near_angle=9.0, limit=25)


@dataclass
class ArmTarget:
    """The target of an arm that lags behind it: known from the actions, as an observation does not contain it.

    A relative action moves the target, and the tcp covers the part `response` of the distance to it in a control step
    (``Hand.response``). The target starts at the tcp, where a reset puts it. Inverse kinematics is not exact: the tcp
    settles some millimetres beside the target. That distance is estimated from where the tcp was expected.
    """

    response: float
    _pos: Array | None = None
    _euler: Array = field(default_factory=lambda: np.zeros(3))
    _before: Array | None = None  # tcp before the last action
    _bias: Array = field(default_factory=lambda: np.zeros(3))

    def lead(self, motion: Array, state: DeskState) -> Array:
        """Return the action (7,) whose result is the `motion` (7,) of the tcp in this step, as far as it is allowed.

        It puts the target ahead of the tcp by no more than the motion needs, so that nothing accumulates while the hand
        pushes against something.
        """
        if self._pos is None:
            self._pos, self._euler = state.tcp.copy(), state.euler.copy()
        if self._before is not None and float(np.abs(motion[:3]).max()) < SLOW:
            missed = self._before + self.response * (self._pos - self._bias - self._before) - state.tcp
            self._bias = np.clip(self._bias + BIAS_GAIN * missed, -LARGEST_BIAS, LARGEST_BIAS)
        self._before = state.tcp.copy()
        ahead = state.tcp + motion[:3] * (MAX_REL_POS / self.response) + self._bias
        angles = nearest_angle(state.euler, self._euler) + motion[3:6] * (MAX_REL_ORN / self.response)
        step = (ahead - self._pos) / MAX_REL_POS
        step /= max(1.0, float(np.abs(step).max()))
        spin = np.clip((angles - self._euler) / MAX_REL_ORN, -1.0, 1.0)
        return np.concatenate([step, spin, motion[6:]])

    def follow(self, action: Array) -> None:
        """Add an action (7,) that is executed."""
        if self._pos is not None:
            self._pos = self._pos + action[:3] * MAX_REL_POS
            self._euler = self._euler + action[3:6] * MAX_REL_ORN


@dataclass(frozen=True)
class Noise:
    """Disturbances of an expert's actions, in units of the action.

    Every action gets gaussian noise; with probability `burst_rate` per step a random push of at most `burst_size`
    starts, which lasts for `burst_steps`. The gripper has no noise.
    """

    sigma: float = 0.0
    burst_rate: float = 0.0
    burst_size: float = 0.8
    burst_steps: tuple[int, int] = (2, 5)


QUIET = Noise()
PLAY = Noise(sigma=0.15, burst_rate=0.012)


@dataclass
class Disturber:
    """Adds the noise of one expert."""

    noise: Noise
    rng: np.random.Generator
    _burst_left: int = 0
    _burst: Array = field(default_factory=lambda: np.zeros(6))

    def disturb(self, action: Array) -> Array:
        """Return the action (7,) with noise, every component in [-1, 1]."""
        noise, out = self.noise, action.copy()
        if noise.sigma > 0:
            out[:6] += self.rng.normal(0.0, noise.sigma, 6)
        if self._burst_left == 0 and noise.burst_rate > 0 and self.rng.random() < noise.burst_rate:
            self._burst_left = int(self.rng.integers(noise.burst_steps[0], noise.burst_steps[1] + 1))
            self._burst = self.rng.uniform(-noise.burst_size, noise.burst_size, 6)
        if self._burst_left > 0:
            self._burst_left -= 1
            out[:6] += self._burst
        return np.clip(out, -1.0, 1.0)

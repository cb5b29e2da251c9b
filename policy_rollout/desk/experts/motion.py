"""What a scripted expert sees, and the straight moves it makes: the parts that know no task.

An expert looks at `robot_obs`, `scene_obs` and the layout's constants, and answers with the 7-vector of relative
actions. Directions and positions are in the world frame, metres; angles in rad.
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
from policy_rollout.desk.rotation import euler_of, matrix_of, nearest_turn

Array = npt.NDArray[np.float64]

HOME_YAW = math.pi / 2
CLEAR_Y = -0.065  # nearer to the viewer than this nothing sticks out of the cabinet
TRAVEL_Z = 0.535  # the tcp passes over blocks and button at this height
OPEN, CLOSED = 1.0, -1.0
GAIN = 0.8  # share of the remaining way that is asked for per step; the servos then arrive without overshooting
_FLIP = matrix_of(np.array([math.pi, 0.0, 0.0]))


@dataclass(frozen=True)
class Block:
    """One block as seen: middle (3,), Euler angles (3,), full edge lengths (3,)."""

    name: str
    pos: Array
    euler: Array
    size: Array

    @cached_property
    def matrix(self) -> Array:
        """Rotation matrix (3, 3)."""
        return matrix_of(self.euler)

    def half_extent(self, direction: npt.ArrayLike) -> float:
        """Half of its width along a unit vector of the world."""
        return float(np.abs(self.matrix.T @ np.asarray(direction)) @ self.size) / 2


@dataclass(frozen=True)
class Sight:
    """An observation, taken apart."""

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
    def of(cls, obs: Mapping[str, Any], layout: Layout) -> Sight:
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
        """Which way the hand is turned: the angle of the direction its fingers open along, plus pi / 2."""
        return math.atan2(float(self.hand[1, 1]), float(self.hand[0, 1])) + math.pi / 2

    @property
    def held(self) -> Block | None:
        """The block between the closed fingers."""
        if not self.closing or not 0.01 < self.width < 0.075:
            return None
        for block in self.blocks.values():
            x, y, z = np.abs(self.hand.T @ (block.pos - self.tcp)).tolist()
            if x < 0.04 and y < 0.02 and z < 0.035:
                return block
        return None


def hand_turn(yaw: float, tilt: float = 0.0) -> Array:
    """Euler angles (3,) of a hand turned by `yaw` whose fingers reach down and, with `tilt`, away from the viewer."""
    turned = matrix_of(np.array([0.0, 0.0, yaw])) @ _FLIP
    return np.array(euler_of(matrix_of(np.array([tilt, 0.0, 0.0])) @ turned))


def reach_of(tilt: float) -> Array:
    """Where the fingers of a hand with this tilt point."""
    return np.array([0.0, math.sin(tilt), -math.cos(tilt)])


def moved(point: Array, x: float, y: float, z: float) -> Array:
    """`point` (3,) shifted by metres along the axes of the world."""
    return np.asarray(point + np.array([x, y, z]))


def half_turn_near(yaw: float, current: float) -> float:
    """`yaw` or `yaw + pi` (the hand has two equal sides): what is near the current one, and rather not upside down."""
    options = [yaw + k * math.pi for k in range(-3, 4)]
    return min(options, key=lambda option: turn_cost(option, current))


def turn_cost(yaw: float, current: float) -> float:
    """How much a hand dislikes to turn from `current` to `yaw`, in rad."""
    return abs(_wrap(yaw - current)) + 0.3 * abs(_wrap(yaw - HOME_YAW))


def _wrap(angle: float) -> float:
    return (angle + math.pi) % (2 * math.pi) - math.pi


Goal = Array | Callable[[Sight], Array]


@dataclass(frozen=True)
class Move:
    """Go to a place and stay there, until close enough, until a condition holds, or until time is up.

    `goal` may depend on what is seen; without `turn` the hand keeps its orientation at the move's start.
    """

    goal: Goal
    gripper: float
    turn: Array | None = None
    near: float = 0.006  # metres, distance at which the move is over
    near_turn: float = 0.06  # rad
    limit: int = 40  # steps
    speed: float = 1.0  # largest component of the action
    until: Callable[[Sight], bool] | None = None
    arrive: bool = True  # False: only `until` and `limit` end it

    def place(self, sight: Sight) -> Array:
        return self.goal(sight) if callable(self.goal) else self.goal

    def over(self, sight: Sight, turn: Array) -> bool:
        if self.until is not None and self.until(sight):
            return True
        if not self.arrive:
            return False
        close = float(np.linalg.norm(self.place(sight) - sight.tcp)) < self.near
        return close and turn_error(sight, turn) < self.near_turn

    def action(self, sight: Sight, turn: Array) -> Array:
        """The relative action (7,): a straight line in space, all angles at once."""
        step = (self.place(sight) - sight.tcp) * (GAIN / MAX_REL_POS)
        step *= min(1.0, self.speed / max(1e-9, float(np.abs(step).max())))
        spin = (nearest_turn(turn, sight.euler) - sight.euler) * (GAIN / MAX_REL_ORN)
        return np.concatenate([step, np.clip(spin, -1.0, 1.0), [self.gripper]])


def turn_error(sight: Sight, turn: Array) -> float:
    """Largest angle that is missing, rad."""
    return float(np.abs(nearest_turn(turn, sight.euler) - sight.euler).max())


Plan = Iterator[Move]


@dataclass
class Desk:
    """What a plan reads while it runs: the layout, what is seen now, what was seen at the task's start."""

    layout: Layout
    sight: Sight
    start: Sight
    rng: np.random.Generator
    attempt: int = 0


def funnel(point: npt.ArrayLike, turn: Array, gripper: float, back: Array | None = None, **options: Any) -> Move:
    """Come to `point` along `back` reversed (from above by default), only as close as place and turn are right.

    Until then the hand is `height` away, from above at travelling height; it may come `steep` metres nearer with every
    metre that it is less aside.
    """
    target = np.asarray(point, np.float64)
    along = np.array([0.0, 0.0, 1.0]) if back is None else back
    lowest = 0.075 if back is not None else max(0.075, TRAVEL_Z - float(target[2]))
    height = float(options.pop("height", lowest))
    steep = float(options.pop("steep", 2.0))

    def goal(sight: Sight) -> Array:
        off = sight.tcp - target
        aside = float(np.linalg.norm(off - along * float(off @ along)))
        distance = steep * (aside - 0.008) + 0.25 * (turn_error(sight, turn) - 0.10)
        return target + along * min(height, max(0.0, distance))

    return Move(goal, gripper, turn, **options)


def wait(desk: Desk, gripper: float, steps: int, until: Callable[[Sight], bool] | None = None) -> Move:
    """Stay where the hand is and only move the fingers."""
    return Move(desk.sight.tcp.copy(), gripper, limit=steps, until=until, arrive=False)


def home_turn(desk: Desk, tilt: float = 0.0) -> Array:
    """The hand's wide side across the desk, whichever way round is nearer."""
    return hand_turn(half_turn_near(HOME_YAW, desk.sight.yaw), tilt)


def rise(desk: Desk, height: float = TRAVEL_Z) -> Plan:
    """Free the hand from wherever it is and go up to travelling height, fingers as they are."""
    sight = desk.sight
    gripper = CLOSED if sight.closing else OPEN
    tcp = sight.tcp
    for block in sight.blocks.values():  # the hand must leave a stack without pulling its top off
        if block is not sight.held and float(np.linalg.norm(block.pos[:2] - tcp[:2])) < 0.07:
            height = max(height, float(block.pos[2]) + block.half_extent((0, 0, 1)) + L.FINGER_TIP + 0.028)
    if tcp[1] > -0.03 and tcp[2] < 0.64:  # near or in the cabinet: out the way the fingers came
        way = 0.4 * np.array([0.0, 0.0, 1.0]) - sight.hand[:, 2]
        way = way / np.linalg.norm(way)
        if way[1] > -0.2:  # an upright hand leaves straight towards the viewer and up
            way = np.array([0.0, -0.6, 0.8])
        yield Move(tcp + way * 0.10, gripper, near=0.02, near_turn=9.0, limit=10)
        tcp = desk.sight.tcp
    if tcp[1] > CLEAR_Y + 0.02 and tcp[2] < 0.64:  # before the bars of door and switch, that stick out
        yield Move(np.array([tcp[0], CLEAR_Y, max(tcp[2], height)]), gripper, near=0.025, near_turn=9.0, limit=12)
    elif tcp[2] < height - 0.01:
        yield Move(np.array([tcp[0], tcp[1], height]), gripper, near=0.015, near_turn=9.0, limit=25)


@dataclass(frozen=True)
class Noise:
    """Disturbances of an expert's actions, in units of the action.

    Every action gets a gaussian; now and then, with `burst_rate` per step, a random push of `burst_size` lasts for
    `burst_steps`. The gripper is left alone.
    """

    sigma: float = 0.0
    burst_rate: float = 0.0
    burst_size: float = 0.8
    burst_steps: tuple[int, int] = (2, 5)


QUIET = Noise()
PLAY = Noise(sigma=0.15, burst_rate=0.012)


@dataclass
class Disturber:
    """Draws the noise of one expert."""

    noise: Noise
    rng: np.random.Generator
    _left: int = 0
    _burst: Array = field(default_factory=lambda: np.zeros(6))

    def disturb(self, action: Array) -> Array:
        """The action (7,) with noise, every component in [-1, 1]."""
        noise, out = self.noise, action.copy()
        if noise.sigma > 0:
            out[:6] += self.rng.normal(0.0, noise.sigma, 6)
        if self._left == 0 and noise.burst_rate > 0 and self.rng.random() < noise.burst_rate:
            self._left = int(self.rng.integers(noise.burst_steps[0], noise.burst_steps[1] + 1))
            self._burst = self.rng.uniform(-noise.burst_size, noise.burst_size, 6)
        if self._left > 0:
            self._left -= 1
            out[:6] += self._burst
        return np.clip(out, -1.0, 1.0)

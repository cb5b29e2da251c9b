"""Scripted experts: controllers for all 34 tasks that use the 7-d action interface only.

`python -m policy_rollout.desk.experts --table` evaluates them, see `policy_rollout.desk.experts.evaluate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from policy_rollout.calvin.tasks import COLOURS, TASK_NAMES
from policy_rollout.desk.experts import blocks as blocks
from policy_rollout.desk.experts import furniture as furniture
from policy_rollout.desk.experts import table as table_blocks
from policy_rollout.desk.experts.grasp import in_cabinet, in_drawer
from policy_rollout.desk.experts.motion import (
    ARM_GAIN,
    CLOSED,
    GAIN,
    OPEN,
    PLAY,
    QUIET,
    ArmTarget,
    Block,
    Desk,
    DeskState,
    Disturber,
    Move,
    Noise,
    Plan,
)
from policy_rollout.desk.experts.resets import task_resets
from policy_rollout.desk.layout import Layout

__all__ = ["EXPERT_TASKS", "PLAY", "QUIET", "Noise", "ScriptedExpert", "task_resets"]

Array = npt.NDArray[np.float64]
Planner = Callable[[Desk], Plan]
SuccessCheck = Callable[[DeskState, DeskState], bool]  # (at the start, now)


def _is_lifted(name: str, start: DeskState, now: DeskState) -> bool:
    block = now.held_block
    return block is not None and block.name == name and bool(block.pos[2] - start.blocks[name].pos[2] > 0.075)


def _is_pushed(name: str, sign: float, start: DeskState, now: DeskState) -> bool:
    block = now.blocks[name]
    is_released = now.held_block is None and block.pos[2] < 0.475
    return bool((block.pos[0] - start.blocks[name].pos[0]) * sign > 0.105 and is_released)


def _is_rotated(name: str, sign: float, start: DeskState, now: DeskState) -> bool:
    rotation = now.blocks[name].matrix @ start.blocks[name].matrix.T
    angle = float(np.degrees(np.arctan2(rotation[1, 0], rotation[0, 0])))
    return sign * angle > 64 and now.held_block is None and not now.closing


def _is_released(where: Callable[[Block], bool], start: DeskState, now: DeskState) -> bool:
    block = start.held_block
    return block is not None and not now.closing and now.width > 0.07 and where(now.blocks[block.name])


def _is_stacked(start: DeskState, now: DeskState) -> bool:
    return now.held_block is None and blocks.find_stack(now) is not None and float(now.tcp[2]) > 0.58


def _is_unstacked(start: DeskState, now: DeskState) -> bool:
    return blocks.find_stack(start) is not None and blocks.find_stack(now) is None


def _is_swept(start: DeskState, now: DeskState) -> bool:
    return any(
        now.blocks[name].pos[2] < 0.385 and not in_drawer(block) and now.held_block is None
        for name, block in start.blocks.items()
    )


def _tasks() -> dict[str, tuple[Planner, SuccessCheck]]:
    table: dict[str, tuple[Planner, SuccessCheck]] = {
        "move_slider_left": (furniture.slide_left, lambda a, b: b.slide - a.slide > 0.16),
        "move_slider_right": (furniture.slide_right, lambda a, b: b.slide - a.slide < -0.16),
        "open_drawer": (furniture.open_drawer, lambda a, b: b.drawer - a.drawer > 0.13),
        "close_drawer": (furniture.close_drawer, lambda a, b: b.drawer - a.drawer < -0.125),
        "turn_on_lightbulb": (furniture.switch_up, lambda a, b: b.bulb),
        "turn_off_lightbulb": (furniture.switch_down, lambda a, b: not b.bulb),
        "turn_on_led": (furniture.press_button, lambda a, b: b.led),
        "turn_off_led": (furniture.press_button, lambda a, b: not b.led),
        "place_in_slider": (blocks.place_in_slider, partial(_is_released, in_cabinet)),
        "place_in_drawer": (blocks.place_in_drawer, partial(_is_released, in_drawer)),
        "stack_block": (blocks.stack, _is_stacked),
        "unstack_block": (blocks.unstack, _is_unstacked),
        "push_into_drawer": (table_blocks.push_into_drawer, _is_swept),
    }
    for colour in COLOURS:
        name = f"block_{colour}"
        for surface in ("table", "slider", "drawer"):
            table[f"lift_{colour}_block_{surface}"] = (partial(blocks.lift, name=name), partial(_is_lifted, name))
        for side, sign in (("left", -1.0), ("right", 1.0)):
            left = side == "left"
            table[f"push_{colour}_block_{side}"] = (
                partial(table_blocks.push, name=name, left=left),
                partial(_is_pushed, name, sign),
            )
            table[f"rotate_{colour}_block_{side}"] = (
                partial(table_blocks.rotate, name=name, left=left),
                partial(_is_rotated, name, -sign),  # left is counter-clockwise
            )
    return {task: table[task] for task in TASK_NAMES}


_TABLE = _tasks()
EXPERT_TASKS: tuple[str, ...] = tuple(_TABLE)


class ScriptedExpert:
    """A controller for one task at a time that reads only observations and the layout.

    `act(obs)` takes the observation (only robot_obs and scene_obs are read) and returns the action (7,) in [-1, 1].
    `intended` is that action without the noise: what the expert wants in the observed state, wherever earlier noise
    has led. `done` is its own opinion that the task is finished; it then does not move.

    Args:
        layout: that of the desk (`env.layout`).
        task: one of the 34 names.
        rng: random generator of the noise.
        noise: disturbances of the actions (QUIET, PLAY, or your own `Noise`).
        restarts: restart the plan when a move reaches its time limit far from its goal. For an expert that labels the
            states of another controller, which does not follow it.
        endless: do not end a push after its 10 cm. An image does not show where a push began, so the actions that end
            it cannot be learned from images. `done` stays False during such a push, and `is_endless` is True.
    """

    def __init__(
        self,
        layout: Layout,
        task: str,
        rng: np.random.Generator | None = None,
        noise: Noise = QUIET,
        restarts: bool = False,
        endless: bool = False,
    ) -> None:
        self.layout = layout
        self.restarts = restarts
        self.endless = endless
        self.rng = np.random.default_rng(0) if rng is None else rng
        self._disturber = Disturber(noise, self.rng)
        response = layout.hand.response
        self._arm = None if response is None else ArmTarget(response)
        self._set_task(task)

    def _set_task(self, task: str) -> None:
        if task not in _TABLE:
            raise ValueError(f"there is no expert for {task!r}; there are: {', '.join(_TABLE)}")
        self.task = task
        self._planner, self._succeeded = _TABLE[task]
        self._desk: Desk | None = None
        self._plan: Plan = iter(())
        self._move: Move | None = None
        self._steps, self._euler = 0, np.zeros(3)
        self.intended = np.zeros(7)
        self.done = False

    def reset(self, task: str, obs: Mapping[str, Any] | None = None) -> None:
        """Start `task`; the next observation (or `obs`) is its initial state."""
        self._set_task(task)
        if obs is not None:
            self._start(DeskState.of(obs, self.layout))

    @property
    def attempts(self) -> int:
        """Number of restarts of the plan."""
        return 0 if self._desk is None else self._desk.attempt

    @property
    def is_endless(self) -> bool:
        """Whether the current move continues when the task has succeeded."""
        return self._move is not None and self._move.endless

    def _start(self, state: DeskState) -> Desk:
        self._desk = Desk(self.layout, state, state, self.rng, endless=self.endless)
        self._plan = self._planner(self._desk)
        return self._desk

    def restart(self) -> None:
        """Plan again from the next observation. The state at the start of the task stays."""
        if self._desk is not None:
            self._plan = self._planner(self._desk)
            self._move = None

    def act(self, obs: Mapping[str, Any]) -> Array:
        """Return the next action (7,) float64."""
        state = DeskState.of(obs, self.layout)
        desk = self._desk or self._start(state)
        desk.state = state
        self.done = self._succeeded(desk.start, state) and not self.is_endless
        if self.done:
            self.intended = np.array([0.0, 0, 0, 0, 0, 0, CLOSED if state.closing else OPEN])
            return self._execute(self.intended.copy(), state, disturbed=False)
        move = self._current_move(desk)
        self._steps += 1
        self.intended = move.action(state, self._euler, GAIN if self._arm is None else ARM_GAIN)
        return self._execute(self.intended, state, disturbed=True)

    def _execute(self, motion: Array, state: DeskState, disturbed: bool) -> Array:
        """Return the action (7,) for an intended motion (7,): with noise, and with the lead of a lagging arm."""
        if self._arm is None:
            return self._disturber.disturb(motion) if disturbed else motion
        action = self._arm.lead(motion, state)
        if disturbed:
            action = self._disturber.disturb(action)
        self._arm.follow(action)
        return action

    def _current_move(self, desk: Desk) -> Move:
        """Return the current move; a plan that ended without success is restarted."""
        for _ in range(20):
            move = self._move
            if move is not None and self._steps < move.limit and not move.is_over(desk.state, self._euler):
                return move
            if move is not None and self.restarts and self._steps >= move.limit and move.is_far(desk.state):
                self.restart()
            self._move = next(self._plan, None)
            self._steps = 0
            if self._move is None:
                desk.attempt += 1
                self._plan = self._planner(desk)
            else:
                self._euler = desk.state.euler if self._move.euler is None else self._move.euler
        return Move(desk.state.tcp, CLOSED if desk.state.closing else OPEN)  # no move is possible: wait

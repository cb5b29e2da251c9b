"""Scripted experts: honest controllers for all 34 tasks, through the 7-d action interface alone.

`python -m policy_rollout.desk.experts --table` measures them, see `policy_rollout.desk.experts.evaluate`.
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
    CLOSED,
    OPEN,
    PLAY,
    QUIET,
    Block,
    Desk,
    Disturber,
    Move,
    Noise,
    Plan,
    Sight,
)
from policy_rollout.desk.experts.resets import task_resets
from policy_rollout.desk.layout import Layout

__all__ = ["EXPERT_TASKS", "PLAY", "QUIET", "Noise", "ScriptedExpert", "task_resets"]

Array = npt.NDArray[np.float64]
Planner = Callable[[Desk], Plan]
Achieved = Callable[[Sight, Sight], bool]  # (at the start, now)


def _lifted(name: str, start: Sight, now: Sight) -> bool:
    held = now.held
    return held is not None and held.name == name and bool(held.pos[2] - start.blocks[name].pos[2] > 0.075)


def _shifted(name: str, sign: float, start: Sight, now: Sight) -> bool:
    block = now.blocks[name]
    return bool((block.pos[0] - start.blocks[name].pos[0]) * sign > 0.105 and now.held is None and block.pos[2] < 0.475)


def _turned(name: str, sign: float, start: Sight, now: Sight) -> bool:
    turn = now.blocks[name].matrix @ start.blocks[name].matrix.T
    angle = float(np.degrees(np.arctan2(turn[1, 0], turn[0, 0])))
    return sign * angle > 64 and now.held is None and not now.closing


def _let_go(where: Callable[[Block], bool], start: Sight, now: Sight) -> bool:
    held = start.held
    return held is not None and not now.closing and now.width > 0.07 and where(now.blocks[held.name])


def _stacked(start: Sight, now: Sight) -> bool:
    return now.held is None and blocks.find_stack(now) is not None and float(now.tcp[2]) > 0.58


def _unstacked(start: Sight, now: Sight) -> bool:
    return blocks.find_stack(start) is not None and blocks.find_stack(now) is None


def _swept(start: Sight, now: Sight) -> bool:
    return any(
        now.blocks[name].pos[2] < 0.385 and not in_drawer(block) and now.held is None
        for name, block in start.blocks.items()
    )


def _tasks() -> dict[str, tuple[Planner, Achieved]]:
    table: dict[str, tuple[Planner, Achieved]] = {
        "move_slider_left": (furniture.slide_left, lambda a, b: b.slide - a.slide > 0.16),
        "move_slider_right": (furniture.slide_right, lambda a, b: b.slide - a.slide < -0.16),
        "open_drawer": (furniture.open_drawer, lambda a, b: b.drawer - a.drawer > 0.13),
        "close_drawer": (furniture.close_drawer, lambda a, b: b.drawer - a.drawer < -0.125),
        "turn_on_lightbulb": (furniture.switch_up, lambda a, b: b.bulb),
        "turn_off_lightbulb": (furniture.switch_down, lambda a, b: not b.bulb),
        "turn_on_led": (furniture.press_button, lambda a, b: b.led),
        "turn_off_led": (furniture.press_button, lambda a, b: not b.led),
        "place_in_slider": (blocks.place_in_slider, partial(_let_go, in_cabinet)),
        "place_in_drawer": (blocks.place_in_drawer, partial(_let_go, in_drawer)),
        "stack_block": (blocks.stack, _stacked),
        "unstack_block": (blocks.unstack, _unstacked),
        "push_into_drawer": (table_blocks.push_into_drawer, _swept),
    }
    for colour in COLOURS:
        name = f"block_{colour}"
        for surface in ("table", "slider", "drawer"):
            table[f"lift_{colour}_block_{surface}"] = (partial(blocks.lift, name=name), partial(_lifted, name))
        for side, sign in (("left", -1.0), ("right", 1.0)):
            left = side == "left"
            table[f"push_{colour}_block_{side}"] = (
                partial(table_blocks.push, name=name, left=left),
                partial(_shifted, name, sign),
            )
            table[f"rotate_{colour}_block_{side}"] = (
                partial(table_blocks.rotate, name=name, left=left),
                partial(_turned, name, -sign),  # left is counter-clockwise
            )
    return {task: table[task] for task in TASK_NAMES}


_TABLE = _tasks()
EXPERT_TASKS: tuple[str, ...] = tuple(_TABLE)


class ScriptedExpert:
    """Does one task after the other; knows of the desk what its observations and the layout tell.

    `act(obs)` takes the observation (only robot_obs and scene_obs are read) and returns the action (7,) in [-1, 1].
    `done` is its own opinion that the task is finished; it then stays where it is.

    Args:
        layout: of the desk it acts on (`env.layout`).
        task: one of the 34 names.
        rng: of the noise; the same generator state gives the same actions.
        noise: disturbances that are added to the actions (QUIET, PLAY, or your own `Noise`).
    """

    def __init__(self, layout: Layout, task: str, rng: np.random.Generator | None = None, noise: Noise = QUIET) -> None:
        self.layout = layout
        self.rng = np.random.default_rng(0) if rng is None else rng
        self._disturber = Disturber(noise, self.rng)
        self._set_task(task)

    def _set_task(self, task: str) -> None:
        if task not in _TABLE:
            raise ValueError(f"there is no expert for {task!r}; there are: {', '.join(_TABLE)}")
        self.task = task
        self._planner, self._achieved = _TABLE[task]
        self._desk: Desk | None = None
        self._plan: Plan = iter(())
        self._move: Move | None = None
        self._steps, self._turn = 0, np.zeros(3)
        self.done = False

    def reset(self, task: str, obs: Mapping[str, Any] | None = None) -> None:
        """Begin `task`; the next observation (or `obs`) is its start."""
        self._set_task(task)
        if obs is not None:
            self._begin(Sight.of(obs, self.layout))

    @property
    def attempts(self) -> int:
        """How often it had to plan anew."""
        return 0 if self._desk is None else self._desk.attempt

    def _begin(self, sight: Sight) -> Desk:
        self._desk = Desk(self.layout, sight, sight, self.rng)
        self._plan = self._planner(self._desk)
        return self._desk

    def act(self, obs: Mapping[str, Any]) -> Array:
        """The next action (7,) float64."""
        sight = Sight.of(obs, self.layout)
        desk = self._desk or self._begin(sight)
        desk.sight = sight
        self.done = self._achieved(desk.start, sight)
        if self.done:
            return np.array([0.0, 0, 0, 0, 0, 0, CLOSED if sight.closing else OPEN])
        move = self._current(desk)
        self._steps += 1
        return self._disturber.disturb(move.action(sight, self._turn))

    def _current(self, desk: Desk) -> Move:
        """The move to make now; a plan that has come to its end without success is made anew."""
        for _ in range(20):
            move = self._move
            if move is not None and self._steps < move.limit and not move.over(desk.sight, self._turn):
                return move
            self._move = next(self._plan, None)
            self._steps = 0
            if self._move is None:
                desk.attempt += 1
                self._plan = self._planner(desk)
            else:
                self._turn = desk.sight.euler if self._move.turn is None else self._move.turn
        return Move(desk.sight.tcp, CLOSED if desk.sight.closing else OPEN)  # nothing to do here: wait

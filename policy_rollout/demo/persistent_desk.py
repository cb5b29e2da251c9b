"""A desk whose state persists from one attempt to the next, and the attempts on it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_rollout.calvin.instructions import closest_task, validation_instruction
from policy_rollout.calvin.scene_state import symbolic_state
from policy_rollout.calvin.symbolic import feasible_tasks
from policy_rollout.calvin.tasks import TASK_NAMES
from policy_rollout.closed_loop.interface import Info, Oracle, Render
from policy_rollout.desk.env import DeskEnv
from policy_rollout.desk.experts.policy import task_resets

ANY_TASK = "any task"
"""The task of a sentence: done when the oracle confirms any of the 34 tasks."""
FILM_SIZE = 256
"""Pixels of the static camera in films. The model's images have the size of its recordings."""


@dataclass(frozen=True)
class Attempt:
    """One attempt from the present state of the desk. ``task``: the one that counts, or ``ANY_TASK``."""

    instruction: str
    task: str = ANY_TASK

    @property
    def closest_task(self) -> str | None:
        """The task, or for a sentence the one with the most similar wording; None if no wording is close."""
        return self.task if self.task in TASK_NAMES else closest_task(self.instruction)


def attempt_of(text: str) -> Attempt:
    """Return the attempt of what a user gave: the name of a task, the instruction of one, or any sentence."""
    name = text.replace(" ", "_")
    if name in TASK_NAMES:
        return Attempt(validation_instruction(name), name)
    task = next((task for task in TASK_NAMES if validation_instruction(task) == text), ANY_TASK)
    return Attempt(text, task)


@dataclass
class AnyTaskOracle:
    """An oracle that has ``ANY_TASK``, too. ``completed``: the tasks that the oracle confirmed for it."""

    oracle: Oracle
    completed: frozenset[str] = frozenset()

    def tasks_done(self, start_info: Info, end_info: Info, among: Collection[str] | None = None) -> set[str]:
        if among is None or ANY_TASK not in among:
            return self.oracle.tasks_done(start_info, end_info, among)
        self.completed = frozenset(self.oracle.tasks_done(start_info, end_info))
        return {ANY_TASK} if self.completed else set()


@dataclass(frozen=True)
class PersistentDesk:
    """A desk that keeps its state from one chain to the next. Its films have another resolution than observations."""

    desk: DeskEnv

    def reset(self, robot_obs: NDArray[Any] | None = None, scene_obs: NDArray[Any] | None = None) -> dict[str, Any]:
        """Keep the state."""
        return self.desk.get_obs(render=False)

    def step(self, action: NDArray[Any], render: Render = True) -> tuple[dict[str, Any], Any, bool, Info]:
        obs, reward, done, info = self.desk.step(action)
        if render:
            obs["rgb_obs"] = {"rgb_static": self.image()}
        return obs, reward, done, info

    def get_obs(self, render: Render = True) -> dict[str, Any]:
        return self.desk.get_obs(render)

    def get_info(self) -> Info:
        return self.desk.get_info()

    def close(self) -> None:
        """Keep the desk open."""

    def restart(self, task: str | None, seed: int) -> None:
        """Start from a random state in which ``task`` is feasible; None: closed, off, with blocks at random places."""
        robot_obs, scene_obs = task_resets(task, seed, self.desk.scene) if task else (None, None)
        self.desk.reset(robot_obs, scene_obs, seed=seed)

    def feasible(self, tasks: Sequence[str] = TASK_NAMES) -> tuple[str, ...]:
        """Return those of ``tasks`` that are feasible in the present state."""
        obs = self.desk.get_obs(render=False)
        state = symbolic_state(obs["scene_obs"], obs["robot_obs"], self.desk.get_info())
        return feasible_tasks(state, tasks, unique=False)

    def note(self, attempt: Attempt) -> str:
        """Return a remark if no task is close to the attempt, or its task is not feasible; else an empty text."""
        task = attempt.closest_task
        if task is None:
            return f"no task has a similar wording; all {len(TASK_NAMES)} are checked"
        return "" if task in self.feasible() else f"{task} is not feasible in this state of the desk"

    def image(self) -> NDArray[np.uint8]:
        """Return the static camera's image for people, uint8 [FILM_SIZE, FILM_SIZE, 3]."""
        return self.desk.render("static", FILM_SIZE)

    def texts(self) -> dict[str, str]:
        """Return the state of hand, doors and lights as texts."""
        return state_texts(self.desk.get_obs(render=False))


def state_texts(obs: Mapping[str, Any]) -> dict[str, str]:
    """Return the state of hand, doors and lights as texts, from an observation of the desk."""
    slider, drawer, _, _, lamp, light = np.asarray(obs["scene_obs"])[:6]
    x, y, z = 100 * np.asarray(obs["robot_obs"])[:3]
    on_or_off = ("off", "on")
    return {
        "hand": f"x {x:+.0f}, y {y:+.0f}, z {z:+.0f} cm",
        "gripper": "open" if obs["robot_obs"][14] > 0 else "closed",
        "drawer": f"{100 * drawer:.0f} cm open",
        "sliding door": f"{100 * slider:.0f} cm to the left",
        "yellow lamp": on_or_off[int(lamp)],
        "green light": on_or_off[int(light)],
    }

"""Playing one task before an audience: who acts, what the judge says, and a film of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from common.image_grid import FAINT, GREEN, RED, RgbImage, add_caption, side_by_side
from policy_rollout.calvin.oracle import TaskOracle
from policy_rollout.desk.env import DeskEnv
from policy_rollout.desk.experts.policy import Noise, ScriptedExpert

Array = npt.NDArray[np.float64]
Hand = Callable[[Mapping[str, Any]], Array]  # observation -> action (7,)

LIMIT = 360  # steps for a task, as CALVIN's evaluation


class Film:
    """Frames of a play with the instruction below; every second step is enough for the eye."""

    every = 2

    def __init__(self) -> None:
        self.frames: list[RgbImage] = []

    def take(self, env: DeskEnv, text: str, note: str, colour: tuple[int, int, int] = FAINT) -> None:
        """Add what both cameras see now."""
        size = env.static_size
        row = side_by_side([env.render("static"), env.render("gripper")], size)
        self.frames.append(add_caption(row, text, note, colour))


def expert_hand(env: DeskEnv, task: str, rng: np.random.Generator, noise: Noise) -> Hand:
    """The scripted expert of a task."""
    return ScriptedExpert(env.layout, task, rng, noise).act


def random_hand(rng: np.random.Generator) -> Hand:
    """Uniform actions in [-1, 1]; the gripper opens or closes."""
    return lambda _obs: np.append(rng.uniform(-1, 1, 6), rng.choice((-1.0, 1.0)))


def play_task(
    env: DeskEnv,
    oracle: TaskOracle,
    task: str,
    obs: Mapping[str, Any],
    hand: Hand,
    film: Film | None = None,
    instruction: str = "",
) -> tuple[bool, int]:
    """(was it done, steps) of `task` from where the desk is, where `obs` was observed."""
    start = env.get_info()
    for step in range(1, LIMIT + 1):
        if film is not None and (step - 1) % film.every == 0:
            film.take(env, instruction, f"{task}, step {step - 1}")
        obs, _, _, info = env.step(hand(obs))
        if oracle.done(task, start, info):
            break
    success = oracle.done(task, start, info)
    if film is not None:
        note, colour = (f"{task}: done after {step} steps", GREEN) if success else (f"{task}: NOT done", RED)
        for _ in range(10):
            film.take(env, instruction, note, colour)
    return success, step

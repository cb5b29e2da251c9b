"""Run one task: with an actor, the oracle's verdict, and an optional video."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from common.constants import CALVIN_MAX_STEPS
from common.image_grid import FAINT, GREEN, RED, RgbImage, add_caption, side_by_side
from policy_rollout.calvin.oracle import TaskOracle
from policy_rollout.closed_loop.interface import Env
from policy_rollout.desk.env import DeskEnv

Array = npt.NDArray[np.float64]
Actor = Callable[[Mapping[str, Any]], Array]  # observation -> action (7,)

DONE_STEPS = 30
"""Steps after which a task ends whose actor reports that it is done, if the oracle does not agree."""


class Video:
    """Frames of both cameras of a desk with the instruction as caption; records every second step."""

    interval = 2

    def __init__(self, env: DeskEnv) -> None:
        self.env = env
        self.frames: list[RgbImage] = []

    def add_frame(self, text: str, note: str, colour: tuple[int, int, int] = FAINT) -> None:
        """Render both cameras and add a frame."""
        row = side_by_side([self.env.render("static"), self.env.render("gripper")], self.env.static_size)
        self.frames.append(add_caption(row, text, note, colour))


class PlainVideo(Video):
    """Frames of the static camera, without a caption."""

    def add_frame(self, text: str, note: str, colour: tuple[int, int, int] = FAINT) -> None:
        """Render the static camera and add the frame."""
        self.frames.append(self.env.render("static"))


def random_actor(rng: np.random.Generator) -> Actor:
    """Return an actor with uniform actions in [-1, 1] and a gripper that opens or closes at random."""
    return lambda _obs: np.append(rng.uniform(-1, 1, 6), rng.choice((-1.0, 1.0)))


def play_task(
    env: Env,
    oracle: TaskOracle,
    task: str,
    obs: Mapping[str, Any],
    actor: Actor,
    *,
    is_done: Callable[[], bool] = lambda: False,
    video: Video | None = None,
    instruction: str = "",
) -> tuple[bool, int]:
    """Run `task` from the current state, of which `obs` is the observation. Returns (success, steps).

    `is_done`: the actor's own opinion that the task is done.
    """
    start = env.get_info()
    success, left = False, DONE_STEPS
    for step in range(1, CALVIN_MAX_STEPS + 1):
        if video is not None and (step - 1) % video.interval == 0:
            video.add_frame(instruction, f"{task}, step {step - 1}")
        obs, _, _, info = env.step(actor(obs), render=False)
        success = oracle.done(task, start, info)
        left -= is_done()
        if success or left <= 0:
            break
    if video is not None:
        note, colour = (f"{task}: done after {step} steps", GREEN) if success else (f"{task}: NOT done", RED)
        for _ in range(10):
            video.add_frame(instruction, note, colour)
    return success, step

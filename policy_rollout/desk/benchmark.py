"""Measure the CPU time of the desk on this machine, in milliseconds (waiting for other programs does not count)."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable

import numpy as np

from policy_rollout.calvin.oracle import TaskOracle
from policy_rollout.desk.engine import mujoco
from policy_rollout.desk.env import DeskEnv
from policy_rollout.desk.experts.policy import PLAY, ScriptedExpert, task_resets

SIZES = (("static", 64), ("static", 128), ("static", 200), ("static", 336), ("gripper", 64), ("gripper", 84))
SECONDS = 0.6  # of CPU for each measurement


def bench(env: DeskEnv) -> str:
    """Return a Markdown table: one control step, its parts, and images by size."""
    task = "open_drawer"
    rows = [("a control step: physics, observation, info", _step(env))]
    oracle, start = TaskOracle(), env.get_info()
    rows.append(("the oracle on all 34 tasks", _ms(lambda: oracle.tasks_done(start, start))))
    obs = env.reset(*task_resets(task, 0, env.scene))
    expert = ScriptedExpert(env.layout, task, np.random.default_rng(0), PLAY)
    rows.append(("an expert's action", _ms(lambda: expert.act(obs))))
    rows += [(f"{camera} camera, {size} px", _ms(lambda c=camera, s=size: env.image(c, s))) for camera, size in SIZES]  # type: ignore[misc]
    machine = f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, mujoco {mujoco.__version__}"
    lines = ["| what | CPU ms |", "|---|---|", *(f"| {what} | {ms:.2f} |" for what, ms in rows)]
    return "\n".join(
        [*lines, "", f"scene {env.scene}, renderer {env.renderer}; {machine}; {time.strftime('%Y-%m-%d')}"]
    )


def _step(env: DeskEnv) -> float:
    """Measure a control step with the actions of an expert, so that there are contacts."""
    env.reset(*task_resets("open_drawer", 0, env.scene))
    expert = ScriptedExpert(env.layout, "open_drawer", np.random.default_rng(0), PLAY)
    actions, obs = [], env.get_obs(render=False)
    for _ in range(40):
        actions.append(expert.act(obs))
        obs, _, _, _ = env.step(actions[-1])

    def replay() -> None:
        env.reset(*task_resets("open_drawer", 0, env.scene))
        for action in actions:
            env.step(action)

    return _ms(replay) / len(actions)


def _ms(work: Callable[[], object]) -> float:
    """Return milliseconds of CPU per call."""
    work()  # exclude one-time work
    calls, started = 0, time.process_time()
    while (spent := time.process_time() - started) < SECONDS:
        work()
        calls += 1
    return spent / calls * 1000


def _processor() -> str:
    """Return the processor's name from Linux, else the architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()

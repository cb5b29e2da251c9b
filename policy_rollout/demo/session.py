"""A session of a model on the desk: attempts from a state that persists, their films, and the report."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape

from common.image_grid import RgbImage
from common.video import write_gif
from policy_rollout.calvin.scene_state import symbolic_state
from policy_rollout.calvin.symbolic import CATEGORIES, feasible_tasks
from policy_rollout.calvin.tasks import TASK_NAMES
from policy_rollout.calvin_evaluate_upvla import policy_origin, record_settings
from policy_rollout.closed_loop.interface import ChainJob, ChainRecord, Env, Info, Oracle, Render
from policy_rollout.closed_loop.records import write_results
from policy_rollout.closed_loop.runner import run_chains
from policy_rollout.demo.live_view import LiveView
from policy_rollout.desk.env import DeskEnv
from policy_rollout.desk.experts.policy import task_resets
from policy_rollout.desk.task_sets import TaskSet
from policy_rollout.policies.interface import ActionConvention
from policy_rollout.policies.upvla import UPVLAPolicy
from policy_rollout.report import write_report
from policy_rollout.reports.rollout_video import RATE, RolloutVideoRecorder

ANY_TASK = "any task"
"""The task of a sentence: done when the oracle confirms any of the 34 tasks."""
NO_TASK = "no task"
"""The task in the record of a sentence after which the oracle confirms none."""
ANIMATED = 8
"""Attempts in demo.gif; every attempt has a film of its own."""
FILM_SIZE = 256
"""Pixels of the static camera in films. The model's images have the size of its recordings."""


@dataclass(frozen=True)
class Attempt:
    """One attempt from the present state of the desk. ``task``: the one that counts, or ``ANY_TASK``."""

    instruction: str
    task: str = ANY_TASK


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
            obs["rgb_obs"] = {"rgb_static": self.desk.render("static", FILM_SIZE)}
        return obs, reward, done, info

    def get_obs(self, render: Render = True) -> dict[str, Any]:
        return self.desk.get_obs(render)

    def get_info(self) -> Info:
        return self.desk.get_info()

    def close(self) -> None:
        """Keep the desk open."""


@dataclass
class Session:
    """A model on a desk, its attempts so far, and the folder of films and report.

    ``tasks``: the tasks that follow each other, and the rules of every attempt. ``seed``: of the next random start; it
    increases with every reset.
    """

    policy: UPVLAPolicy
    tasks: TaskSet
    seed: int
    folder: Path
    console: Console
    records: list[ChainRecord] = field(default_factory=list)
    frames: list[RgbImage] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.benchmark = self.tasks.desk
        self.desk = DeskEnv(self.tasks.scene, static_size=self.tasks.static_size, gripper_size=self.tasks.gripper_size)
        self._oracle = AnyTaskOracle(self.benchmark.oracle())
        films = RolloutVideoRecorder(self.folder, sys.maxsize, self.policy, self._write_film, frame_interval=1)
        self._view = LiveView(
            films, self.console, lambda: state_texts(self.desk.get_obs(render=False)), self.tasks.max_steps
        )

    # The factory of run_chains: every chain gets the one desk.

    @property
    def convention(self) -> ActionConvention:
        return self.benchmark.convention

    def make_env(self) -> Env:
        return PersistentDesk(self.desk)

    def oracle(self) -> Oracle:
        return self._oracle

    def reset(self, task: str | None) -> None:
        """Start from a random state in which ``task`` is feasible; None: closed, off, with blocks at random places."""
        robot_obs, scene_obs = task_resets(task, self.seed, self.tasks.scene) if task else (None, None)
        self.desk.reset(robot_obs, scene_obs, seed=self.seed)
        self.seed += 1

    def feasible(self, tasks: Sequence[str] = TASK_NAMES) -> tuple[str, ...]:
        """Return those of ``tasks`` that are feasible in the present state."""
        obs = self.desk.get_obs(render=False)
        state = symbolic_state(obs["scene_obs"], obs["robot_obs"], self.desk.get_info())
        return feasible_tasks(state, tasks, unique=False)

    def next_task(self) -> str:
        """Return the feasible task of the task set whose kind was attempted least."""
        attempted = [CATEGORIES[record.tasks[0]] for record in self.records if record.tasks[0] in CATEGORIES]
        feasible = self.feasible(self.tasks.tasks) or self.tasks.tasks
        return min(feasible, key=lambda task: attempted.count(CATEGORIES[task]))

    def play(self, attempt: Attempt) -> ChainRecord:
        """Play one attempt, print its outcome, and return its record."""
        job = ChainJob(len(self.records), (attempt.task,), (attempt.instruction,))
        try:
            run_chains(
                self,
                self.policy,
                [job],
                self.records.append,
                max_steps=self.tasks.max_steps,
                replan_every=self.tasks.replan_every,
                ensemble=self.tasks.ensemble,
                parallel=1,
                recorder=self._view,
            )
        finally:
            self._view.close()
        record, completed = self.records[-1], [attempt.task]
        if attempt.task == ANY_TASK:
            completed = sorted(self._oracle.completed)
            record = self.records[-1] = replace(record, tasks=(completed[0] if record.completed else NO_TASK,))
        self._print_outcome(job, record, completed)
        return record

    def _print_outcome(self, job: ChainJob, record: ChainRecord, completed: Sequence[str]) -> None:
        seconds = record.steps[0] / self.convention.rate_hz
        outcome = f"[green]done: {', '.join(completed)}[/]" if record.completed else f"[red]not done: {job.tasks[0]}[/]"
        line = f"{job.index + 1}. {escape(job.instructions[0])}: {outcome}, {record.steps[0]} steps ({seconds:.1f} s)"
        self.console.print(line, highlight=False, soft_wrap=True)

    def _write_film(self, path: Path, frames: Sequence[RgbImage], fps: float) -> None:
        frames = frames[1:]  # the first one is the model's observation, of another resolution
        write_gif(path, frames, fps)
        if len(self.records) < ANIMATED:
            self.frames.extend(frames)

    def write(self) -> None:
        """Write demo.gif, results.json and report.html, and print where they are."""
        write_gif(self.folder / "demo.gif", self.frames, RATE)
        rules = self.tasks
        settings = {"ep_len": rules.max_steps, "replan_every": rules.replan_every, "ensemble": rules.ensemble}
        made_with = record_settings(self.policy, self.benchmark, settings)
        write_results(self.folder, self.records, made_with, policy_from=policy_origin(self.policy))
        report = write_report(self.folder)
        print(f"{sum(record.completed for record in self.records)} of {len(self.records)} done")
        for what, where in (
            ("report with films", report),
            ("all in one animation", self.folder / "demo.gif"),
            ("predicted and true frames", self.folder / "input_predict_truth"),
        ):
            print(f"  {what:26} {where}")


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

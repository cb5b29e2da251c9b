"""A session of a model on the desk: attempts from a state that persists, their films, and the report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from common.image_grid import RgbImage
from common.video import write_gif
from policy_rollout.calvin.symbolic import CATEGORIES
from policy_rollout.calvin.tasks import TASK_NAMES
from policy_rollout.calvin_evaluate_upvla import policy_origin, record_settings
from policy_rollout.closed_loop.interface import ChainJob, ChainRecord, Env, Oracle
from policy_rollout.closed_loop.records import write_results
from policy_rollout.closed_loop.runner import run_chains
from policy_rollout.demo.live_view import LiveView
from policy_rollout.demo.persistent_desk import ANY_TASK, AnyTaskOracle, Attempt, PersistentDesk
from policy_rollout.desk.task_sets import TaskSet
from policy_rollout.policies.interface import ActionConvention
from policy_rollout.policies.upvla import UPVLAPolicy
from policy_rollout.report import write_report
from policy_rollout.reports.rollout_video import RATE, RolloutVideoRecorder

NO_TASK = "no task"
"""The task in the record of a sentence after which the oracle confirms none."""
ANIMATED = 8
"""Attempts in demo.gif; every attempt has a film of its own."""


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
        self.desk = self.benchmark.make_env()
        self._persistent = PersistentDesk(self.desk)
        self._oracle = AnyTaskOracle(self.benchmark.oracle())
        films = RolloutVideoRecorder(self.folder, sys.maxsize, self.policy, self._write_film, frame_interval=1)
        self._view = LiveView(films, self.console, self._persistent.texts, self.tasks.max_steps)

    # The factory of run_chains: every chain gets the one desk.

    @property
    def convention(self) -> ActionConvention:
        return self.benchmark.convention

    def make_env(self) -> Env:
        return self._persistent

    def oracle(self) -> Oracle:
        return self._oracle

    def reset(self, task: str | None) -> None:
        """Start from a random state in which ``task`` is feasible; None: closed, off, with blocks at random places."""
        self._persistent.restart(task, self.seed)
        self.seed += 1

    def feasible(self, tasks: Sequence[str] = TASK_NAMES) -> tuple[str, ...]:
        """Return those of ``tasks`` that are feasible in the present state."""
        return self._persistent.feasible(tasks)

    def note(self, attempt: Attempt) -> str:
        """Return a remark if no task is close to the attempt, or its task is not feasible; else an empty text."""
        return self._persistent.note(attempt)

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

    def write(self) -> Path:
        """Write demo.gif, results.json and report.html, print where they are, and return the path of the report."""
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
        return report

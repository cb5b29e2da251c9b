"""One user's desk: a thread in which a shared model acts on it, controlled from the page.

Needs no gradio. Attempts, rules and the order of a control step are those of closed-loop evaluation (``EnvSlot``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from common.image_grid import RgbImage
from policy_rollout.closed_loop.env_slot import ChainFinished, EnvSlot, NeedsChunk, SlotEvent, SlotSettings
from policy_rollout.closed_loop.interface import ChainJob
from policy_rollout.demo.persistent_desk import ANY_TASK, AnyTaskOracle, Attempt, PersistentDesk
from policy_rollout.desk.env import DeskEnv
from policy_rollout.desk.task_sets import TaskSet
from policy_rollout.policies.action_chunking import Actions
from policy_rollout.policies.interface import (
    ImagePredictor,
    Observation,
    Policy,
    require_calvin_state,
    require_same_convention,
)
from policy_rollout.reports.rollout_video import RATE

IMAGES_PER_SECOND = 15
"""Largest number of images a second on the page."""
SHOWN = 8
"""Earlier attempts in a view."""
JOIN_SECONDS = 5.0


@runtime_checkable
class PredictingPolicy(ImagePredictor, Policy, Protocol):
    """A policy that predicts images."""


@dataclass
class SharedModel:
    """A policy of several users, one call at a time. It has no episode state; that of each user is in its ``Play``."""

    policy: Policy
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def act(self, observation: Observation) -> tuple[Actions, RgbImage | None]:
        """Return the chunk [T, A] and the image that the static camera is predicted to have T steps later (None if the
        policy predicts no images)."""
        with self._lock:
            if not isinstance(self.policy, PredictingPolicy):
                return self.policy.act([observation])[0], None
            chunks, codes = self.policy.act_with_codes([observation])
            return chunks[0], self.policy.decode(codes)[0, 0]


@dataclass(frozen=True)
class View:
    """The present state of a play, for the page.

    ``image``: the static camera after ``step`` of at most ``max_steps``; ``note``: remark on the attempt;
    ``predicted``: the image predicted at ``predicted_at`` for T steps later; ``outcome``: empty while the model acts,
    then a sentence; ``done``: whether the oracle confirmed the task; ``history``: outcomes so far, the oldest first.
    """

    image: RgbImage
    state: dict[str, str]
    instruction: str = ""
    step: int = 0
    max_steps: int = 0
    note: str = ""
    predicted: RgbImage | None = None
    predicted_at: int = 0
    outcome: str = ""
    done: bool = False
    history: tuple[str, ...] = ()


@dataclass(frozen=True)
class Start:
    """A random start of ``seed`` in ``scene``, in which ``task`` is feasible (None: closed, off, blocks anywhere)."""

    scene: str
    seed: int
    task: str | None = None


@dataclass(frozen=True)
class _Command:
    attempt: Attempt
    start: Start | None


class Play:
    """A desk, the model's attempts on it, and the thread that runs them until ``close``.

    ``tasks``: cameras and rules of every attempt. Commands return at once. They take effect before the next chunk of
    actions, that is after ``replan_every`` control steps at most. ``speed``: 1 is the robot's own; it may be set at any
    time and applies to the next attempt.
    """

    def __init__(self, model: SharedModel, tasks: TaskSet, start: Start) -> None:
        require_same_convention(model.policy.convention, tasks.desk.convention, "the desk")
        require_calvin_state(model.policy, "the desk")
        self.model, self.tasks, self.speed = model, tasks, 1.0
        self._changed = threading.Condition()
        self._command: _Command | None = None
        self._stopping = self._busy = self._closed = False
        self._watcher = 0
        self._restart(start)
        self._view = View(self._desk.image(), self._desk.texts())
        self._version = 0
        self._thread = threading.Thread(target=self._run, name="play", daemon=True)
        self._thread.start()

    @property
    def view(self) -> View:
        return self._view

    @property
    def desk(self) -> DeskEnv:
        """The present desk; a start in another scene replaces it."""
        return self._desk.desk

    @property
    def alive(self) -> bool:
        """Whether the thread runs; it ends by ``close`` or by an error."""
        return self._thread.is_alive()

    def act(self, attempt: Attempt, start: Start | None = None) -> None:
        """Attempt a task, from a new start or, if it is None, from the present state. Ends a running attempt."""
        self._set(_Command(attempt, start))

    def stop(self) -> None:
        """End the running attempt."""
        self._set(None)

    def close(self) -> None:
        """End the thread, wait for it, and free the desk."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(JOIN_SECONDS)

    def next_view(self, version: int, timeout: float) -> tuple[int, View, bool]:
        """Return (version, the newest view, whether the model acts). Waits ``timeout`` seconds at most for a view that
        is newer than ``version``."""
        with self._changed:
            self._changed.wait_for(lambda: self._version > version or not self._acting, timeout)
            return self._version, self._view, self._acting

    def watch(self) -> Iterator[View]:
        """Yield the views until the model stops acting. Another call of ``watch`` takes over from this one."""
        with self._changed:
            self._watcher += 1
            mine, version, acting = self._watcher, -1, True
        while acting and mine == self._watcher:
            version, view, acting = self.next_view(version, 1.0)
            yield view

    @property
    def _acting(self) -> bool:
        return not self._closed and self.alive and (self._busy or self._command is not None)

    def _set(self, command: _Command | None) -> None:
        with self._changed:
            self._command, self._stopping = command, command is None
            self._changed.notify_all()

    def _show(self, view: View) -> None:
        with self._changed:
            self._view, self._version = view, self._version + 1
            self._changed.notify_all()

    def _restart(self, start: Start) -> None:
        tasks = replace(self.tasks, scene=start.scene)
        self._desk = PersistentDesk(tasks.desk.make_env())
        self._desk.restart(start.task, start.seed)
        self._oracle = AnyTaskOracle(tasks.desk.oracle())

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._command is not None or self._closed)
                command, self._command, self._stopping = self._command, None, False
                if self._closed or command is None:
                    return
                self._busy = True
            if command.start is not None:
                self._restart(command.start)
            self._attempt(command.attempt)

    def _interrupted(self) -> bool:
        return self._closed or self._stopping or self._command is not None

    def _attempt(self, attempt: Attempt) -> None:
        """Run an attempt to its end, the next command, or ``stop``."""
        policy, rules = self.model.policy, self.tasks
        cameras = tuple(name.removeprefix("rgb_") for name in policy.cameras)
        rate = RATE * self.speed
        interval = max(1, round(rate / IMAGES_PER_SECOND))
        settings = SlotSettings(policy.act_step, cameras, rules.max_steps, rules.replan_every, rules.ensemble, interval)
        slot = EnvSlot(self._desk, self._oracle, settings, settings.make_player())
        event: SlotEvent = slot.start(ChainJob(0, (attempt.task,), (attempt.instruction,)), record_video=True)
        image, note, history = self._desk.image(), self._desk.note(attempt), self._view.history
        self._show(
            View(image, self._desk.texts(), attempt.instruction, 0, rules.max_steps, note, history=history[-SHOWN:])
        )
        while isinstance(event, NeedsChunk) and not self._interrupted():
            due = time.monotonic()
            chunk, predicted = self.model.act(event.observation)
            state = self._desk.texts()
            self._show(replace(self._view, predicted=predicted, predicted_at=event.step, state=state))
            event = slot.execute(chunk)
            for frame in event.frames if isinstance(event, NeedsChunk | ChainFinished) else ():
                self._show(replace(self._view, image=frame.image, step=frame.step + 1))
                due += interval / rate
                time.sleep(max(0.0, due - time.monotonic()))
        self._finish(attempt, event, slot.steps[-1])

    def _finish(self, attempt: Attempt, event: SlotEvent, steps: int) -> None:
        done = isinstance(event, ChainFinished) and event.record.completed > 0
        completed = sorted(self._oracle.completed) if attempt.task == ANY_TASK else [attempt.task]
        if done:
            outcome = f"done: {', '.join(completed)}, {steps} steps ({steps / RATE:.1f} s)"
        elif isinstance(event, ChainFinished):
            outcome = f"not done in {steps} steps"
        else:
            outcome = f"{'stopped' if self._command is None else 'another instruction'} after {steps} steps"
        view = replace(self._view, image=self._desk.image(), state=self._desk.texts(), step=steps)
        history = (*view.history, f"{attempt.instruction}: {outcome}")
        with self._changed:
            self._show(replace(view, outcome=outcome, done=done, history=history))
            self._busy = False

"""Environment slots: one environment each, with the state of the chain that runs in it.

A slot needs no policy. It runs until it needs the next chunk or its chain is finished, and returns that event.
``LocalSlots`` holds slots in this process, ``env_worker.WorkerSlots`` in worker processes; both behave alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from common.constants import CALVIN_MAX_STEPS
from policy_rollout.closed_loop.interface import (
    ChainJob,
    ChainRecord,
    Env,
    EnvFactory,
    Info,
    Oracle,
    binary_gripper,
    observation,
)
from policy_rollout.policies.action_chunking import Actions, ChunkPlayer
from policy_rollout.policies.interface import Observation


@dataclass(frozen=True)
class SlotSettings:
    """How every chain is run. ``cameras``: those that the policy reads. ``replan_every``, ``ensemble``: see
    ``ChunkPlayer``. ``frame_interval``: control steps between two video frames of a recorded chain."""

    act_step: int
    cameras: tuple[str, ...]
    max_steps: int = CALVIN_MAX_STEPS
    replan_every: int | None = None
    ensemble: float | None = None
    frame_interval: int = 2

    def make_player(self) -> ChunkPlayer:
        """Return a new chunk player. Raises ``ValueError`` for impossible settings."""
        return ChunkPlayer(self.act_step, self.replan_every, self.ensemble)


@dataclass(frozen=True)
class VideoFrame:
    """The static camera's image, uint8 HWC, after control step ``step`` of task number ``task_index``."""

    task_index: int
    step: int
    image: NDArray[np.uint8]


@dataclass(frozen=True)
class NeedsChunk:
    """The slot needs the next chunk. ``observation``: that before control step ``step`` of task ``task_index``."""

    observation: Observation
    task_index: int
    step: int
    frames: tuple[VideoFrame, ...] = ()


@dataclass(frozen=True)
class ChainFinished:
    """The chain is finished."""

    record: ChainRecord
    frames: tuple[VideoFrame, ...] = ()


@dataclass(frozen=True)
class WorkerCrashed:
    """The slot's worker process crashed, and its chain is lost. ``output``: the end of what the worker printed.
    ``in_this_chain``: the worker was running this chain, not another one of its slots."""

    output: str
    in_this_chain: bool


SlotEvent = NeedsChunk | ChainFinished | WorkerCrashed


class EnvSlots(Protocol):
    """Slots, numbered from 0. Every ``start`` and ``execute`` results in one event, in any order."""

    count: int

    def start(self, slot: int, job: ChainJob, record_video: bool) -> None: ...
    def execute(self, slot: int, chunk: Actions) -> None: ...

    def events(self, wait: bool) -> list[tuple[int, SlotEvent]]:
        """Return the events that are ready, with their slots; with ``wait`` at least one if any is pending."""
        ...

    def close(self) -> None: ...


@dataclass
class EnvSlot:
    """One environment and the state of its chain."""

    env: Env
    oracle: Oracle
    settings: SlotSettings
    player: ChunkPlayer
    job: ChainJob = field(init=False)
    start_info: Info = field(default_factory=dict)
    task_index: int = 0
    steps: list[int] = field(default_factory=list)
    record_video: bool = False

    @classmethod
    def make(cls, factory: EnvFactory, settings: SlotSettings) -> EnvSlot:
        return cls(factory.make_env(), factory.oracle(), settings, settings.make_player())

    def start(self, job: ChainJob, record_video: bool) -> NeedsChunk:
        """Reset the environment to the chain's initial state."""
        self.job, self.task_index, self.steps, self.record_video = job, 0, [], record_video
        self.env.reset(robot_obs=job.robot_obs, scene_obs=job.scene_obs)
        self._start_task()
        return self._needs_chunk([])

    def execute(self, chunk: Actions) -> NeedsChunk | ChainFinished:
        """Execute actions until the player needs a new chunk or the chain is finished."""
        self.player.add_chunk(chunk)
        frames: list[VideoFrame] = []
        while not self.player.needs_chunk:
            info = self._step(frames)
            done = bool(self.oracle.tasks_done(self.start_info, info, among={self.job.tasks[self.task_index]}))
            if not done and self.steps[-1] < self.settings.max_steps:
                continue
            self._record_last_frame(frames)
            self.task_index += done
            if not done or self.task_index == len(self.job.tasks):
                record = ChainRecord(self.job.index, self.job.tasks, self.task_index, tuple(self.steps))
                return ChainFinished(record, tuple(frames))
            self._start_task()
        return self._needs_chunk(frames)

    def _start_task(self) -> None:
        self.player.reset()  # no action of the previous instruction is executed for this one
        self.start_info = self.env.get_info()
        self.steps.append(0)

    def _step(self, frames: list[VideoFrame]) -> Info:
        record = self.record_video and self._is_recorded(self.steps[-1])
        action = binary_gripper(self.player.next_action())
        obs, _, _, info = self.env.step(action, render=("static",) if record else False)
        self.steps[-1] += 1
        if record:
            frames.append(self._frame(obs))
        return info

    def _is_recorded(self, step: int) -> bool:
        return step % self.settings.frame_interval == 0

    def _record_last_frame(self, frames: list[VideoFrame]) -> None:
        """Record the state in which a task ends, if `frame_interval` skips its last step."""
        if self.record_video and not self._is_recorded(self.steps[-1] - 1):
            frames.append(self._frame(self.env.get_obs(render=("static",))))

    def _frame(self, obs: Mapping[str, Any]) -> VideoFrame:
        image = np.array(obs["rgb_obs"]["rgb_static"], dtype=np.uint8)
        return VideoFrame(self.task_index, self.steps[-1] - 1, image)

    def _needs_chunk(self, frames: list[VideoFrame]) -> NeedsChunk:
        obs = observation(self.env.get_obs(render=self.settings.cameras), self.job.instructions[self.task_index])
        return NeedsChunk(obs, self.task_index, self.steps[-1], tuple(frames))


class LocalSlots:
    """Slots in this process. Calls are deferred until ``events``, so that every forward of the policy has as many
    observations as possible."""

    def __init__(self, factory: EnvFactory, settings: SlotSettings, count: int) -> None:
        self.count = count
        self._factory, self._settings = factory, settings
        self._slots: dict[int, EnvSlot] = {}
        self._pending: list[tuple[int, Callable[[EnvSlot], SlotEvent]]] = []

    def start(self, slot: int, job: ChainJob, record_video: bool) -> None:
        self._pending.append((slot, lambda it: it.start(job, record_video)))

    def execute(self, slot: int, chunk: Actions) -> None:
        self._pending.append((slot, lambda it: it.execute(chunk)))

    def events(self, wait: bool) -> list[tuple[int, SlotEvent]]:
        pending, self._pending = self._pending, []
        return [(slot, call(self._slot(slot))) for slot, call in pending]

    def _slot(self, number: int) -> EnvSlot:
        if number not in self._slots:
            self._slots[number] = EnvSlot.make(self._factory, self._settings)
        return self._slots[number]

    def close(self) -> None:
        while self._slots:
            self._slots.popitem()[1].env.close()

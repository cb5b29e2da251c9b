"""A seat: one environment with what plays chains in it. Where the seats are is ``LocalSeats`` or ``workers``.

A seat needs no policy. It goes on by itself until the next chunk is wanted or its chain is over, and hands that moment
over; so it can be in this process or in another, and does the same in both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from policy_rollout.closed_loop.interface import Env, Info, Oracle, binary_gripper, observation
from policy_rollout.policies.action_chunking import Actions, ChunkPlayer
from policy_rollout.policies.interface import Observation

MAX_STEPS = 360
"""Control steps that CALVIN gives a task."""


@dataclass(frozen=True)
class ChainJob:
    """A chain to be played: tasks with the sentence given for each, from one initial state."""

    index: int
    tasks: tuple[str, ...]
    instructions: tuple[str, ...]
    robot_obs: NDArray[np.float64] | None = None
    scene_obs: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class ChainRecord:
    """What became of a chain. ``completed`` tasks were done; ``steps``: control steps of every task that was begun."""

    index: int
    tasks: tuple[str, ...]
    completed: int
    steps: tuple[int, ...]


class World(Protocol):
    """Makes what a seat needs. Pickled where the seats are in other processes."""

    def make_env(self) -> Env: ...
    def oracle(self) -> Oracle: ...


@dataclass(frozen=True)
class Rules:
    """How every chain is played. ``cameras``: those that the policy sees. ``replan_every``, ``ensemble``: see
    ``ChunkPlayer``. ``film_every``: of a filmed chain one control step in so many is filmed, and the last of a task."""

    act_step: int
    cameras: tuple[str, ...]
    max_steps: int = MAX_STEPS
    replan_every: int | None = None
    ensemble: float | None = None
    film_every: int = 2

    def player(self) -> ChunkPlayer:
        return ChunkPlayer(self.act_step, self.replan_every, self.ensemble)


@dataclass(frozen=True)
class VideoFrame:
    """The static camera, uint8 HWC, after control step ``step`` of task number ``place``."""

    place: int
    step: int
    image: NDArray[np.uint8]


@dataclass(frozen=True)
class NeedsChunk:
    """The next chunk is wanted: what is seen before control step ``step`` of task number ``place``."""

    observation: Observation
    place: int
    step: int
    shots: tuple[VideoFrame, ...] = ()


@dataclass(frozen=True)
class ChainFinished:
    """The chain is over."""

    record: ChainRecord
    shots: tuple[VideoFrame, ...] = ()


@dataclass(frozen=True)
class WorkerCrashed:
    """The seat's process broke down, and the chain with it. ``by_it``: in the midst of this very chain."""

    last_words: str
    by_it: bool


SlotEvent = NeedsChunk | ChainFinished | WorkerCrashed


class Seats(Protocol):
    """Numbered from 0. Every ``begin`` and ``plan`` is answered by one moment, in any order."""

    count: int

    def begin(self, seat: int, job: ChainJob, film: bool) -> None: ...
    def plan(self, seat: int, chunk: Actions) -> None: ...

    def ready(self, wait: bool) -> list[tuple[int, SlotEvent]]:
        """The moments that have come; with ``wait`` at least one, as long as one is to come."""
        ...

    def close(self) -> None: ...


@dataclass
class EnvSlot:
    """One environment and the chain it is in."""

    env: Env
    oracle: Oracle
    rules: Rules
    player: ChunkPlayer
    job: ChainJob = field(init=False)
    start_info: Info = field(default_factory=dict)
    place: int = 0
    steps: list[int] = field(default_factory=list)
    filming: bool = False

    @classmethod
    def make(cls, world: World, rules: Rules) -> EnvSlot:
        return cls(world.make_env(), world.oracle(), rules, rules.player())

    def begin(self, job: ChainJob, film: bool) -> NeedsChunk:
        self.job, self.place, self.steps, self.filming = job, 0, [], film
        self.env.reset(robot_obs=job.robot_obs, scene_obs=job.scene_obs)
        self._begin_task()
        return self._look([])

    def plan(self, chunk: Actions) -> NeedsChunk | ChainFinished:
        """Acts until the player wants a new plan or the chain is over."""
        self.player.plan(chunk)
        shots: list[VideoFrame] = []
        while not self.player.wants_plan:
            info = self._step(shots)
            done = bool(self.oracle.tasks_done(self.start_info, info, among={self.job.tasks[self.place]}))
            if not done and self.steps[-1] < self.rules.max_steps:
                continue
            self._film_last(shots)
            self.place += done
            if not done or self.place == len(self.job.tasks):
                return self._over(shots)
            self._begin_task()
        return self._look(shots)

    def _begin_task(self) -> None:
        self.player.reset()  # no action of the last instruction for this one
        self.start_info = self.env.get_info()
        self.steps.append(0)

    def _step(self, shots: list[VideoFrame]) -> Info:
        filmed = self.filming and self._is_filmed(self.steps[-1])
        action = binary_gripper(self.player.next_action())
        obs, _, _, info = self.env.step(action, render=("static",) if filmed else False)
        self.steps[-1] += 1
        if filmed:
            shots.append(self._shot(obs))
        return info

    def _is_filmed(self, step: int) -> bool:
        return step % self.rules.film_every == 0

    def _film_last(self, shots: list[VideoFrame]) -> None:
        """Film the state in which a task ends, if `film_every` passes over its last step."""
        if self.filming and not self._is_filmed(self.steps[-1] - 1):
            shots.append(self._shot(self.env.get_obs(render=("static",))))

    def _shot(self, obs: Mapping[str, Any]) -> VideoFrame:
        """The image after the step that was taken last."""
        return VideoFrame(self.place, self.steps[-1] - 1, np.array(obs["rgb_obs"]["rgb_static"], dtype=np.uint8))

    def _look(self, shots: list[VideoFrame]) -> NeedsChunk:
        seen = observation(self.env.get_obs(render=self.rules.cameras), self.job.instructions[self.place])
        return NeedsChunk(seen, self.place, self.steps[-1], tuple(shots))

    def _over(self, shots: list[VideoFrame]) -> ChainFinished:
        return ChainFinished(ChainRecord(self.job.index, self.job.tasks, self.place, tuple(self.steps)), tuple(shots))


class LocalSeats:
    """Seats in this process. Their work is done when somebody waits for it, all together, so that every forward of the
    policy is as wide as it can be."""

    def __init__(self, world: World, rules: Rules, count: int) -> None:
        self.count = count
        self._world, self._rules = world, rules
        self._seats: dict[int, EnvSlot] = {}
        self._work: list[tuple[int, Callable[[EnvSlot], SlotEvent]]] = []

    def begin(self, seat: int, job: ChainJob, film: bool) -> None:
        self._work.append((seat, lambda it: it.begin(job, film)))

    def plan(self, seat: int, chunk: Actions) -> None:
        self._work.append((seat, lambda it: it.plan(chunk)))

    def ready(self, wait: bool) -> list[tuple[int, SlotEvent]]:
        work, self._work = self._work, []
        return [(seat, what(self._seat(seat))) for seat, what in work]

    def _seat(self, number: int) -> EnvSlot:
        if number not in self._seats:
            self._seats[number] = EnvSlot.make(self._world, self._rules)
        return self._seats[number]

    def close(self) -> None:
        while self._seats:
            self._seats.popitem()[1].env.close()

"""CALVIN's long-horizon evaluation: tasks one after the other, the world never put back, until one of them fails.

Several environments run side by side in one process and the policy is asked about all of them at once, so that one
forward serves many chains. Which environment plays a chain, and beside which others, does not change its outcome.
An environment renders only when the policy looks at it, and only what the policy sees.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from policy_rollout.acting import ActionConvention, Observation, Policy, require_same_convention
from policy_rollout.chunking import ChunkPlayer
from policy_rollout.environment import Env, Info, Oracle, binary_gripper, observation

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


@dataclass
class _Seat:
    """One environment and the chain it is in."""

    env: Env
    player: ChunkPlayer
    cameras: tuple[str, ...]
    job: ChainJob
    start_info: Info = field(default_factory=dict)
    place: int = 0
    steps: list[int] = field(default_factory=list)
    film: list[NDArray[np.uint8]] | None = None

    def begin(self, job: ChainJob, film: bool) -> None:
        self.job, self.place, self.steps = job, 0, []
        self.film = [] if film else None
        self.env.reset(robot_obs=job.robot_obs, scene_obs=job.scene_obs)
        self._begin_task()

    def _begin_task(self) -> None:
        self.player.reset()  # no action of the last instruction for this one
        self.start_info = self.env.get_info()
        self.steps.append(0)

    def observe(self) -> Observation:
        return observation(self.env.get_obs(render=self.cameras), self.job.instructions[self.place])

    def play(self, oracle: Oracle, max_steps: int, film_every: int) -> ChainRecord | None:
        """Acts until the player wants a new plan (None) or the chain is over (its record)."""
        while not self.player.wants_plan:
            filmed = self.film is not None and self.steps[-1] % film_every == 0
            obs, _, _, info = self.env.step(
                binary_gripper(self.player.next_action()), render=("static",) if filmed else False
            )
            self.steps[-1] += 1
            if filmed and self.film is not None:
                self.film.append(np.array(obs["rgb_obs"]["rgb_static"], dtype=np.uint8))
            if oracle.tasks_done(self.start_info, info, among={self.job.tasks[self.place]}):
                self.place += 1
                if self.place == len(self.job.tasks):
                    return self._record()
                self._begin_task()
            elif self.steps[-1] >= max_steps:
                return self._record()
        return None

    def _record(self) -> ChainRecord:
        return ChainRecord(self.job.index, self.job.tasks, self.place, tuple(self.steps))


Finished = Callable[[ChainRecord, list[NDArray[np.uint8]] | None], None]


def run_chains(
    make_env: Callable[[], Env],
    policy: Policy,
    jobs: Sequence[ChainJob],
    oracle: Oracle,
    finished: Finished,
    *,
    max_steps: int = MAX_STEPS,
    replan_every: int | None = None,
    ensemble: float | None = None,
    parallel: int = 8,
    film: Collection[int] = (),
    film_every: int = 2,
    convention: ActionConvention | None = None,
) -> None:
    """Plays every chain once. ``finished`` hears each record as it is made, with the static camera's frames for the
    chains whose index is in ``film``, one every ``film_every`` steps. ``convention``: what the environment does with an
    action (default: CALVIN's). ``replan_every``, ``ensemble``: see ``ChunkPlayer``."""
    require_same_convention(policy.convention, convention or ActionConvention(), "the environment")
    policy.reset()
    cameras = tuple(name.removeprefix("rgb_") for name in policy.cameras)
    waiting: Iterator[ChainJob] = iter(jobs)
    seats: list[_Seat] = []
    envs: list[Env] = []
    try:
        for job in [job for _, job in zip(range(parallel), waiting, strict=False)]:
            envs.append(make_env())
            seats.append(_Seat(envs[-1], ChunkPlayer(policy.act_step, replan_every, ensemble), cameras, job))
            seats[-1].begin(job, job.index in film)
        while seats:
            # All seats want a plan here, so every forward is as wide as it can be.
            for seat, chunk in zip(seats, policy.act([seat.observe() for seat in seats]), strict=True):
                seat.player.plan(chunk)
            going_on = []
            for seat in seats:
                record = seat.play(oracle, max_steps, film_every)
                if record is not None:
                    finished(record, seat.film)
                    following = next(waiting, None)
                    if following is None:
                        continue
                    seat.begin(following, following.index in film)
                going_on.append(seat)
            seats = going_on
    finally:
        for env in envs:
            env.close()

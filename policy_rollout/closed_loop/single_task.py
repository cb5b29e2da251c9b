"""Single tasks in closed loop: each is a chain of one (``policy_rollout/closed_loop/runner.py``), judged by success
alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from policy_rollout.closed_loop.interface import Env, Oracle
from policy_rollout.closed_loop.runner import MAX_STEPS, ChainJob, ChainRecord, run_chains
from policy_rollout.intervals import Interval, wilson
from policy_rollout.policies.action_chunking import Actions
from policy_rollout.policies.interface import ActionConvention, Observation, Policy


@dataclass(frozen=True)
class Episode:
    """One task to be tried from one initial state."""

    index: int
    task: str
    instruction: str
    robot_obs: NDArray[np.float64] | None = None
    scene_obs: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class EpisodeRecord:
    """What became of an episode; `steps` are control steps taken until success or the limit."""

    index: int
    task: str
    instruction: str
    success: bool
    steps: int


@dataclass(frozen=True)
class Rollout:
    """All records in the order of the episodes, and the frames (uint8 HWC) of those that were filmed."""

    records: list[EpisodeRecord]
    frames: dict[int, list[NDArray[np.uint8]]]

    def success(self) -> Interval:
        return wilson(sum(record.success for record in self.records), len(self.records))

    def per_task(self) -> dict[str, Interval]:
        tasks = sorted({record.task for record in self.records})
        outcomes = {task: [r.success for r in self.records if r.task == task] for task in tasks}
        return {task: wilson(sum(done), len(done)) for task, done in outcomes.items()}


def run_episodes(
    make_env: Callable[[], Env],
    policy: Policy,
    episodes: Sequence[Episode],
    oracle: Oracle,
    *,
    convention: ActionConvention | None = None,
    max_steps: int = MAX_STEPS,
    replan_every: int | None = None,
    ensemble: float | None = None,
    parallel: int = 8,
    film: Collection[int] = (),
    film_every: int = 2,
    progress: Callable[[EpisodeRecord], None] = lambda record: None,
) -> Rollout:
    """Tries every episode once.

    `convention`  what the environment does with an action; compared with the policy's (default: CALVIN's).
    `parallel`    environments side by side; which one runs an episode does not change its outcome.
    `film`        indices of episodes whose static camera is kept, one frame every `film_every` steps.
    `progress`    hears each record as it is made.
    """
    by_index = {episode.index: episode for episode in episodes}
    records: dict[int, EpisodeRecord] = {}
    watching = _Film(frozenset(film), film_every)

    def finished(chain: ChainRecord) -> None:
        episode = by_index[chain.index]
        record = EpisodeRecord(episode.index, episode.task, episode.instruction, chain.completed == 1, chain.steps[0])
        records[chain.index] = record
        progress(record)

    run_chains(
        _World(make_env, lambda: oracle, convention or ActionConvention()),
        policy,
        [ChainJob(e.index, (e.task,), (e.instruction,), e.robot_obs, e.scene_obs) for e in episodes],
        finished,
        max_steps=max_steps,
        replan_every=replan_every,
        ensemble=ensemble,
        parallel=parallel,
        recorder=watching if film else None,
    )
    return Rollout([records[episode.index] for episode in episodes], watching.frames)


@dataclass(frozen=True)
class _World:
    make_env: Callable[[], Env]
    oracle: Callable[[], Oracle]
    convention: ActionConvention


@dataclass
class _Film:
    """Keeps the frames of some episodes."""

    wanted: frozenset[int]
    film_every: int
    frames: dict[int, list[NDArray[np.uint8]]] = field(default_factory=dict)

    def wants(self, job: ChainJob) -> bool:
        return job.index in self.wanted

    def began(self, job: ChainJob) -> None:
        self.frames[job.index] = []

    def filmed(self, job: ChainJob, place: int, step: int, image: NDArray[np.uint8]) -> None:
        self.frames[job.index].append(image)

    def looked(self, job: ChainJob, place: int, step: int, observation: Observation, chunk: Actions) -> None:
        """Not filmed."""

    def ended(self, job: ChainJob, record: ChainRecord) -> None:
        """The frames tell all."""

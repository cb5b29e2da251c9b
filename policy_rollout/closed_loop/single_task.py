"""Success rates of single tasks in closed loop: each is a chain of one (``closed_loop/runner.py``)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common.constants import CALVIN_MAX_STEPS
from common.statistics import Interval, wilson
from policy_rollout.closed_loop.interface import ChainJob, ChainRecord, Env, Oracle, PolicyCall
from policy_rollout.closed_loop.runner import run_chains
from policy_rollout.policies.interface import ActionConvention, Policy


@dataclass(frozen=True)
class Episode:
    """One attempt at one task, from one initial state."""

    index: int
    task: str
    instruction: str
    robot_obs: NDArray[np.float64] | None = None
    scene_obs: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class EpisodeRecord:
    """Outcome of an episode; `steps` are control steps until success or the limit."""

    index: int
    task: str
    instruction: str
    success: bool
    steps: int


@dataclass(frozen=True)
class Rollout:
    """All records in the order of the episodes, and the frames (uint8 HWC) of the recorded episodes."""

    records: list[EpisodeRecord]
    frames: dict[int, list[NDArray[np.uint8]]]

    def success(self) -> Interval:
        """Return the success rate with its interval."""
        return wilson(sum(record.success for record in self.records), len(self.records))

    def per_task(self) -> dict[str, Interval]:
        """Return the success rate of every task."""
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
    max_steps: int = CALVIN_MAX_STEPS,
    replan_every: int | None = None,
    ensemble: float | None = None,
    parallel: int = 8,
    record: Collection[int] = (),
    frame_interval: int = 2,
    progress: Callable[[EpisodeRecord], None] = lambda record: None,
) -> Rollout:
    """Run every episode once.

    `convention`      what the environment does with an action; compared with the policy's (default: CALVIN's).
    `parallel`        number of environments; outcomes do not depend on it.
    `record`          indices of the episodes to record: one static camera frame every `frame_interval` steps.
    `progress`        called with each record.
    """
    by_index = {episode.index: episode for episode in episodes}
    records: dict[int, EpisodeRecord] = {}
    recorder = _FrameRecorder(frozenset(record), frame_interval)

    def on_record(chain: ChainRecord) -> None:
        episode = by_index[chain.index]
        found = EpisodeRecord(episode.index, episode.task, episode.instruction, chain.completed == 1, chain.steps[0])
        records[chain.index] = found
        progress(found)

    run_chains(
        _Environment(make_env, lambda: oracle, convention or ActionConvention()),
        policy,
        [ChainJob(e.index, (e.task,), (e.instruction,), e.robot_obs, e.scene_obs) for e in episodes],
        on_record,
        max_steps=max_steps,
        replan_every=replan_every,
        ensemble=ensemble,
        parallel=parallel,
        recorder=recorder if record else None,
    )
    return Rollout([records[episode.index] for episode in episodes], recorder.frames)


@dataclass(frozen=True)
class _Environment:
    make_env: Callable[[], Env]
    oracle: Callable[[], Oracle]
    convention: ActionConvention


@dataclass
class _FrameRecorder:
    """A ``Recorder`` of the frames of some episodes."""

    indices: frozenset[int]
    frame_interval: int
    frames: dict[int, list[NDArray[np.uint8]]] = field(default_factory=dict)
    wants_codes: bool = False

    def selects(self, job: ChainJob) -> bool:
        return job.index in self.indices

    def start_chain(self, job: ChainJob) -> None:
        self.frames[job.index] = []

    def add_frame(self, job: ChainJob, task_index: int, step: int, image: NDArray[np.uint8]) -> None:
        self.frames[job.index].append(image)

    def add_call(self, job: ChainJob, call: PolicyCall) -> None:
        """Record nothing."""

    def finish_chain(self, job: ChainJob, record: ChainRecord) -> None:
        """Record nothing."""

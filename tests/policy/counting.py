"""A world in which a step adds one, for tests of the loop; it can break down like a simulator. Loads no network, as
worker processes import it too."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_rollout.closed_loop.interface import ChainJob, ChainRecord, PolicyCall
from policy_rollout.policies.interface import ActionConvention, Observation


def job(index: int, *numbers: int) -> ChainJob:
    """Tasks ``add n`` one after the other; the world starts at the chain's index."""
    tasks = tuple(f"add {n}" for n in numbers)
    return ChainJob(
        index, tasks, tuple(f"please {task}" for task in tasks), np.zeros(15), np.full(24, index, np.float64)
    )


class Counter:
    """Nothing but a new chain puts the count back."""

    def __init__(self, breakdowns: Path | None = None, times: int = 0, chains: tuple[int, ...] = ()) -> None:
        self.breakdowns, self.times, self.chains = breakdowns, times, chains
        self.count = 0

    def reset(self, robot_obs: Any = None, scene_obs: Any = None) -> dict[str, Any]:
        self.count = self.start = int(scene_obs[0])
        return self.get_obs()

    def step(self, action: Any, render: Any = True) -> tuple[dict[str, Any], Any, bool, dict[str, Any]]:
        self.count += 1
        if self.start in self.chains and self.count == self.start + 2:
            self._break_down()
        return self.get_obs(), 0, False, self.get_info()

    def _break_down(self) -> None:
        assert self.breakdowns is not None
        file = self.breakdowns / str(self.start)
        broken = len(file.read_text()) if file.exists() else 0
        if broken < self.times:
            file.write_text("x" * (broken + 1))
            print("the arm has left the world", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)

    def get_obs(self, render: Any = True) -> dict[str, Any]:
        return {"rgb_obs": {"rgb_static": np.full((2, 2, 3), self.count, np.uint8)}}

    def get_info(self) -> dict[str, Any]:
        return {"count": self.count}

    def close(self) -> None:
        self.count = -1


class Judge:
    """Task ``add n`` is done when n was added since it began."""

    def tasks_done(
        self, start: Mapping[str, Any], end: Mapping[str, Any], among: Collection[str] | None = None
    ) -> set[str]:
        return {task for task in among or () if end["count"] - start["count"] >= int(task.split()[1])}


@dataclass(frozen=True)
class Counting:
    """The world of counters. ``times``: how often the process dies at the second step of each of ``chains``; it
    counts in the folder ``breakdowns``."""

    breakdowns: Path | None = None
    times: int = 0
    chains: tuple[int, ...] = ()

    convention = ActionConvention()

    def make_env(self) -> Counter:
        return Counter(self.breakdowns, self.times, self.chains)

    def oracle(self) -> Judge:
        return Judge()


@dataclass(frozen=True)
class Unmakeable:
    """A world whose environment cannot be made."""

    missing: Path

    convention = ActionConvention()

    def make_env(self) -> Counter:
        self.missing.read_text()
        raise AssertionError("it is missing")

    def oracle(self) -> Judge:
        return Judge()


class Still:
    """A policy that does nothing, four steps at a time."""

    convention = ActionConvention()
    act_step = 4
    cameras = ("rgb_static",)

    def reset(self) -> None:
        """Nothing to forget."""

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float32]:
        return np.zeros((len(observations), 4, 7), np.float32)


@dataclass
class LoggingRecorder:
    """A recorder that lists its calls for some chains."""

    wanted: set[int]
    frame_interval: int = 2
    calls: dict[int, list[str]] = field(default_factory=dict)
    wants_codes: bool = False

    def selects(self, job: ChainJob) -> bool:
        return job.index in self.wanted

    def start_chain(self, job: ChainJob) -> None:
        self.calls[job.index] = ["start"]

    def add_call(self, job: ChainJob, call: PolicyCall) -> None:
        assert call.chunk.shape == (4, 7)
        shown = call.observation.rgb_static[0, 0, 0]
        self.calls[job.index].append(f"observation {call.task_index}:{call.step} shows {shown}")

    def add_frame(self, job: ChainJob, task_index: int, step: int, image: Any) -> None:
        self.calls[job.index].append(f"frame {task_index}:{step} shows {image[0, 0, 0]}")

    def finish_chain(self, job: ChainJob, record: ChainRecord) -> None:
        self.calls[job.index].append(f"finished with {record.completed}")

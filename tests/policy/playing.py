"""An evaluation to be killed: `python -m tests.policy.playing FOLDER counting|desk [CHAINS [WORKERS]]`."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_rollout import records
from policy_rollout.acting import ActionConvention, Observation
from policy_rollout.benchmarks.desk import DeskBenchmark
from policy_rollout.chains import ChainJob
from policy_rollout.evaluation import Manner, play_together
from policy_rollout.progress import Progress
from tests.policy.counting import Counting, Still, job


class Slow(Still):
    """Takes its time, so that there is something to kill."""

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float32]:
        time.sleep(0.01)
        return super().act(observations)


class Wander(Still):
    """Goes where the picture sends it: what it does hangs on all that it sees, and on nothing else."""

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float32]:
        chunks = super().act(observations)
        for chunk, seen in zip(chunks, observations, strict=True):
            chunk[:, :6] = np.random.default_rng(int(seen.rgb_static.sum())).uniform(-1, 1, 6)
        return chunks


class Travelled:
    """Task ``n`` is done when the hand is n centimetres from where it was."""

    def tasks_done(
        self, start: Mapping[str, Any], end: Mapping[str, Any], among: Collection[str] | None = None
    ) -> set[str]:
        way = np.subtract(end["robot_info"]["tcp_pos"], start["robot_info"]["tcp_pos"])
        return {task for task in among or () if np.linalg.norm(way) >= float(task) / 100}


@dataclass(frozen=True)
class Wandering:
    """The real desk, judged by how far the hand gets."""

    desk = DeskBenchmark(static_size=48)
    convention = ActionConvention()

    def make_env(self) -> Any:
        return self.desk.make_env()

    def oracle(self) -> Travelled:
        return Travelled()


def chains(world: str, count: int) -> list[ChainJob]:
    if world == "counting":
        return [job(i, 1 + i % 7, 5 + i % 9, 3 + i % 11) for i in range(count)]
    starts = DeskBenchmark().jobs(count)
    tasks = [("2", str(3 + i % 5), str(4 + i % 9), "25") for i in range(count)]
    return [ChainJob(s.index, t, t, s.robot_obs, s.scene_obs) for s, t in zip(starts, tasks, strict=True)]


def main(folder: str, world: str = "counting", count: str = "40", workers: str = "2") -> None:
    place, jobs = Path(folder), chains(world, int(count))
    records.claim(place, {"world": world})
    manner = Manner(max_steps=12 if world == "counting" else 60, parallel=4, workers=int(workers))
    arena, policy = (Counting(), Slow()) if world == "counting" else (Wandering(), Wander())
    play_together(place, arena, policy, jobs, manner, Progress(place, jobs, rank=1))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""An evaluation to be killed: `python -m tests.policy.playing FOLDER counting|desk [CHAINS [WORKERS]]`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from policy_rollout.benchmarks.desk import DeskBenchmark
from policy_rollout.closed_loop import records
from policy_rollout.closed_loop.evaluation import RolloutSettings, run_distributed
from policy_rollout.closed_loop.interface import ChainJob
from policy_rollout.closed_loop.progress import Progress
from policy_rollout.policies.interface import Observation
from tests.policy.counting import Counting, Still, job
from tests.policy.wandering import Wander, Wandering


class Slow(Still):
    """Takes its time, so that there is something to kill."""

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float32]:
        time.sleep(0.01)
        return super().act(observations)


def chains(world: str, count: int) -> list[ChainJob]:
    if world == "counting":
        return [job(i, 1 + i % 7, 5 + i % 9, 3 + i % 11) for i in range(count)]
    starts = DeskBenchmark().jobs(count)
    tasks = [("5", str(12 + 6 * (i % 5)), "20", "50") for i in range(count)]
    return [ChainJob(s.index, t, t, s.robot_obs, s.scene_obs) for s, t in zip(starts, tasks, strict=True)]


def main(folder: str, world: str = "counting", count: str = "40", workers: str = "2") -> None:
    place, jobs = Path(folder), chains(world, int(count))
    records.claim(place, {"world": world})
    manner = RolloutSettings(max_steps=12 if world == "counting" else 60, parallel=4, workers=int(workers))
    arena, policy = (Counting(), Slow()) if world == "counting" else (Wandering(), Wander())
    run_distributed(place, arena, policy, jobs, manner, Progress(place, jobs, rank=1))


if __name__ == "__main__":
    main(*sys.argv[1:])

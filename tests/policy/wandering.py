"""The desk with a policy that any image sends elsewhere, evaluated by how far the hand gets. Loads no network."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_rollout.benchmarks.desk import DeskBenchmark
from policy_rollout.policies.interface import ActionConvention, Observation
from tests.policy.counting import Still


class Wander(Still):
    """Goes where the image sends it: what it does hangs on all that it sees, and on nothing else."""

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
    """The real desk, evaluated by how far the hand gets."""

    desk = DeskBenchmark(static_size=48)
    convention = ActionConvention()

    def make_env(self) -> Any:
        return self.desk.make_env()

    def oracle(self) -> Travelled:
        return Travelled()

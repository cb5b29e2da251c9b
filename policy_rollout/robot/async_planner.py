"""Asking the policy while the robot goes on playing the chunk it has."""

from __future__ import annotations

import math
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policy_rollout.policies.interface import Observation, Policy

_REMEMBERED = 5
"""Plans whose time is the estimate for the next one (the longest of them counts)."""


@dataclass(frozen=True)
class Plan:
    """A chunk [T, A], the number of actions that had been played when its observation was made, when that was
    (`time.monotonic`), and the seconds of thinking."""

    chunk: NDArray[np.float32]
    played: int
    taken_at: float
    seconds: float


class Planner:
    """One question at a time. `synchronous`: `ask` waits for the answer, and the robot with it."""

    def __init__(self, policy: Policy, period: float, synchronous: bool = False) -> None:
        self._policy, self._period = policy, period
        self._thread = None if synchronous else ThreadPoolExecutor(1, thread_name_prefix="planner")
        self._pending: Future[Plan] | None = None
        self._forgotten = False
        self._recent: deque[float] = deque(maxlen=_REMEMBERED)

    @property
    def busy(self) -> bool:
        return self._pending is not None

    @property
    def synchronous(self) -> bool:
        return self._thread is None

    @property
    def periods(self) -> int:
        """How many control steps a plan is expected to take; 0 where nothing moves meanwhile."""
        return 0 if self.synchronous else math.ceil(max(self._recent, default=0.0) / self._period)

    def ask(self, observation: Observation, played: int, taken_at: float) -> None:
        """Begins to think about what is seen now."""
        assert not self.busy, "one question at a time"
        self._forgotten = False
        if self._thread is not None:
            self._pending = self._thread.submit(self._think, observation, played, taken_at)
            return
        self._pending = Future()
        try:
            self._pending.set_result(self._think(observation, played, taken_at))
        except (OSError, ValueError, RuntimeError) as error:  # `take` raises it, as it does when thinking aside
            self._pending.set_exception(error)

    def take(self) -> Plan | None:
        """The plan, once there is one. Raises what the policy raised."""
        if self._pending is None or not self._pending.done():
            return None
        finished, self._pending = self._pending, None
        plan = finished.result()
        self._recent.append(plan.seconds)
        return None if self._forgotten else plan

    def forget(self) -> None:
        """The plan in the making is not wanted any more."""
        self._forgotten = True

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _think(self, observation: Observation, played: int, taken_at: float) -> Plan:
        started = time.perf_counter()
        chunk = self._policy.act([observation])[0]
        return Plan(chunk, played, taken_at, time.perf_counter() - started)

"""Run the policy in a thread while the robot executes the previous chunk."""

from __future__ import annotations

import math
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policy_rollout.policies.interface import Observation, Policy

_LATENCY_WINDOW = 5
"""Number of latest plans whose longest time is the estimate for the next one."""


@dataclass(frozen=True)
class Plan:
    """A chunk [T, A] for one observation.

    `executed`: actions that had been executed when the observation was made; `taken_at`: time of the observation
    (`time.monotonic`); `seconds`: duration of the policy's forward.
    """

    chunk: NDArray[np.float32]
    executed: int
    taken_at: float
    seconds: float


class Planner:
    """Runs the policy on one observation at a time. `synchronous`: `start` blocks until the plan is ready."""

    def __init__(self, policy: Policy, period: float, synchronous: bool = False) -> None:
        self._policy, self._period = policy, period
        self._thread = None if synchronous else ThreadPoolExecutor(1, thread_name_prefix="planner")
        self._pending: Future[Plan] | None = None
        self._cancelled = False
        self._recent: deque[float] = deque(maxlen=_LATENCY_WINDOW)

    @property
    def busy(self) -> bool:
        return self._pending is not None

    @property
    def synchronous(self) -> bool:
        return self._thread is None

    @property
    def periods(self) -> int:
        """Expected duration of a plan in control steps; 0 if the robot stands still meanwhile."""
        return 0 if self.synchronous else math.ceil(max(self._recent, default=0.0) / self._period)

    def start(self, observation: Observation, executed: int, taken_at: float) -> None:
        """Start planning for an observation."""
        assert not self.busy, "one plan at a time"
        self._cancelled = False
        if self._thread is not None:
            self._pending = self._thread.submit(self._plan, observation, executed, taken_at)
            return
        self._pending = Future()
        try:
            self._pending.set_result(self._plan(observation, executed, taken_at))
        except (OSError, ValueError, RuntimeError) as error:  # `result` raises it, as for a plan in the thread
            self._pending.set_exception(error)

    def result(self) -> Plan | None:
        """Return the plan if it is ready, else None. Raises what the policy raised."""
        if self._pending is None or not self._pending.done():
            return None
        finished, self._pending = self._pending, None
        plan = finished.result()
        self._recent.append(plan.seconds)
        return None if self._cancelled else plan

    def cancel(self) -> None:
        """Discard the pending plan when it is ready."""
        self._cancelled = True

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _plan(self, observation: Observation, executed: int, taken_at: float) -> Plan:
        started = time.perf_counter()
        chunk = self._policy.act([observation])[0]
        return Plan(chunk, executed, taken_at, time.perf_counter() - started)

"""The rate of a control loop."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A clock, replaceable in tests."""

    def now(self) -> float: ...
    def sleep(self, seconds: float) -> None: ...


class RealClock:
    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class RateLimiter:
    """Ticks at start + period, start + 2 periods, ...: independent of the duration of a step (no drift).

    A step that is not done by the next tick is an overrun: missed ticks are skipped, not caught up. `overruns` counts
    them, `worst` is the longest delay in seconds.
    """

    def __init__(self, rate_hz: float, clock: Clock) -> None:
        if not 0 < rate_hz <= 1000:
            raise ValueError(f"the rate must lie in 0..1000 Hz, got {rate_hz}")
        self.period = 1 / rate_hz
        self.overruns = 0
        self.worst = 0.0
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        """Set the next tick to one period from now, so that an intended pause is no overrun."""
        self._next = self._clock.now() + self.period

    def wait(self) -> None:
        """Wait for the next tick."""
        late = self._clock.now() - self._next
        if late > 0:
            self.overruns += 1
            self.worst = max(self.worst, late)
            self._next += self.period * (int(late / self.period) + 1)
        self._clock.sleep(max(self._next - self._clock.now(), 0.0))
        self._next += self.period

"""A control loop's beat."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Time, so that tests need not wait for it."""

    def now(self) -> float: ...
    def sleep(self, seconds: float) -> None: ...


class RealClock:
    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class RateLimiter:
    """Beats at start, start + period, start + 2 periods, ...: what a step takes does not add up (no drift).

    A step that is not done by the next beat is an overrun: the beats that have passed are left out, never made up for
    by faster ones. `overruns`, `worst` (seconds too late) count them.
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
        """The next beat is one period from now; what was waited for on purpose is no overrun."""
        self._next = self._clock.now() + self.period

    def wait(self) -> None:
        """Until the next beat."""
        late = self._clock.now() - self._next
        if late > 0:
            self.overruns += 1
            self.worst = max(self.worst, late)
            self._next += self.period * (int(late / self.period) + 1)
        self._clock.sleep(max(self._next - self._clock.now(), 0.0))
        self._next += self.period

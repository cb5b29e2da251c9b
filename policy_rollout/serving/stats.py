"""What a server has done: totals for its last line, and one line for every period in which something happened."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np

_RECENT = 10_000
"""Answer times that are kept for percentiles."""


@dataclass
class Counters:
    """Plain counting; one thread (the server's) does it."""

    sessions: int = 0
    answers: int = 0
    forwards: int = 0
    planned: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """By reason: bad message, failed policy, wrong token, full."""
    _milliseconds: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    _told: tuple[float, int, int, int] = field(default_factory=lambda: (time.monotonic(), 0, 0, 0))

    def answered(self, seconds: float) -> None:
        self.answers += 1
        self._milliseconds.append(seconds * 1000)

    def ran(self, batch: int, seconds: float) -> None:
        self.forwards += 1
        self.planned += batch

    def line(self, open_sessions: int) -> str | None:
        """What happened since the last line; None where nothing did."""
        before, answers, forwards, planned = self._told
        now = time.monotonic()
        self._told = (now, self.answers, self.forwards, self.planned)
        if self.answers == answers:
            return None
        seconds = max(now - before, 1e-9)
        ran = self.forwards - forwards
        batch = f", {ran / seconds:.1f} forwards/s of {(self.planned - planned) / ran:.1f}" if ran else ""
        times = np.percentile(np.array(self._milliseconds), [50, 95])
        self._milliseconds.clear()
        return (
            f"{open_sessions} sessions, {(self.answers - answers) / seconds:.1f} answers/s{batch}, "
            f"{times[0]:.1f} ms median, {times[1]:.1f} ms 95 %{self._refusals()}"
        )

    def total(self) -> str:
        """The last line of a run."""
        return f"{self.sessions} sessions, {self.answers} answers by {self.forwards} forwards{self._refusals()}"

    def _refusals(self) -> str:
        return "".join(f", {count} x {reason}" for reason, count in sorted(self.refused.items()))

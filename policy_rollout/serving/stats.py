"""Statistics of a server: totals, and one line for every period with answers."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np

_RECENT = 10_000
"""Number of latest answer times used for percentiles."""


@dataclass
class ServerStats:
    """Counters of one server; used from its thread only."""

    sessions: int = 0
    answers: int = 0
    forwards: int = 0
    chunks: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """By reason: bad message, failed policy, wrong token, full."""
    _milliseconds: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    _reported: tuple[float, int, int, int] = field(default_factory=lambda: (time.monotonic(), 0, 0, 0))

    def add_answer(self, seconds: float) -> None:
        """Count an answer that took `seconds`."""
        self.answers += 1
        self._milliseconds.append(seconds * 1000)

    def add_forward(self, batch: int, seconds: float) -> None:
        """Count a forward of `batch` observations."""
        self.forwards += 1
        self.chunks += batch

    def line(self, open_sessions: int) -> str | None:
        """Return the statistics since the last call; None if there was no answer."""
        before, answers, forwards, chunks = self._reported
        now = time.monotonic()
        self._reported = (now, self.answers, self.forwards, self.chunks)
        if self.answers == answers:
            return None
        seconds = max(now - before, 1e-9)
        count = self.forwards - forwards
        batch = f", {count / seconds:.1f} forwards/s of {(self.chunks - chunks) / count:.1f}" if count else ""
        times = np.percentile(np.array(self._milliseconds), [50, 95])
        self._milliseconds.clear()
        return (
            f"{open_sessions} sessions, {(self.answers - answers) / seconds:.1f} answers/s{batch}, "
            f"{times[0]:.1f} ms median, {times[1]:.1f} ms 95 %{self._refusals()}"
        )

    def total(self) -> str:
        """Return the totals of the whole run."""
        return f"{self.sessions} sessions, {self.answers} answers by {self.forwards} forwards{self._refusals()}"

    def _refusals(self) -> str:
        return "".join(f", {count} x {reason}" for reason, count in sorted(self.refused.items()))

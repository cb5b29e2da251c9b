"""The plays of all users: one for each open page, a bounded number, freed when the page is closed or idle."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from policy_rollout.demo.web.play import Play


@dataclass
class _Entry:
    play: Play
    used: float


@dataclass
class Sessions:
    """Plays by the key of their page.

    ``make``: returns a new play; ``limit``: largest number of plays; ``timeout``: seconds after which a play that was
    not used is closed. Safe to call from several threads.
    """

    make: Callable[[], Play]
    limit: int
    timeout: float
    _entries: dict[str, _Entry] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> Play:
        """Return the play of a page, a new one at its first call.

        Raises ValueError with a message for the user if ``limit`` other pages have one.
        """
        self.close_idle()
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or not entry.play.alive:
                if entry is None and len(self._entries) >= self.limit:
                    raise ValueError(
                        f"{self.limit} pages are open, which is the limit (--max-sessions). Close one, or wait: "
                        f"a page that is idle for {self.timeout:g} seconds is closed."
                    )
                entry = self._entries[key] = _Entry(self.make(), 0.0)
            entry.used = time.monotonic()
            return entry.play

    def close(self, key: str) -> None:
        """Close the play of a page that was left; without effect for an unknown one."""
        with self._lock:
            entry = self._entries.pop(key, None)
        if entry is not None:
            entry.play.close()

    def close_idle(self) -> None:
        """Close the plays that were not used for ``timeout`` seconds."""
        oldest = time.monotonic() - self.timeout
        for key in [key for key, entry in list(self._entries.items()) if entry.used < oldest]:
            self.close(key)

    def close_all(self) -> None:
        """Close all plays."""
        for key in list(self._entries):
            self.close(key)

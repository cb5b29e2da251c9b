"""Start a policy server, ask it for one chunk of actions, and stop it."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from benchmarks.real_size.watch import Watched, watch
from policy_rollout.policies.interface import Observation
from policy_rollout.robot.remote import RemotePolicy

READY = re.compile(r"ready on port (\d+)")
PATIENCE = 1800.0
"""Seconds until the server is ready, and until it answers."""


@dataclass
class Caller:
    """Waits for a server's port in ``log``, asks it for one chunk, and stops it. ``error``: what went wrong."""

    log: Path
    phase: str = "loading"
    error: str = ""
    chunk: tuple[int, ...] = field(default=())

    def __call__(self) -> None:
        try:
            url = f"ws://127.0.0.1:{self._port()}"
            self.phase = "call"
            policy = RemotePolicy(url, timeout=PATIENCE)
            image = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
            self.chunk = policy.act([Observation(image, "open the drawer")]).shape
            policy.close()
        except (ValueError, OSError) as error:
            self.error = str(error)
        finally:
            self._stop()

    def _port(self) -> int:
        ends = time.monotonic() + PATIENCE
        while time.monotonic() < ends:
            text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""
            if found := READY.search(text):
                return int(found[1])
            if not self._servers():
                time.sleep(1.0)  # it may not have started yet
                if not self._servers():
                    raise ValueError(f"{self.log}: the server ended before it was ready")
            time.sleep(0.5)
        raise ValueError(f"{self.log}: the server was not ready after {PATIENCE:.0f} s")

    def _servers(self) -> list[psutil.Process]:
        return [child for child in psutil.Process().children() if "policy_rollout.serve" in " ".join(child.cmdline())]

    def _stop(self) -> None:
        for server in self._servers():
            server.send_signal(signal.SIGINT)


def serve_one_call(command: Sequence[str], log: Path) -> Watched:
    """Run a server for one call; its exit code is 1 if the call failed."""
    log.unlink(missing_ok=True)
    caller = Caller(log)
    thread = threading.Thread(target=caller, daemon=True)
    thread.start()
    found = watch(command, log, lambda: caller.phase)
    thread.join()
    found.code = int(bool(caller.error)) if caller.chunk else 1
    return found

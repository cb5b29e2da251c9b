"""Being asked to stop: by ``kill``, by Slurm when time runs out or somebody of higher rank wants the machine.

SIGTERM and SIGUSR1 (``#SBATCH --signal=...USR1@120``) ask a run to stop. It ends the optimizer step it is in, writes a
checkpoint and leaves with ``PREEMPTED``; the same command goes on from there. SIGINT (Ctrl-C) stops at once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PREEMPTED = 75
"""Exit code of a run that was asked to stop and can go on (``EX_TEMPFAIL``: try again)."""
ASKING = (signal.SIGTERM, signal.SIGUSR1)
WORKER_GRACE_S = 60.0


class StopRequest:
    """Whether this process was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number).name


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Take the signals for as long as the context lasts (only a process's main thread can)."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request) for number in ASKING}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_signals_to_the_run(worker: int) -> None:
    """In a data worker: a signal to the whole job must not kill the worker under the step that is to be ended.

    A worker leaves when the loader tells it to, or when its parent is gone. It does not refuse SIGTERM for ever, which
    is how an interpreter that ends in disorder gets rid of its children.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        os._exit(0)

    def leave_later(number: int, frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, WORKER_GRACE_S)

    signal.signal(signal.SIGALRM, leave)
    signal.signal(signal.SIGTERM, leave_later)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

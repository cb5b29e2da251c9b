"""Preemption: handle SIGTERM and SIGUSR1 (``kill``, Slurm's time limit and preemption).

SIGTERM and SIGUSR1 (``#SBATCH --signal=...USR1@120``) request a run to stop. It finishes the current optimizer step,
writes a checkpoint and exits with ``PREEMPTED``; the same command resumes. SIGINT (Ctrl-C) stops at once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PREEMPTED = 75
"""Exit code of a run that was stopped by a signal and can be resumed (``EX_TEMPFAIL``: try again)."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
WORKER_GRACE_S = 60.0
"""Seconds after SIGTERM until a data worker exits by itself."""


class StopRequest:
    """The first stop signal that this process received, None before that."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number).name


@contextmanager
def handle_stop_signals() -> Iterator[StopRequest]:
    """Handle the stop signals inside the context. Does nothing outside of the main thread, where Python cannot."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request) for number in STOP_SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_stop_signals(worker: int) -> None:
    """Let a data worker survive signals to the whole job, so that the run can finish its step.

    A worker exits when the loader stops it, or when its parent has ended. SIGTERM ends it after ``WORKER_GRACE_S``,
    because an interpreter that exits after an error terminates its children that way.
    """

    def exit_now(number: int, frame: FrameType | None) -> None:
        os._exit(0)

    def exit_later(number: int, frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, WORKER_GRACE_S)

    signal.signal(signal.SIGALRM, exit_now)
    signal.signal(signal.SIGTERM, exit_later)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

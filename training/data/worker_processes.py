"""Receive batches from the processes of a ``DataLoader``, and report in one sentence why one of them ended.

Torch raises the death of a worker at an arbitrary point of the main process, as one of several exceptions. It also
drops a batch that a worker's thread cannot send, so that the main process waits for ever. Here a worker that fails
reports the reason and exits, and its death is raised only while the main process waits for a batch.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing import Pipe, active_children
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from torch.utils.data import DataLoader

from common.shared_memory import LESS_MEMORY, shared_memory_remedy
from training.failure.known_errors import is_open_files_error, is_shared_memory_error
from training.failure.preemption import ignore_stop_signals

PREFETCH = 2
"""Batches that torch lets each worker prepare."""
FAILED = 70
"""Exit code of a worker that has reported its error (``EX_SOFTWARE``)."""
EXIT_S = 3.0
"""Seconds that a worker whose connection broke may take to exit."""
BROKEN = (RuntimeError, OSError, EOFError, AssertionError, pickle.UnpicklingError)
"""What torch and multiprocessing raise in the main process when a worker is gone."""


class LostWorker(RuntimeError):
    """A data worker has ended; the message is the likely cause with the remedy."""


def receive(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield the batches of ``loader``. Raises ``LostWorker`` if one of its processes ends."""
    if loader.num_workers == 0:
        yield from loader
        return
    reports, sender = Pipe(duplex=False)
    loader.worker_init_fn = partial(_prepare, sender)
    workers: list[BaseProcess] = []
    try:
        iterator = _start(loader, workers)
        sender.close()
        while True:
            try:
                batch = _next(iterator, workers)
            except StopIteration:
                return
            except BROKEN as error:
                cause = _cause(workers, reports)
                if cause is None:
                    raise
                raise LostWorker(cause) from error
            yield batch
    except LostWorker:
        for worker in workers:  # a worker that waits for a lock of the dead one would block the exit
            worker.kill()
        for worker in workers:
            worker.join(EXIT_S)
        raise
    finally:
        reports.close()


def _start(loader: DataLoader[Any], workers: list[BaseProcess]) -> Iterator[Any]:
    """Start the processes and add them to ``workers``. Removes torch's handler of SIGCHLD, which raises anywhere."""
    before, handler = set(active_children()), signal.getsignal(signal.SIGCHLD)
    try:
        try:
            return iter(loader)
        finally:
            workers += [child for child in active_children() if child not in before]
    except OSError as error:
        shared = f"; {shared_memory_remedy()}" if is_shared_memory_error(str(error)) else ""
        raise LostWorker(f"data workers cannot be started ({error}){shared or f'; {LESS_MEMORY}'}") from error
    finally:  # also if torch's handler interrupts the lines above
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler)


def _next(iterator: Iterator[Any], workers: Sequence[BaseProcess]) -> Any:
    """Return the next batch. Raises RuntimeError as soon as a worker is dead, even if the read of a batch blocks.

    The handler of SIGCHLD raises at most once, and the caller's handler is restored wherever the signal arrives.
    """
    armed = False

    def check(number: int | None = None, frame: FrameType | None = None) -> None:
        nonlocal armed
        if armed and not all(worker.is_alive() for worker in workers):
            armed = False
            raise RuntimeError("a data worker is dead")

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGCHLD, check) if main else None
    try:
        try:
            armed = True
            check()
            return next(iterator)
        finally:
            armed = False
    finally:
        if main:
            signal.signal(signal.SIGCHLD, before)


def _cause(workers: Sequence[BaseProcess], reports: Connection) -> str | None:
    """Return why a worker ended; None if all are alive."""
    end = time.monotonic() + EXIT_S
    while all(worker.is_alive() for worker in workers):
        if time.monotonic() > end:
            return None
        time.sleep(0.05)
    try:
        if reports.poll():
            return _describe_report(str(reports.recv()))
    except (EOFError, OSError):  # all writers have exited
        pass
    code = next(worker.exitcode for worker in workers if worker.exitcode is not None)
    if code == -signal.SIGKILL:
        return f"a data worker was killed, which the system does when memory runs out; {LESS_MEMORY}"
    if code == -signal.SIGBUS:
        return f"a data worker was killed by SIGBUS, which means that shared memory is full; {shared_memory_remedy()}"
    if code < 0:
        return (
            f"a data worker was killed by {signal.Signals(-code).name}; if no user did that, "
            "dataset.params.num_workers=0 shows where it happens"
        )
    return f"a data worker ended with exit code {code}; dataset.params.num_workers=0 shows where it happens"


def _describe_report(reason: str) -> str:
    if is_shared_memory_error(reason):
        return f"a data worker could not send a batch ({reason}); {shared_memory_remedy()}"
    if is_open_files_error(reason):
        return f"a data worker could not send a batch ({reason}); raise the limit (ulimit -n), or {LESS_MEMORY}"
    return f"a data worker failed: {reason}; dataset.params.num_workers=0 shows the traceback"


def _prepare(reports: Connection, worker: int) -> None:
    """Prepare a worker: ignore stop signals, and exit with a report if a batch cannot be sent."""
    global _reports
    _reports = reports
    ignore_stop_signals(worker)
    Queue._on_queue_feeder_error = staticmethod(_feeder_failed)  # type: ignore[attr-defined]


_reports: Connection | None = None


def fail(error: BaseException) -> NoReturn:
    """Report the error and exit in a worker; raise it in the main process."""
    if _reports is None:
        raise error
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" ({Path(frame.filename).name}:{frame.lineno})" for frame in place)
    text = " ".join(str(error).split())[:500]
    try:
        _reports.send(f"{type(error).__name__}{f': {text}' if text else ''}{where}")
    finally:
        os._exit(FAILED)


def _feeder_failed(error: BaseException, batch: object) -> None:
    fail(error)

"""Receive batches from the processes of a ``DataLoader``, and say in one sentence why one of them ended.

Torch raises the death of a worker wherever the main process happens to be, as one of several exceptions, and drops a
batch that a worker's thread cannot hand over, so that the main process waits for ever. Here a worker that fails reports
the reason and ends, and its death is raised while a batch is waited for, and only then.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import Pipe, active_children
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from torch.utils.data import DataLoader

from training.failure.preemption import leave_signals_to_the_run

SHARED_MEMORY = Path("/dev/shm")
PREFETCH = 2
"""Batches that torch lets each worker prepare."""
FAILED = 70
"""Exit code of a worker that has said why (``EX_SOFTWARE``)."""
DEATH_S = 3.0
"""Seconds that a worker whose connection broke may take to end."""
FEWER = "lower dataset.params.num_workers or training.batch_size_pre and batch_size_mmu"
BROKEN = (RuntimeError, OSError, EOFError, AssertionError, pickle.UnpicklingError)
"""What torch and multiprocessing raise in the main process when a worker is gone."""
SHARED_MEMORY_WORDS = ("shm", "shared memory", "/torch_", "No space left")


class LostWorker(RuntimeError):
    """A data worker ended before its time; the message is the likely cause with the remedy."""


def received(loader: DataLoader[Any]) -> Iterator[Any]:
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
                with _death_is_raised(workers):
                    batch = next(iterator)
            except StopIteration:
                return
            except BROKEN as error:
                cause = _cause(workers, reports)
                if cause is None:
                    raise
                raise LostWorker(cause) from error
            yield batch
    except LostWorker:
        for worker in workers:  # one that waits for a lock of the dead one would keep the run from ending
            worker.kill()
        for worker in workers:
            worker.join(DEATH_S)
        raise
    finally:
        reports.close()


def shared_memory_note(in_flight: int, processes: int) -> str | None:
    """Return a warning if batches of ``in_flight`` bytes, in each process of this machine, do not fit ``/dev/shm``."""
    need = in_flight * processes
    if need == 0 or not SHARED_MEMORY.is_dir() or shutil.disk_usage(SHARED_MEMORY).free >= need:
        return None
    return f"warning: data workers keep up to {need / 1e6:.0f} MB of batches in shared memory; {_too_small()}"


def _start(loader: DataLoader[Any], workers: list[BaseProcess]) -> Iterator[Any]:
    """Start the processes and note them in ``workers``. Torch's handler of SIGCHLD, which raises anywhere, goes."""
    before, handler = set(active_children()), signal.getsignal(signal.SIGCHLD)
    try:
        iterator = iter(loader)
    except OSError as error:
        shared = f"; {_too_small()}" if _is_of_shared_memory(str(error)) else ""
        raise LostWorker(f"data workers cannot be started ({error}){shared or f'; {FEWER}'}") from error
    finally:
        workers += [child for child in active_children() if child not in before]
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler)
    return iterator


@contextmanager
def _death_is_raised(workers: Sequence[BaseProcess]) -> Iterator[None]:
    """Raise ``RuntimeError`` as soon as a worker is dead, also out of a read that would never end."""

    def look(number: int | None = None, frame: FrameType | None = None) -> None:
        if not all(worker.is_alive() for worker in workers):
            raise RuntimeError("a data worker is dead")

    look()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGCHLD, look)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def _cause(workers: Sequence[BaseProcess], reports: Connection) -> str | None:
    """Return why a worker ended; None if all of them live."""
    end = time.monotonic() + DEATH_S
    while all(worker.is_alive() for worker in workers):
        if time.monotonic() > end:
            return None
        time.sleep(0.05)
    try:
        if reports.poll():
            return _of_report(str(reports.recv()))
    except (EOFError, OSError):  # nobody is left who could write
        pass
    code = next(worker.exitcode for worker in workers if worker.exitcode is not None)
    if code == -signal.SIGKILL:
        return f"a data worker was killed, which the system does when memory runs out; {FEWER}"
    if code == -signal.SIGBUS:
        return f"a data worker was killed by SIGBUS, which means that shared memory is full; {_too_small()}"
    if code < 0:
        return (
            f"a data worker was killed by {signal.Signals(-code).name}; if nobody did that, "
            "dataset.params.num_workers=0 shows where it happens"
        )
    return f"a data worker ended with exit code {code}; dataset.params.num_workers=0 shows where it happens"


def _of_report(reason: str) -> str:
    if _is_of_shared_memory(reason):
        return f"a data worker could not hand over a batch ({reason}); {_too_small()}"
    if "Too many open files" in reason:
        return f"a data worker could not hand over a batch ({reason}); raise the limit (ulimit -n), or {FEWER}"
    return f"a data worker failed: {reason}; dataset.params.num_workers=0 shows the traceback"


def _is_of_shared_memory(reason: str) -> bool:
    return any(word in reason for word in SHARED_MEMORY_WORDS)


def _too_small() -> str:
    there = ""
    if SHARED_MEMORY.is_dir():
        usage = shutil.disk_usage(SHARED_MEMORY)
        there = f" has {usage.total / 1e6:.3g} MB, {usage.free / 1e6:.3g} MB of them free"
    return (
        f"{SHARED_MEMORY}{there}: give it more (docker run --shm-size=1g, or mount -o remount,size=1g "
        f"{SHARED_MEMORY}), or {FEWER} (dataset.params.num_workers=0 needs none)"
    )


def _prepare(reports: Connection, worker: int) -> None:
    """In a worker: leave signals to the run, and end with a report where a batch cannot be handed over."""
    global _reports
    _reports = reports
    leave_signals_to_the_run(worker)
    Queue._on_queue_feeder_error = staticmethod(_feeder_failed)  # type: ignore[attr-defined]


_reports: Connection | None = None


def fail(error: BaseException) -> NoReturn:
    """In a worker: report the error and end. In the main process: raise it."""
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

"""Run a function in processes that end with the process that started them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_processes(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterator[Result]:
    """Yield ``function`` of every job, in order; computed in up to ``workers`` processes, or in this one.

    ``function`` is a module-level one, which a fresh interpreter finds by name. Its errors are raised here.
    """
    if workers <= 1 or len(jobs) <= 1:
        yield from map(function, jobs)
        return
    pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn"), initializer=follow_parent)
    try:
        yield from pool.map(function, jobs)
    except BrokenProcessPool:
        raise ValueError("a worker process was killed, perhaps out of memory; try again with --workers 1") from None
    finally:
        pool.shutdown(cancel_futures=True)


def follow_parent() -> None:
    """Ignore interrupts, which the parent handles, and end with the parent even if that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)

"""Work spread over processes that end with the one that started them."""

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
    """``function`` of every job, in the order of the jobs; in up to ``workers`` processes, or here for one.

    ``function`` is a module's own (it is found by name in a fresh interpreter). What it raises is raised here.
    """
    if workers <= 1 or len(jobs) <= 1:
        yield from map(function, jobs)
        return
    pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn"), initializer=serve_the_parent)
    try:
        yield from pool.map(function, jobs)
    except BrokenProcessPool:
        raise ValueError(
            "a worker process was killed, perhaps for want of memory; try again with --workers 1"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def serve_the_parent() -> None:
    """Leave interrupts to the parent, and end with it: without this, workers outlive a parent that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)

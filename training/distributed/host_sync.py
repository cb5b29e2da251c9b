"""Communication between the processes of a run on the host: whether to stop, which error occurred, files on rank 0.

It uses a gloo group of its own, so that a result is available without waiting for the device. All calls are collective:
every rank makes them in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator

T = TypeVar("T")
HEARTBEAT_S = 20.0
"""Seconds between two messages of ranks that wait for long work."""


class HostComm:
    """Collectives over the processes of a run. With one process they return at once."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.world = accelerator.num_processes
        self.is_main = accelerator.is_main_process
        self._group: dist.ProcessGroup | None = None
        if self.world > 1 and dist.get_backend() != "gloo":
            self._group = dist.new_group(backend="gloo")

    def all_max(self, value: float) -> float:
        """Return the largest of all ranks' values."""
        if self.world == 1:
            return value
        largest = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self._group)
        return float(largest)

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.all_max(0)

    def all_gather(self, value: T) -> list[T]:
        """Return every rank's value, in the order of ranks."""
        if self.world == 1:
            return [value]
        values: list[T | None] = [None] * self.world
        dist.all_gather_object(values, value, group=self._group)
        return values  # type: ignore[return-value]  # every entry was filled

    def run_on_main(self, work: Callable[[], object]) -> None:
        """Run long work on the main rank while the others wait, and raise its error there.

        Process groups end a collective that waits for minutes. So the ranks exchange a message every ``HEARTBEAT_S``.
        """
        with ThreadPoolExecutor(max_workers=1) as pool:
            started = pool.submit(work) if self.is_main else None

            def is_finished() -> bool:
                assert started is not None
                return bool(wait([started], timeout=HEARTBEAT_S).done)

            while not self.broadcast_from_main(is_finished):
                pass
        if started is not None:
            started.result()

    def broadcast_from_main(self, function: Callable[[], T]) -> T:
        """Call ``function`` on the main rank and return its result on all; a ValueError or OSError is raised on all."""
        if self.world == 1:
            return function()
        outcome: list[tuple[T | None, Exception | None]] = [(None, None)]
        if self.is_main:
            try:
                outcome = [(function(), None)]
            except (ValueError, OSError) as failed:
                outcome = [(None, failed)]
        dist.broadcast_object_list(outcome, src=0, group=self._group)
        value, error = outcome[0]
        if error is not None:
            raise error
        return value  # type: ignore[return-value]

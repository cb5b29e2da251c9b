"""What the processes of a run tell each other on the host: whether to stop, what went wrong, what the first one found.

Apart from the gradients' exchange on purpose: an answer is there at once, without waiting for the device. Every call
is collective: all ranks make it, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator

T = TypeVar("T")

LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "Connection refused",
)
"""How gloo says that another process is gone."""


class HostComm:
    """The processes of a run. With one process every call is answered on the spot."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.world = accelerator.num_processes
        self.is_main = accelerator.is_main_process
        self._group: dist.ProcessGroup | None = None
        if self.world > 1 and dist.get_backend() != "gloo":
            self._group = dist.new_group(backend="gloo")

    def most(self, value: float) -> float:
        """The largest of all ranks' values."""
        if self.world == 1:
            return value
        told = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(told, dist.ReduceOp.MAX, group=self._group)
        return float(told)

    def all(self, value: T) -> list[T]:
        """Every rank's value, in the order of ranks."""
        if self.world == 1:
            return [value]
        told: list[T | None] = [None] * self.world
        dist.all_gather_object(told, value, group=self._group)
        return told  # type: ignore[return-value]  # every place was filled

    def from_main(self, find: Callable[[], T]) -> T:
        """What ``find`` gives on the main rank, for all; if it raises there, it raises everywhere."""
        if self.world == 1:
            return find()
        found: list[tuple[T | None, Exception | None]] = [(None, None)]
        if self.is_main:
            try:
                found = [(find(), None)]
            except (ValueError, OSError) as failed:
                found = [(None, failed)]
        dist.broadcast_object_list(found, src=0, group=self._group)
        value, error = found[0]
        if error is not None:
            raise error
        return value  # type: ignore[return-value]


def is_lost_process(error: RuntimeError) -> bool:
    """Does this say that another process of the run is gone?"""
    return isinstance(error, dist.DistError) or any(words in str(error) for words in LOST)

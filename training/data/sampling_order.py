"""The order of samples: streams, their division over processes, and the position of a run in them.

This module does not depend on the content of samples and has no state: batches are functions of a position.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler

from config.schema import LoaderMode

ORDER_VERSION = 2
"""Version of the function from seed to order. 1: the robot flow was shuffled by ``seed + epoch``, so that epoch 1 of
seed 0 was epoch 0 of seed 1. 2: every flow has a hashed seed (``flow_seed``)."""


def permutation(length: int, seed: int, epoch: int) -> torch.Tensor:
    """Return the order of one pass, int64 [length], as torch's DistributedSampler with ``set_epoch(epoch)``.

    Neighbouring seeds share orders, so ``seed`` must come from ``flow_seed``.
    """
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed + epoch))


def flow_seed(seed: int, flow: str) -> int:
    """Return a different seed for each flow and run seed.

    Two data sets of one length have different orders, and no epoch of a run is an epoch of a run with another seed.
    """
    return int.from_bytes(hashlib.blake2b(f"{seed} {flow}".encode(), digest_size=7).digest(), "little")


Order = Callable[[int, int], torch.Tensor]
"""(seed, pass) -> int64 [length]: the samples of that pass in order."""


class StepSampler(Sampler[list[int]]):
    """Endless batches of indices, beginning ``start`` samples into the stream of all processes.

    ``length``: samples of a pass; ``batch_size``: samples per batch and process; ``order``: order of a pass, by
    default a permutation of all samples.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        order: Order | None = None,
    ) -> None:
        if length < 1 or batch_size < 1 or start < 0 or not 0 <= rank < world:
            raise ValueError(f"no batches of {batch_size} from {length} samples for process {rank} of {world}")
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.start, self.rank, self.world = start, rank, world
        self._new_order = order or (lambda seed, epoch: permutation(length, seed, epoch))
        self._orders: dict[int, torch.Tensor] = {}

    def batch(self, number: int) -> list[int]:
        """Return this process's batch ``number``, counted from ``start``."""
        first = self.start + number * self.batch_size * self.world + self.rank
        places = (first + self.world * row for row in range(self.batch_size))
        return [int(self._order(place // self.length)[place % self.length]) for place in places]

    def _order(self, epoch: int) -> torch.Tensor:
        if epoch not in self._orders:
            if len(self._orders) > 1:
                self._orders.clear()
            self._orders[epoch] = self._new_order(self.seed, epoch)
        return self._orders[epoch]

    def __iter__(self) -> Iterator[list[int]]:
        return map(self.batch, itertools.count())


@dataclass(frozen=True)
class Timetable:
    """The batches of both flows in each micro-step. ``robot``, ``text``: steps of a pass, None without that flow.

    ``first``: remaining steps of each flow in the first epoch (default: all).
    """

    mode: LoaderMode
    robot: int | None
    text: int | None
    first: tuple[int, int] | None = None

    @property
    def epoch_steps(self) -> int:
        """Micro-steps of an epoch."""
        present = [steps for steps in (self.robot, self.text) if steps is not None]
        if self.mode == "sequential":
            return sum(present)
        return min(present) if self.mode == "min_size" else max(present)

    @property
    def _alternates(self) -> bool:
        return self.robot is not None and self.text is not None and self.mode in ("max_size", "sequential")

    def before(self, step: int) -> tuple[int, int]:
        """Return the number of batches of each flow before micro-step ``step``."""
        return self._split(step)[0]

    def in_epoch(self, step: int) -> tuple[bool, tuple[int, int]]:
        """Return True if ``step`` is in the first epoch, and the batches of each flow before it in its epoch."""
        _, first, place = self._split(step)
        return first, place

    def _split(self, step: int) -> tuple[tuple[int, int], bool, tuple[int, int]]:
        if not self._alternates:
            both = (0 if self.robot is None else step), (0 if self.text is None else step)
            return both, True, both
        assert self.robot is not None
        assert self.text is not None
        whole, first = (self.robot, self.text), self.first or (self.robot, self.text)
        lead = sum(first) if self.mode == "sequential" else max(first)
        if step < lead:
            place = self._within(step, first)
            return place, True, place
        epoch, rest = divmod(step - lead, self.epoch_steps)
        place = self._within(rest, whole)
        given = tuple(f + epoch * w + p for f, w, p in zip(first, whole, place, strict=True))
        return (given[0], given[1]), False, place

    def _within(self, place: int, steps: tuple[int, int]) -> tuple[int, int]:
        """Return the batches of each flow before micro-step ``place`` of an epoch with so many steps of each flow."""
        text_place = place - steps[0] if self.mode == "sequential" else place
        return min(place, steps[0]), min(max(text_place, 0), steps[1])

    def at(self, step: int) -> tuple[int | None, int | None]:
        """Return the batch numbers of robot and mmu flow at micro-step ``step``; None for a flow that pauses."""
        (robot, text), (robot_after, text_after) = self.before(step), self.before(step + 1)
        return robot if robot_after > robot else None, text if text_after > text else None


@dataclass(frozen=True)
class FlowProgress:
    """Samples of one flow that all processes have read: in total, and in the current epoch (only counted in modes in
    which flows alternate)."""

    samples: int = 0
    in_epoch: int = 0


@dataclass(frozen=True)
class Position:
    """Position of a run in its data. It does not depend on batch sizes and processes, so these may change."""

    robot: FlowProgress = FlowProgress()
    text: FlowProgress = FlowProgress()


START = Position()

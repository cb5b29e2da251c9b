"""How large a block is: fixed, drawn for each sample, or growing with training.

The block size only changes the ``start`` tags of a layout, never the code that runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from config.schema import BlockDiffusion


class BlockSizes(Protocol):
    """A schedule of block sizes. ``final``: the size that held-out data are measured and answers decoded with."""

    @property
    def final(self) -> int: ...

    def size(self, step: int, draw: torch.Generator) -> int:
        """Tokens per block of one sample in this optimizer step; ``draw`` is the sample's own generator."""
        ...


@dataclass(frozen=True)
class Fixed:
    """The same size always."""

    final: int

    def size(self, step: int, draw: torch.Generator) -> int:
        return self.final


@dataclass(frozen=True)
class Elastic:
    """Drawn for each sample, every candidate alike (one model then decodes with any of them)."""

    candidates: tuple[int, ...]
    final: int

    def size(self, step: int, draw: torch.Generator) -> int:
        return self.candidates[int(torch.randint(len(self.candidates), (), generator=draw))]


@dataclass(frozen=True)
class Annealed:
    """From small to large in ``steps`` optimizer steps, each size for as long as the others; then ``final``.

    An AR-initialised backbone is at home with blocks of one token and learns larger ones on the way.
    """

    sizes: tuple[int, ...]
    steps: int
    final: int

    @classmethod
    def towards(cls, final: int, candidates: Sequence[int], steps: int) -> Annealed:
        return cls(tuple(sorted(size for size in set(candidates) if size < final)), steps, final)

    def size(self, step: int, draw: torch.Generator) -> int:
        if step >= self.steps or not self.sizes:
            return self.final
        return self.sizes[step * len(self.sizes) // self.steps]


def block_sizes(settings: BlockDiffusion) -> BlockSizes:
    """The schedule that ``block_diffusion.*`` describes."""
    if settings.elastic_block_enabled:
        return Elastic(tuple(settings.block_size_candidates), settings.block_size)
    if settings.anneal_steps:
        return Annealed.towards(settings.block_size, settings.block_size_candidates, settings.anneal_steps)
    return Fixed(settings.block_size)

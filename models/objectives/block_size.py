"""How large a block is: fixed, drawn for each sample, or growing with training.

The block size only changes the tags ``block_start`` of a layout, not the code that runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from config.schema import BlockDiffusion


class BlockSizes(Protocol):
    """A schedule of block sizes. ``final``: the size for validation and decoding."""

    @property
    def final(self) -> int: ...

    def size(self, step: int, draw: torch.Generator) -> int:
        """Return the tokens per block of one sample in this optimizer step; ``draw`` is the sample's own generator."""
        ...


@dataclass(frozen=True)
class Fixed:
    """One size."""

    final: int

    def size(self, step: int, draw: torch.Generator) -> int:
        return self.final


@dataclass(frozen=True)
class Elastic:
    """A size drawn for each sample, uniformly from the candidates (the model can then decode with any of them)."""

    candidates: tuple[int, ...]
    final: int

    def size(self, step: int, draw: torch.Generator) -> int:
        return self.candidates[int(torch.randint(len(self.candidates), (), generator=draw))]


@dataclass(frozen=True)
class Annealed:
    """Sizes that grow during ``steps`` optimizer steps, each for the same number of steps; then ``final``.

    A backbone that was trained autoregressively is used to blocks of one token.
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
    """Return the schedule that ``block_diffusion.*`` describes."""
    if settings.elastic_block_enabled:
        return Elastic(tuple(settings.block_size_candidates), settings.block_size)
    if settings.anneal_steps:
        return Annealed.towards(settings.block_size, settings.block_size_candidates, settings.anneal_steps)
    return Fixed(settings.block_size)

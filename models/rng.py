"""Stateless random numbers: a generator depends only on (seed, purpose, step, sample).

(seed, "text", step, sample) gives the masks of one conversation in one step. They are the same for every world size,
micro-batch and number of data workers, and after resuming. Dropout, which uses the global generator, does not affect
them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch


def generator(seed: int, *key: int | str) -> torch.Generator:
    """Return a new random number generator for (seed, key), on the CPU."""
    digest = hashlib.blake2b(repr((seed, *key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@dataclass(frozen=True)
class SampleRng:
    """Source of a diffusion objective's masks, mask ratios and block sizes.

    ``step``: the optimizer step, also for annealed block sizes. ``flow``: the purpose; sample 3 of the conversations
    and sample 3 of the demonstrations get independent numbers.
    """

    seed: int = 0
    step: int = 0
    flow: str = "text"

    def of(self, sample: int) -> torch.Generator:
        """Return the generator of one sample (its index in the data set) in this step."""
        return generator(self.seed, self.flow, self.step, sample)

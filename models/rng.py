"""Random numbers that depend on what they are for, never on what was drawn before or where.

A generator of its own is made for every purpose: (seed, "text", step, sample) gives the masks of one conversation in
one step. The same masks come out whatever the world size, the micro-batch or the number of data workers, and after a
resume; dropout, which reads the global generator, has no part in it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch


def generator(seed: int, *key: int | str) -> torch.Generator:
    """A random number generator of its own for (seed, key), on the CPU."""
    digest = hashlib.blake2b(repr((seed, *key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@dataclass(frozen=True)
class SampleRng:
    """Where a diffusion objective's masks, mask ratios and block sizes come from.

    ``step``: the optimizer step, which annealed block sizes read too. ``flow``: what is drawn for; sample 3 of the
    conversations and sample 3 of the demonstrations have nothing to do with each other.
    """

    seed: int = 0
    step: int = 0
    flow: str = "text"

    def of(self, sample: int) -> torch.Generator:
        """The draws of one sample (its index in the data set) in this step."""
        return generator(self.seed, self.flow, self.step, sample)

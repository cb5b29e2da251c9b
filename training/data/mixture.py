"""Several sources of conversations as one data set, each with a share of every epoch.

With N the usable records of all sources, an epoch is N conversations, of which a source with share w (its weight over
the sum of all weights) gives N w, rounded so that the sum is N (largest remainder). In each epoch the places of the
sources are shuffled anew; a source gives its records pass by pass, each pass in a new order, and goes on in the next
epoch where the last one ended: no record of a source comes twice before all of it came once. A small source with a
large weight comes many times in an epoch, a large one with a small weight takes several epochs.

Without weights a source's share is its size, and an epoch is every record once.

Everything follows from (seed, epoch): nothing is stored, and no global random number generator is touched. Shape
letters: N conversations of an epoch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch.utils.data import Dataset

from training.data.batch import TextSample
from training.data.llava import LlavaDataset
from training.data.sampling_order import flow_seed, permutation


def quotas(total: int, weights: Sequence[float]) -> list[int]:
    """``total`` places dealt out by weight: each its share rounded down, what is left to the largest remainders."""
    exact = [total * weight / sum(weights) for weight in weights]
    dealt = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: (dealt[i] - exact[i], i))
    for i in by_remainder[: total - sum(dealt)]:
        dealt[i] += 1
    return dealt


class Mixture(Dataset[TextSample]):
    """The sources end to end (index = records of the sources before + index in the source), walked by ``order``.

    ``weights``: one for each source, above 0; empty: their sizes. Raises ``ValueError`` for a weight so small that the
    source never comes.
    """

    def __init__(self, sources: Sequence[LlavaDataset], weights: Sequence[float] = ()) -> None:
        self.sources = list(sources)
        sizes = [len(source) for source in self.sources]
        self._ends = list(accumulate(sizes))
        self.weights = list(weights) or [float(size) for size in sizes]
        if len(self.weights) != len(sizes) or min(self.weights) <= 0:
            raise ValueError(f"{len(sizes)} sources need as many weights above 0, not {self.weights}")
        self.quotas = quotas(len(self), self.weights)
        for source, weight, quota in zip(self.sources, self.weights, self.quotas, strict=True):
            if quota == 0:
                raise ValueError(
                    f"dataset.params.train_mmu_weights: with {weight:g} of {sum(self.weights):g} not one of the "
                    f"{len(self)} conversations of an epoch is of {source.path}; raise it, or leave the source out"
                )

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> TextSample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = bisect_right(self._ends, index)
        first = self._ends[number] - len(self.sources[number])
        sample = self.sources[number][index - first]
        left_out = tuple((first + place, why) for place, why in sample.left_out)
        return replace(sample, index=first + sample.index, left_out=left_out)

    def order(self, seed: int, epoch: int) -> torch.Tensor:
        """int64 [N]: the index of each conversation of an epoch, in the order in which they come."""
        places = permutation(len(self), flow_seed(seed, "mixture"), epoch)
        found = torch.empty_like(places)
        first_place = 0
        for number, (source, quota) in enumerate(zip(self.sources, self.quotas, strict=True)):
            mine = ((places >= first_place) & (places < first_place + quota)).nonzero()[:, 0]
            own_seed = flow_seed(seed, f"source {number}")
            found[mine] = self._ends[number] - len(source) + _stream(len(source), own_seed, epoch * quota, quota)
            first_place += quota
        return found

    def summary(self) -> list[str]:
        """What each source has, and its share of an epoch."""
        lines = [f"{len(self.sources)} sources, an epoch is {len(self)} conversations"]
        for source, quota in zip(self.sources, self.quotas, strict=True):
            head, *rest = source.summary()
            share = f"{quota} of an epoch ({100 * quota / len(self):.1f} %, {quota / len(source):.2f} passes)"
            lines += [f"{share} from {head}", *rest]
        return lines


def _stream(length: int, seed: int, start: int, count: int) -> torch.Tensor:
    """int64 [count]: part of an endless walk over ``length`` records, pass by pass, each in an order of its own."""
    first, last = start // length, (start + count - 1) // length
    passes = torch.cat([permutation(length, seed, number) for number in range(first, last + 1)])
    return passes[start - first * length :][:count]

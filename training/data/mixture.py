"""Several sources of conversations as one data set, mixed by weight.

With N the usable records of all sources, an epoch is N conversations, of which a source with fraction w (its weight
over the sum of all weights) gives N w, rounded so that the sum is N (largest remainder). Each epoch shuffles the slots
of the sources. A source gives its records pass by pass, each pass in a new order, and continues in the next epoch
where the last one ended: no record of a source repeats before all of it was used. A small source with a large weight
repeats within an epoch; a large one with a small weight takes several epochs.

Without weights a source's fraction is its size, and an epoch is every record once.

Everything is a function of (seed, epoch): there is no state, and no global random number generator is used. Shape
letters: N conversations of an epoch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import torch
from torch.utils.data import Dataset

from training.data.batch import TextSample
from training.data.llava import LlavaDataset
from training.data.sampling_order import flow_seed, permutation


def quotas(total: int, weights: Sequence[float]) -> list[int]:
    """Divide ``total`` by weight: fractions are rounded down, the rest goes to the largest remainders."""
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [int(fraction) for fraction in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


class Mixture(Dataset[TextSample]):
    """The concatenated sources (index = records of earlier sources + index in the source), ordered by ``order``.

    ``weights``: one for each source, above 0; empty: their sizes. Raises ValueError for a weight so small that the
    source is never used.
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

    def image_and_answers(self, index: int) -> tuple[Path, dict[str, str]]:
        """Return the image file of a record that has one, and question -> answer of its source's records about it."""
        source, first = self._source_of(index)
        return source.image_and_answers(index - first)

    def _source_of(self, index: int) -> tuple[LlavaDataset, int]:
        """Return the source of a record, and the index of the source's first record."""
        number = bisect_right(self._ends, index)
        return self.sources[number], self._ends[number] - len(self.sources[number])

    def __getitem__(self, index: int) -> TextSample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        source, first = self._source_of(index)
        sample = source[index - first]
        left_out = tuple((first + place, reason) for place, reason in sample.left_out)
        return replace(sample, index=first + sample.index, left_out=left_out)

    def order(self, seed: int, epoch: int) -> torch.Tensor:
        """Return the indices of an epoch's conversations in order, int64 [N]."""
        places = permutation(len(self), flow_seed(seed, "mixture"), epoch)
        found = torch.empty_like(places)
        first_place = 0
        for number, (source, quota) in enumerate(zip(self.sources, self.quotas, strict=True)):
            own = ((places >= first_place) & (places < first_place + quota)).nonzero()[:, 0]
            own_seed = flow_seed(seed, f"source {number}")
            found[own] = self._ends[number] - len(source) + _stream(len(source), own_seed, epoch * quota, quota)
            first_place += quota
        return found

    def summary(self) -> list[str]:
        """Return lines for the log: the content of each source, and its part of an epoch."""
        lines = [f"{len(self.sources)} sources, an epoch is {len(self)} conversations"]
        for source, quota in zip(self.sources, self.quotas, strict=True):
            head, *rest = source.summary()
            share = f"{quota} of an epoch ({100 * quota / len(self):.1f} %, {quota / len(source):.2f} passes)"
            lines += [f"{share} from {head}", *rest]
        return lines


def _stream(length: int, seed: int, start: int, count: int) -> torch.Tensor:
    """Return ``count`` entries of an endless stream of passes over ``length`` records, each shuffled anew."""
    first, last = start // length, (start + count - 1) // length
    passes = torch.cat([permutation(length, seed, number) for number in range(first, last + 1)])
    return passes[start - first * length :][:count]

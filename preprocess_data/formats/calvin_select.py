"""Select the raw splits, and their annotated windows, that are processed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.data.calvin import Annotation, is_split, splits_in


def source_splits(source: Path, split: str | None) -> list[tuple[str, Path]]:
    """Return (name, path) of the splits at ``source``: itself, or training and validation below it.

    ``source`` is a folder or a zip: a split, or the parent of ``training`` and ``validation``, at its top or one folder
    below (task_D_D.zip, calvin_debug_dataset). ``split`` selects one by name.
    Raises ValueError or FileNotFoundError naming what is there.
    """
    if not source.exists() and not is_split(source):
        raise FileNotFoundError(f"{source} does not exist; give a CALVIN split, the folder above it, or its zip")
    if is_split(source):
        if split is not None and source.name != split:
            raise ValueError(f"--split {split}: {source} is a split itself; leave --split out")
        return [("", source)]
    below = {path.rpartition("/")[2]: source / path for path in splits_in(source)}
    if not below:
        raise ValueError(f"{source} holds no episode_*.npz, and no training or validation folder that could")
    if split is None:
        return list(below.items())
    if split not in below:
        raise ValueError(f"--split {split}: {source} holds {' and '.join(map(str, below.values()))}")
    return [("", below[split])]


@dataclass(frozen=True)
class Choice:
    """Criteria for annotations; None or an empty tuple does not restrict.

    ``numbers``: counted from 0, in this order; ``phrases``: one must be in the instruction, in any case; ``fraction``
    of the remaining ones and ``count`` at most are drawn with ``seed``.
    """

    numbers: tuple[int, ...] | None = None
    tasks: tuple[str, ...] = ()
    phrases: tuple[str, ...] = ()
    fraction: float | None = None
    count: int | None = None
    seed: int = 0

    def of(self, annotations: Sequence[Annotation]) -> list[Annotation]:
        """Return the chosen annotations in the order of the split (numbers: in their own order).

        Raises ValueError naming the option that selects nothing or something that does not exist.
        """
        chosen = list(annotations) if self.numbers is None else [self._numbered(n, annotations) for n in self.numbers]
        if self.tasks:
            known = {window.task for window in annotations}
            for task in self.tasks:
                if task not in known:
                    names = ", ".join(sorted(str(name) for name in known))
                    raise ValueError(f"--tasks {task}: the split's tasks are {names}")
            chosen = [window for window in chosen if window.task in self.tasks]
        if self.phrases:
            phrases = [phrase.casefold() for phrase in self.phrases]
            chosen = [w for w in chosen if any(phrase in w.instruction.casefold() for phrase in phrases)]
        count = len(chosen)
        if self.fraction is not None:
            if not 0 < self.fraction <= 1:
                raise ValueError(f"--fraction must be over 0 and at most 1, is {self.fraction}")
            count = max(round(count * self.fraction), 1)
        if self.count is not None:
            if self.count < 1:
                raise ValueError(f"--count must be at least 1, is {self.count}")
            count = min(count, self.count)
        if not chosen:
            raise ValueError(
                f"none of the split's {len(annotations)} annotations was chosen; see --tasks, --instruction"
            )
        if count < len(chosen):
            drawn = np.random.default_rng(self.seed).permutation(len(chosen))[:count]
            chosen = [chosen[index] for index in sorted(drawn)]
        return chosen

    @staticmethod
    def _numbered(number: int, annotations: Sequence[Annotation]) -> Annotation:
        if not 0 <= number < len(annotations):
            raise ValueError(f"--annotations {number}: the split has annotations 0 to {len(annotations) - 1}")
        return annotations[number]

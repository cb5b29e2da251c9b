"""Stop an evaluation when an anytime-valid test knows which of two policies is better (``compare_with``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.statistics import SequentialTest
from policy_rollout.closed_loop import records
from policy_rollout.closed_loop.interface import ChainRecord
from policy_rollout.reports.results import benchmark_settings


class EarlyStop:
    """The test of this evaluation against the records in folder ``other``, which may still grow.

    Chains count in the order of their index, up to the first that one of the two has not finished: the order in which
    chains finish depends on their outcomes.

    Args:
        other: Folder of the other evaluation.
        settings: Settings of this one's records; those of the benchmark have to agree.
        length: Tasks per chain.
        margin: Stop too if the difference in tasks per chain is certainly smaller; None: only for a difference.
    """

    def __init__(self, other: Path, settings: Mapping[str, Any], length: int, margin: float | None = None) -> None:
        mine, theirs = benchmark_settings(settings), benchmark_settings(records.settings_of(other))
        for name in sorted({*mine, *theirs}):
            if mine.get(name) != theirs.get(name):
                raise ValueError(
                    f"compare_with={other}: {name} is {theirs.get(name)} there and {mine.get(name)} here; only "
                    "evaluations of the same benchmark can be compared"
                )
        self._other = other
        self._test = SequentialTest(length, margin=margin)

    def is_decided(self, mine: Mapping[int, ChainRecord]) -> bool:
        """Add the chains that both have finished, and return whether the question is decided.

        Raises ``ValueError`` for a chain with other tasks.
        """
        theirs = records.read(self._other)
        while self._test.result.decided_at is None:
            index = self._test.result.items
            if index not in mine or index not in theirs:
                return False
            if mine[index].tasks != theirs[index].tasks:
                raise ValueError(f"compare_with={self._other}: chain {index} has other tasks there")
            self._test.add(mine[index].completed - theirs[index].completed)
        return True

    def as_json(self) -> dict[str, Any]:
        """Return the state of the test for ``results.json``."""
        return {"against": str(self._other), **asdict(self._test.result)}

    def verdict(self) -> str:
        """Return one line about the state of the test."""
        result = self._test.result
        bounds = f"{result.interval:+.2f} tasks per chain at any time"
        if result.sign:
            text = f"{'better' if result.sign > 0 else 'worse'} than {self._other}"
        elif result.equivalent:
            text = f"equivalent to {self._other}"
        else:
            return f"not distinguished from {self._other} after {result.items} chains ({bounds})"
        return f"{text}: known after {result.decided_at} chains ({bounds})"

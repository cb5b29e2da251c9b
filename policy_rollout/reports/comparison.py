"""Comparison of two or three closed-loop evaluations on the same chains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.files import expand_home
from common.statistics import (
    FEWEST_APART,
    LEVEL,
    Control,
    Interval,
    Pair,
    SequentialResult,
    SequentialTest,
    control_of,
    holm,
    pairs_of,
    rate_difference,
    rate_difference_p,
    with_holm,
)
from common.tables import probability
from policy_rollout.reports.results import Results, names_of, read_results, task_counts

OFFICIAL_CHAINS = 1000


@dataclass(frozen=True)
class Side:
    """One policy of a comparison: its evaluation, or those of several seeds."""

    name: str
    runs: tuple[Results, ...]


@dataclass(frozen=True)
class TaskRow:
    """(successes, attempts) of one task for each side, in the order of the sides.

    ``adjusted``: p-value of each pair of sides, corrected by Holm's method for all tasks and pairs of the table.
    """

    task: str
    counts: tuple[tuple[int, int], ...]
    adjusted: tuple[float, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """A comparison. ``lengths``: tasks per chain, each pair; ``rates``: chains with at least i tasks, index i - 1;
    ``notes``: differences and warnings for the reader; ``control``: differences between the runs of one side;
    ``margin``: difference in tasks per chain that does not matter, None: not given. P-values are corrected by Holm's
    method in each table: the lengths, the rates, the tasks."""

    sides: tuple[Side, ...]
    lengths: tuple[Pair, ...]
    rates: tuple[tuple[Pair, ...], ...]
    tasks: tuple[TaskRow, ...]
    notes: tuple[str, ...]
    control: Control | None = None
    margin: float | None = None

    @property
    def chains(self) -> int:
        return len(self.sides[0].runs[0].chains)


def compare(
    sides: Sequence[Side], anyway: bool = False, common: bool = False, margin: float | None = None
) -> Comparison:
    """Compare results. ``anyway``: allow different settings; ``common``: use the chains that all results have;
    ``margin``: difference in tasks per chain that does not matter.

    Raises ``ValueError`` in one line for other chains and for different settings.
    """
    if len(sides) < 2:
        raise ValueError("a comparison needs two or three results (seeds of one policy: name=a,b,c)")
    notes = _setting_differences(sides, anyway)
    if common:
        sides = _common(sides)
    _require_same_chains(sides)
    notes += _same_checkpoint(sides)
    notes += [note for run in _all(sides) if (note := run.cut_note()) is not None]
    completed = _completed(sides)
    length = sides[0].runs[0].length
    rates = [pairs_of({name: done >= count for name, done in completed.items()}) for count in range(1, length + 1)]
    of_rates = iter(with_holm([pair for of_count in rates for pair in of_count]))
    return Comparison(
        tuple(sides),
        tuple(with_holm(pairs_of(completed))),
        tuple(tuple(next(of_rates) for _ in of_count) for of_count in rates),
        _task_rows(sides),
        tuple(notes),
        control_of(completed),
        margin,
    )


def _completed(sides: Sequence[Side]) -> dict[str, NDArray[np.float64]]:
    """Return the tasks done in a row of each side [runs, chains]."""
    return {side.name: np.stack([run.completed() for run in side.runs]) for side in sides}


def _task_rows(sides: Sequence[Side]) -> tuple[TaskRow, ...]:
    counts = [task_counts(side.runs) for side in sides]
    tasks = sorted({task for of_side in counts for task in of_side})
    rows = [TaskRow(task, tuple(of_side.get(task, (0, 0)) for of_side in counts)) for task in tasks]
    pairs = list(combinations(range(len(sides)), 2))
    adjusted = iter(holm([rate_difference_p(row.counts[i], row.counts[j]) for row in rows for i, j in pairs]))
    return tuple(replace(row, adjusted=tuple(next(adjusted) for _ in pairs)) for row in rows)


def sequential_results(found: Comparison) -> list[SequentialResult]:
    """Return the anytime-valid test of every pair of sides in tasks per chain, chains in the order of their index.

    Several runs of a side are averaged: the test is about these runs. The error level is divided by the number of
    pairs.
    """
    completed = _completed(found.sides)
    confidence = 1 - LEVEL / len(found.lengths)
    results = []
    for pair in found.lengths:
        test = SequentialTest(found.sides[0].runs[0].length, confidence, found.margin)
        differences = completed[pair.first].mean(axis=0) - completed[pair.second].mean(axis=0)
        results.append(test.add_all(map(float, differences)))
    return results


# --- checks -------------------------------------------------------------------------------------------


def _all(sides: Sequence[Side]) -> list[Results]:
    return [run for side in sides for run in side.runs]


def _setting_differences(sides: Sequence[Side], anyway: bool) -> list[str]:
    """Return notes on different settings of the benchmark. Raises ``ValueError`` for one that is no version, unless
    ``anyway``."""
    first, *others = _all(sides)
    notes, refused = [], None
    for other in others:
        mine, theirs = first.benchmark_settings, other.benchmark_settings
        differing = [name for name in sorted({*mine, *theirs}) if mine.get(name) != theirs.get(name)]
        if not differing:
            continue
        values = ", ".join(f"{name} is {mine.get(name)} there and {theirs.get(name)} here" for name in differing)
        notes.append(f"{other.file} was not evaluated as {first.file}: {values}")
        if refused is None and not all(".versions." in name for name in differing):
            refused = notes[-1]
    if refused is not None and not anyway:
        raise ValueError(f"{refused}; this could cause a difference (--anyway compares them nevertheless)")
    return notes


def _common(sides: Sequence[Side]) -> list[Side]:
    shared = set.intersection(*[{chain.index for chain in run.chains} for run in _all(sides)])
    if not shared:
        raise ValueError("--common: no chain is in all results")
    return [
        Side(side.name, tuple(replace(r, chains=tuple(c for c in r.chains if c.index in shared)) for r in side.runs))
        for side in sides
    ]


def _require_same_chains(sides: Sequence[Side]) -> None:
    first, *others = _all(sides)
    mine = {chain.index: chain for chain in first.chains}
    for other in others:
        theirs = {chain.index: chain for chain in other.chains}
        if mine.keys() != theirs.keys():
            alone = sorted(mine.keys() ^ theirs.keys())
            raise ValueError(
                f"{other.file} has {len(theirs)} chains and {first.file} {len(mine)}; {len(alone)} of them are in one "
                f"only, the first is chain {alone[0]}; only the same chains can be compared (--common selects them)"
            )
        for index, chain in mine.items():
            if chain.tasks != theirs[index].tasks:
                raise ValueError(
                    f"chain {index} of {other.file} is {', '.join(theirs[index].tasks)}, in {first.file} it is "
                    f"{', '.join(chain.tasks)}; only the same chains can be compared"
                )


def _same_checkpoint(sides: Sequence[Side]) -> list[str]:
    """Return notes on sides with the same checkpoint, which is allowed (with other settings of the policy)."""
    notes = []
    for one, other in combinations(sides, 2):
        key = "checkpoint_sha256"
        shared = {r.settings.get(key) for r in one.runs} & {r.settings.get(key) for r in other.runs} - {None}
        if shared:
            notes.append(f"{one.name} and {other.name} are the same checkpoint ({min(map(str, shared))[:12]})")
    for side in sides:
        if len({run.file.resolve() for run in side.runs}) < len(side.runs):
            raise ValueError(f"{side.name} names one result twice; a run counts once")
    return notes


# --- text ------------------------------------------------------------------------------------------------------------


def verdict(pair: Pair, margin: float | None = None) -> str:
    """Return one line about the average length, from the point of view of the better side.

    ``margin``: difference in tasks per chain that does not matter.
    """
    apart, likely = pair.difference.interval, pair.difference.probability
    if pair.better is not None:
        other = pair.second
        if pair.better == pair.second:
            apart, likely, other = Interval(-apart.point, -apart.high, -apart.low), 1 - likely, pair.first
        likely_text = probability_text("better", likely)
        small = margin is not None and pair.equivalent(margin)
        less = f", which is inside the margin of {margin:g}" if small else ""
        return (
            f"{pair.better} is better than {other} by {apart:.2f} tasks per chain{less} "
            f"({pair.items} chains, {likely_text})"
        )
    if margin is not None and pair.equivalent(margin):
        return (
            f"{pair.first} and {pair.second} are equivalent: {apart:+.2f} tasks per chain lies inside the margin of "
            f"{margin:g} ({pair.items} chains)"
        )
    text = f"these chains cannot distinguish {pair.first} from {pair.second}: {apart:+.2f} tasks per chain "
    text += f"({pair.items} chains, {probability_text(f'{pair.first} better', likely)}"
    if pair.difference.clear and pair.apart < FEWEST_APART:
        return f"{text}; they differ on {pair.apart} of them only)"
    if pair.difference.clear:
        return f"{text}; p = {pair.adjusted:.3f} after Holm's correction)"
    needed = pair.needed()
    if needed is None:
        return f"{text})"
    enough = f"about {needed} would" if needed <= OFFICIAL_CHAINS else "even the official 1000 would not"
    return f"{text}; {enough} show a difference of this size)"


def sequential_verdict(pair: Pair, result: SequentialResult) -> str:
    """Return one line about the anytime-valid test of a pair."""
    bounds = f"{result.interval:+.2f} tasks per chain at any time"
    if result.sign:
        better, other = (pair.first, pair.second) if result.sign > 0 else (pair.second, pair.first)
        return f"{better} is better than {other}, known after {result.decided_at} of {pair.items} chains ({bounds})"
    if result.equivalent:
        return (
            f"{pair.first} and {pair.second} are equivalent, known after {result.decided_at} of {pair.items} chains "
            f"({bounds})"
        )
    return (
        f"{pair.first} against {pair.second}: open after {result.items} chains ({bounds}, e-value {result.e_value:.3g})"
    )


def probability_text(event: str, value: float) -> str:
    """Return a probability as text, such as `P(better) = 0.97`."""
    text = probability(value)
    return f"P({event}) {text}" if text[0] in "<>" else f"P({event}) = {text}"


def task_difference(row: TaskRow, first: int, second: int) -> Interval:
    """Return the difference of success rates, not paired: the sides have different numbers of attempts."""
    return rate_difference(row.counts[first], row.counts[second])


# --- command line arguments


def sides_of(given: Sequence[str]) -> list[Side]:
    """Parse the arguments ``path``, ``path,path`` or ``name=path,path``; default names are those of the folders."""
    names: list[str | None] = []
    runs: list[tuple[Results, ...]] = []
    for text in given:
        name, equals, paths = text.partition("=")
        if Path(text).exists() or not equals:
            name, paths = "", text
        files = [text] if Path(text).exists() else [path for path in paths.split(",") if path]
        if not files:
            raise ValueError(f"{text!r} names no result; give a results.json, its folder, or name=path,path")
        runs.append(tuple(read_results(expand_home(path)) for path in files))
        names.append(name or None)
    short = names_of([of_side[0].file for of_side in runs])
    full = [name or folder for name, folder in zip(names, short, strict=True)]
    for name in full:
        if full.count(name) > 1:
            raise ValueError(f"two of them have the name {name}; give names: one={given[0]} other={given[1]}")
    return [Side(name, of_side) for name, of_side in zip(full, runs, strict=True)]

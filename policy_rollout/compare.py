"""Compare two or three policies in closed loop, on the same chains.

python -m policy_rollout.compare rollout_outputs/ar rollout_outputs/bd
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from common.arguments import path_argument
from common.command import run_command
from common.files import expand_home, write_text
from common.statistics import Interval, Pair, pairs_of, rate_difference, wilson
from common.tables import interval_json, markdown_table, percent, points, probability
from policy_rollout.reports.results import Results, average_length, names_of, read_results, success_rates, task_counts

DESCRIPTION = """\
Compares closed-loop evaluations (results.json of calvin_evaluate_upvla, or its log_dir) chain by chain: the difference
in tasks per chain with a 95 % bootstrap interval, the probability that one is better, and every task. Results of other
chains are refused; results with other settings (environment, renderer, ep_len, ...) need --anyway."""
EPILOG = """\
examples:
  python -m policy_rollout.compare rollout_outputs/ar rollout_outputs/mdm rollout_outputs/bd
  three seeds of each, with names (runs and chains are resampled together):
    python -m policy_rollout.compare ar=ar_0,ar_1,ar_2 bd=bd_0,bd_1,bd_2
  the common chains, if one evaluation is longer:
    python -m policy_rollout.compare long short --common
  as JSON; as a Markdown file:
    python -m policy_rollout.compare ar bd --json
    python -m policy_rollout.compare ar bd --output results/ar_or_bd.md"""
OFFICIAL_CHAINS = 1000


@dataclass(frozen=True)
class Side:
    """One policy of a comparison: its evaluation, or those of several seeds."""

    name: str
    runs: tuple[Results, ...]


@dataclass(frozen=True)
class TaskRow:
    """(successes, attempts) of one task for each side, in the order of the sides."""

    task: str
    counts: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Comparison:
    """A comparison. ``lengths``: tasks per chain, each pair; ``rates``: chains with at least i tasks, index i - 1;
    ``notes``: differences and warnings for the reader."""

    sides: tuple[Side, ...]
    lengths: tuple[Pair, ...]
    rates: tuple[tuple[Pair, ...], ...]
    tasks: tuple[TaskRow, ...]
    notes: tuple[str, ...]

    @property
    def chains(self) -> int:
        return len(self.sides[0].runs[0].chains)


def compare(sides: Sequence[Side], anyway: bool = False, common: bool = False) -> Comparison:
    """Compare results. ``anyway``: allow different settings; ``common``: use the chains that all results have.

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
    completed = {side.name: np.stack([run.completed() for run in side.runs]) for side in sides}
    length = sides[0].runs[0].length
    rates = [pairs_of({name: done >= count for name, done in completed.items()}) for count in range(1, length + 1)]
    counts = [task_counts(side.runs) for side in sides]
    tasks = sorted({task for of_side in counts for task in of_side})
    return Comparison(
        tuple(sides),
        tuple(pairs_of(completed)),
        tuple(map(tuple, rates)),
        tuple(TaskRow(task, tuple(of_side.get(task, (0, 0)) for of_side in counts)) for task in tasks),
        tuple(notes),
    )


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


def verdict(pair: Pair) -> str:
    """Return one line about the average length, from the point of view of the better side."""
    apart, likely = pair.difference.interval, pair.difference.probability
    if pair.better is not None:
        other = pair.second
        if pair.better == pair.second:
            apart, likely, other = Interval(-apart.point, -apart.high, -apart.low), 1 - likely, pair.first
        likely_text = probability_text("better", likely)
        return (
            f"{pair.better} is better than {other} by {apart:.2f} tasks per chain ({pair.items} chains, {likely_text})"
        )
    text = f"these chains cannot distinguish {pair.first} from {pair.second}: {apart:+.2f} tasks per chain "
    text += f"({pair.items} chains, {probability_text(f'{pair.first} better', likely)}"
    if pair.difference.clear:
        return f"{text}; they differ on {pair.apart} of them only)"
    needed = pair.needed()
    if needed is None:
        return f"{text})"
    enough = f"about {needed} would" if needed <= OFFICIAL_CHAINS else "even the official 1000 would not"
    return f"{text}; {enough} show a difference of this size)"


def probability_text(event: str, value: float) -> str:
    """Return a probability as text, such as `P(better) = 0.97`."""
    text = probability(value)
    return f"P({event}) {text}" if text[0] in "<>" else f"P({event}) = {text}"


def as_markdown(found: Comparison) -> str:
    """Return a comparison as Markdown."""
    names = [side.name for side in found.sides]
    counts = range(1, len(found.rates) + 1)
    rows = []
    for side in found.sides:
        rates = success_rates(side.runs)
        seeds = f" ({len(side.runs)} runs)" if len(side.runs) > 1 else ""
        rows.append([side.name + seeds, f"{average_length(side.runs):.2f}", *map(percent, rates)])
    head = ["", "average length", *(f"{i}/{len(found.rates)}" for i in counts)]
    apart = []
    for number, pair in enumerate(found.lengths):
        cells = [f"{pair.difference.interval:+.2f}", probability(pair.difference.probability)]
        of_rates = [points(rate[number].difference.interval) for rate in found.rates]
        apart.append([f"{pair.first} − {pair.second}", *cells, *of_rates])
    parts = [
        f"# {' against '.join(names)}: the same {found.chains} chains",
        "\n".join(f"* **{verdict(pair)}**" for pair in found.lengths),
        *(f"Note: {note}." for note in found.notes),
        markdown_table(head, rows),
        "Differences, chain by chain (rates in percentage points), and the probability that the first is better:",
        markdown_table(["", "average length", "P(first is better)", *head[2:]], apart),
        _task_section(found),
        "Brackets are 95 % intervals: Wilson's for rates, 10,000 bootstrap resamples of the chains for averages and "
        "differences" + _about_runs(found.sides) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _about_runs(sides: Sequence[Side]) -> str:
    if all(len(side.runs) == 1 for side in sides):
        return ". One run of each: they cover other chains, not other training runs"
    return ". Runs and chains are resampled together; a few runs allow few conclusions about others"


def task_difference(row: TaskRow, first: int, second: int) -> Interval:
    """Return the difference of success rates, not paired: the sides have different numbers of attempts."""
    return rate_difference(row.counts[first], row.counts[second])


def _task_section(found: Comparison) -> str:
    index_pairs = list(combinations(range(len(found.sides)), 2))
    rows = []
    for row in found.tasks:
        rates = [f"{percent(wilson(*count))} of {count[1]}" if count[1] else "–" for count in row.counts]
        rows.append([row.task, *rates, *(points(task_difference(row, *pair)) for pair in index_pairs)])
    names = [side.name for side in found.sides]
    head = ["task", *names, *(f"{names[i]} − {names[j]}" for i, j in index_pairs)]
    return (
        "Every task that was started (a chain continues only after a success, so the attempts differ; Newcombe's "
        f"interval, not paired). {len(rows) * len(index_pairs)} comparisons at 95 %: about one in twenty would appear "
        "clear by chance."
        "\n\n" + markdown_table(head, rows)
    )


def as_json(found: Comparison) -> dict[str, Any]:
    """Return a comparison as JSON; rates and their differences are fractions."""
    index_pairs = list(combinations(range(len(found.sides)), 2))
    return {
        "chains": found.chains,
        "notes": list(found.notes),
        "sides": [
            {
                "name": side.name,
                "files": [str(run.file) for run in side.runs],
                "settings": [dict(run.settings) for run in side.runs],
                "average_length": interval_json(average_length(side.runs)),
                "success_rates": [interval_json(rate) for rate in success_rates(side.runs)],
            }
            for side in found.sides
        ],
        "pairs": [
            {
                "first": pair.first,
                "second": pair.second,
                "average_length": pair.as_json(),
                "success_rates": [rate[number].as_json() for rate in found.rates],
                "per_task": {row.task: _task_json(row, *index_pairs[number]) for row in found.tasks},
                "answer": verdict(pair),
            }
            for number, pair in enumerate(found.lengths)
        ],
    }


def _task_json(row: TaskRow, first: int, second: int) -> Mapping[str, Any]:
    (done, tried), (other_done, other_tried) = row.counts[first], row.counts[second]
    return {
        "first": {"done": done, "tried": tried},
        "second": {"done": other_done, "tried": other_tried},
        "difference": interval_json(task_difference(row, first, second)) if tried and other_tried else None,
    }


# --- the command -----------------------------------------------------------------------------------------------------


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


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m policy_rollout.compare",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("results", nargs="+", help="results.json or its folder; several runs of a policy: name=a,b,c")
    made.add_argument("--anyway", action="store_true", help="allow other settings (never other chains)")
    made.add_argument("--common", action="store_true", help="compare only the chains that all results have")
    made.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    made.add_argument(
        "--output", type=path_argument, metavar="FILE", help="also write it to this file (.json: as JSON)"
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    try:
        found = compare(sides_of(options.results), options.anyway, options.common)
        text, data = as_markdown(found), json.dumps(as_json(found), indent=2, ensure_ascii=False) + "\n"
        if options.output is not None:
            write_text(options.output, data if options.output.suffix == ".json" else text)
    except (ValueError, OSError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(data, end="")
        return 0
    print(text)
    if options.output is not None:
        print(f"written to {options.output}")
    print("; ".join(map(verdict, found.lengths)))
    return 0


if __name__ == "__main__":
    run_command(main)

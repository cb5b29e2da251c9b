"""Which of two or three policies is better in closed loop, on the same chains.

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
from common.tables import interval_json, markdown_table, percent, points, probability
from policy_rollout.intervals import Interval, rate_difference, wilson
from policy_rollout.paired import Pair, pairs_of
from policy_rollout.reports.results import Results, average_length, names_of, read_results, success_rates, task_counts

DESCRIPTION = """\
Compares closed-loop evaluations (results.json of calvin_evaluate_upvla, or its log_dir) chain by chain: the difference
in tasks per chain with a 95 % bootstrap interval, the probability that one is better, and every task. Results of other
chains are refused, and those of other settings (environment, renderer, ep_len, ...) unless --anyway is given."""
EPILOG = """\
examples:
  python -m policy_rollout.compare rollout_outputs/ar rollout_outputs/mdm rollout_outputs/bd
  three seeds of each, under names of their own (runs and chains are resampled together):
    python -m policy_rollout.compare ar=ar_0,ar_1,ar_2 bd=bd_0,bd_1,bd_2
  the chains that both have played, where one evaluation was longer:
    python -m policy_rollout.compare long short --common
  for another program; for a document:
    python -m policy_rollout.compare ar bd --json
    python -m policy_rollout.compare ar bd --output results/ar_or_bd.md"""
OFFICIAL_CHAINS = 1000


@dataclass(frozen=True)
class Side:
    """One of those compared: a policy's evaluation, or several of its seeds."""

    name: str
    runs: tuple[Results, ...]


@dataclass(frozen=True)
class TaskRow:
    """(done, tried) of each side, in the order of the sides."""

    task: str
    counts: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Comparison:
    """``lengths``: tasks per chain, each pair; ``rates``: chains with at least i tasks, i - 1 -> each pair; ``notes``:
    what a reader has to know."""

    sides: tuple[Side, ...]
    lengths: tuple[Pair, ...]
    rates: tuple[tuple[Pair, ...], ...]
    tasks: tuple[TaskRow, ...]
    notes: tuple[str, ...]

    @property
    def chains(self) -> int:
        return len(self.sides[0].runs[0].chains)


def compare(sides: Sequence[Side], anyway: bool = False, common: bool = False) -> Comparison:
    """Raises ``ValueError`` saying in one line what differs, where it may not: never the chains; other settings only
    ``anyway``. ``common``: take the chains that all have played."""
    if len(sides) < 2:
        raise ValueError("one result is no comparison; give two or three (seeds of one policy: name=a,b,c)")
    notes = _differences_of_play(sides, anyway)
    if common:
        sides = _common(sides)
    _require_same_chains(sides)
    notes += _same_player(sides)
    notes += [note for run in _all(sides) if (note := run.cut_note()) is not None]
    completed = {side.name: np.stack([run.completed() for run in side.runs]) for side in sides}
    length = sides[0].runs[0].length
    rates = [pairs_of({name: done >= least for name, done in completed.items()}) for least in range(1, length + 1)]
    counts = [task_counts(side.runs) for side in sides]
    tasks = sorted({task for of_side in counts for task in of_side})
    return Comparison(
        tuple(sides),
        tuple(pairs_of(completed)),
        tuple(map(tuple, rates)),
        tuple(TaskRow(task, tuple(of_side.get(task, (0, 0)) for of_side in counts)) for task in tasks),
        tuple(notes),
    )


# --- may they be compared? -------------------------------------------------------------------------------------------


def _all(sides: Sequence[Side]) -> list[Results]:
    return [run for side in sides for run in side.runs]


def _differences_of_play(sides: Sequence[Side], anyway: bool) -> list[str]:
    """Notes on what was played differently. Versions are told, other settings refused unless ``anyway``."""
    first, *others = _all(sides)
    notes, refused = [], None
    for other in others:
        mine, theirs = first.played, other.played
        differing = [name for name in sorted({*mine, *theirs}) if mine.get(name) != theirs.get(name)]
        if not differing:
            continue
        told = ", ".join(f"{name} is {mine.get(name)} there and {theirs.get(name)} here" for name in differing)
        notes.append(f"{other.file} was not played as {first.file}: {told}")
        if refused is None and not all(".versions." in name for name in differing):
            refused = notes[-1]
    if refused is not None and not anyway:
        raise ValueError(f"{refused}; a difference could come from that (--anyway compares them all the same)")
    return notes


def _common(sides: Sequence[Side]) -> list[Side]:
    shared = set.intersection(*[{chain.index for chain in run.chains} for run in _all(sides)])
    if not shared:
        raise ValueError("--common: no chain was played in all of them")
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
                f"only, the first is chain {alone[0]}; only the same chains can be compared (--common takes those that "
                "all have played)"
            )
        for index, chain in mine.items():
            if chain.tasks != theirs[index].tasks:
                raise ValueError(
                    f"chain {index} of {other.file} is {', '.join(theirs[index].tasks)}, in {first.file} it is "
                    f"{', '.join(chain.tasks)}; only the same chains can be compared"
                )


def _same_player(sides: Sequence[Side]) -> list[str]:
    """Two sides of one checkpoint are allowed (other settings of acting), and told."""
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


# --- in words --------------------------------------------------------------------------------------------------------


def verdict(pair: Pair) -> str:
    """One line about the average length, told from the better one's side."""
    apart, likely = pair.difference.interval, pair.difference.probability
    if pair.better is not None:
        other = pair.second
        if pair.better == pair.second:
            apart, likely, other = Interval(-apart.point, -apart.high, -apart.low), 1 - likely, pair.first
        sure = likely_words("better", likely)
        return f"{pair.better} is better than {other} by {apart:.2f} tasks per chain ({pair.items} chains, {sure})"
    told = f"these chains cannot tell {pair.first} from {pair.second}: {apart:+.2f} tasks per chain "
    told += f"({pair.items} chains, {likely_words(f'{pair.first} better', likely)}"
    if pair.difference.clear:
        return f"{told}; they differ on {pair.apart} of them only)"
    needed = pair.needed()
    if needed is None:
        return f"{told})"
    enough = f"about {needed} would" if needed <= OFFICIAL_CHAINS else "even the official 1000 would not"
    return f"{told}; {enough} show a difference of this size)"


def likely_words(what: str, value: float) -> str:
    text = probability(value)
    return f"P({what}) {text}" if text[0] in "<>" else f"P({what}) = {text}"


def as_markdown(found: Comparison) -> str:
    names = [side.name for side in found.sides]
    places = range(1, len(found.rates) + 1)
    rows = []
    for side in found.sides:
        rates = success_rates(side.runs)
        seeds = f" ({len(side.runs)} runs)" if len(side.runs) > 1 else ""
        rows.append([side.name + seeds, f"{average_length(side.runs):.2f}", *map(percent, rates)])
    head = ["", "average length", *(f"{i}/{len(found.rates)}" for i in places)]
    apart = []
    for number, pair in enumerate(found.lengths):
        cells = [f"{pair.difference.interval:+.2f}", probability(pair.difference.probability)]
        of_rates = [points(of_place[number].difference.interval) for of_place in found.rates]
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
        return ". One run of each: they speak of other chains, not of another training run"
    return ". Runs and chains are resampled together; a few runs say little about others"


def task_difference(row: TaskRow, first: int, second: int) -> Interval:
    """Not paired: a task is begun only where those before it were done, so each side has tries of its own."""
    return rate_difference(row.counts[first], row.counts[second])


def _task_section(found: Comparison) -> str:
    couples = list(combinations(range(len(found.sides)), 2))
    rows = []
    for row in found.tasks:
        rates = [f"{percent(wilson(*count))} of {count[1]}" if count[1] else "–" for count in row.counts]
        rows.append([row.task, *rates, *(points(task_difference(row, *couple)) for couple in couples)])
    names = [side.name for side in found.sides]
    head = ["task", *names, *(f"{names[i]} − {names[j]}" for i, j in couples)]
    return (
        "Every task that was begun (a chain goes on only after a success, so the tries differ; Newcombe's interval, "
        f"not paired). {len(rows) * len(couples)} comparisons at 95 %: about one in twenty would look clear by chance."
        "\n\n" + markdown_table(head, rows)
    )


def as_json(found: Comparison) -> dict[str, Any]:
    """Rates and differences of rates are shares."""
    couples = list(combinations(range(len(found.sides)), 2))
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
                "success_rates": [of_place[number].as_json() for of_place in found.rates],
                "per_task": {row.task: _task_json(row, *couples[number]) for row in found.tasks},
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
    """``path``, ``path,path`` or ``name=path,path`` each; names that are not given come from the folders."""
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
            raise ValueError(f"two of them are called {name}; name them: one={given[0]} other={given[1]}")
    return [Side(name, of_side) for name, of_side in zip(full, runs, strict=True)]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m policy_rollout.compare",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("results", nargs="+", help="results.json or its folder; several runs of a policy: name=a,b,c")
    made.add_argument("--anyway", action="store_true", help="other settings, too (never other chains)")
    made.add_argument("--common", action="store_true", help="only the chains that all have played")
    made.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    made.add_argument(
        "--output", type=path_argument, metavar="FILE", help="write it to this file, too (.json: as JSON)"
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

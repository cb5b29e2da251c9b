"""Compare two or three policies in closed loop, on the same chains.

python -m policy_rollout.compare rollout_outputs/ar rollout_outputs/bd
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

from common.arguments import path_argument, real
from common.command import print_next, run_command
from common.files import write_text
from common.record_table import require_table_path, write_record_table
from common.statistics import LEVEL, SequentialResult, wilson
from common.tables import interval_json, markdown_table, percent, points, probability
from policy_rollout.closed_loop.records import attempts
from policy_rollout.reports.comparison import (
    Comparison,
    Side,
    TaskRow,
    compare,
    sequential_results,
    sequential_verdict,
    sides_of,
    task_difference,
    verdict,
)
from policy_rollout.reports.results import average_length, success_rates

DESCRIPTION = """\
Compares closed-loop evaluations (results.json of calvin_evaluate_upvla, or its log_dir) chain by chain: the difference
in tasks per chain with a 95 % interval, the probability that one is better, and every task. P-values are corrected for
the number of comparisons (Holm). Results of other chains are refused; results with other settings (environment,
renderer, ep_len, ...) need --anyway."""
EPILOG = """\
examples:
  python -m policy_rollout.compare rollout_outputs/ar rollout_outputs/mdm rollout_outputs/bd
  three seeds of each, with names (the intervals then cover other runs and chains):
    python -m policy_rollout.compare ar=ar_0,ar_1,ar_2 bd=bd_0,bd_1,bd_2
  the common chains, if one evaluation is longer:
    python -m policy_rollout.compare long short --common
  as JSON; as a Markdown file:
    python -m policy_rollout.compare ar bd --json
    python -m policy_rollout.compare ar bd --output results/ar_or_bd.md
  equivalent if the interval lies within 0.2 tasks (choose the margin before the results are known):
    python -m policy_rollout.compare ar bd --margin 0.2
  after how many chains was it known? (valid however often it is looked at)
    python -m policy_rollout.compare ar bd --sequential
  every attempt as a row, for other programs:
    python -m policy_rollout.compare ar bd --records results/episodes.csv"""
TABLE = "closed_loop/1"
"""Kind and version of the table of records (docs/evaluation.md)."""


def as_markdown(found: Comparison, sequential: Sequence[SequentialResult] = ()) -> str:
    """Return a comparison as Markdown. ``sequential``: the anytime-valid test of each pair, or nothing."""
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
        cells = [f"{pair.difference.interval:+.2f}", probability(pair.difference.probability), _p(pair.adjusted)]
        of_rates = [points(rate[number].difference.interval) for rate in found.rates]
        apart.append([f"{pair.first} − {pair.second}", *cells, *of_rates])
    parts = [
        f"# {' against '.join(names)}: the same {found.chains} chains",
        "\n".join(f"* **{verdict(pair, found.margin)}**" for pair in found.lengths),
        *([_sequential_section(found, sequential)] if sequential else []),
        *(f"Note: {note}." for note in found.notes),
        markdown_table(head, rows),
        "Differences, chain by chain (rates in percentage points), and the probability that the first is better:",
        markdown_table(["", "average length", "P(first is better)", "p (Holm)", *head[2:]], apart),
        *([f"Control, tasks per chain: {found.control}."] if found.control else []),
        _task_section(found),
        _about_intervals(found.sides),
    ]
    return "\n\n".join(parts) + "\n"


def _p(value: float | None) -> str:
    return "–" if value is None else probability(value) if value < 0.001 else f"{value:.3f}"


def _sequential_section(found: Comparison, sequential: Sequence[SequentialResult]) -> str:
    lines = [f"* {sequential_verdict(*pair)}" for pair in zip(found.lengths, sequential, strict=True)]
    level = f"{100 * LEVEL:g} %" + (f" over {len(lines)} pairs" if len(lines) > 1 else "")
    return f"Test that may stop at any time (probability of a false verdict at most {level}):\n\n" + "\n".join(lines)


def _about_intervals(sides: Sequence[Side]) -> str:
    if all(len(side.runs) == 1 for side in sides):
        return (
            "Brackets are 95 % intervals: Wilson's for rates, 10,000 bootstrap resamples of the chains for averages "
            "and differences. One run of each: they cover other chains, not other training runs."
        )
    return (
        "Brackets are 95 % intervals of Student's distribution (of Wilson for the rates of one run) over runs and "
        "chains; a few runs allow few conclusions about others."
    )


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
        f"interval, not paired). {_clear_tasks(found)}\n\n" + markdown_table(head, rows)
    )


def _clear_tasks(found: Comparison) -> str:
    """Return which tasks differ after Holm's correction."""
    pairs = list(combinations([side.name for side in found.sides], 2))
    clear = [
        f"{row.task} ({first} against {second})"
        for row in found.tasks
        for (first, second), p in zip(pairs, row.adjusted, strict=True)
        if p <= LEVEL
    ]
    start = f"{len(found.tasks) * len(pairs)} comparisons; different after Holm's correction: "
    return start + (", ".join(clear) or "none") + "."


def record_rows(sides: Sequence[Side]) -> Iterator[dict[str, str | int | float | None]]:
    """Yield a row for every attempt at a task, in the columns of the table ``closed_loop/1``."""
    for side in sides:
        for number, run in enumerate(side.runs):
            for chain in run.chains:
                for position, (task, done, steps) in enumerate(attempts(chain)):
                    yield {
                        "policy": side.name,
                        "run": number,
                        "file": str(run.file),
                        "checkpoint_sha256": str(run.settings.get("checkpoint_sha256", "")),
                        "chain": chain.index,
                        "chain_length": len(chain.tasks),
                        "chain_completed": chain.completed,
                        "position": position,
                        "task": task,
                        "success": int(done),
                        "steps": steps,
                    }


def as_json(found: Comparison, sequential: Sequence[SequentialResult] = ()) -> dict[str, Any]:
    """Return a comparison as JSON; rates and their differences are fractions."""
    index_pairs = list(combinations(range(len(found.sides)), 2))
    return {
        "chains": found.chains,
        "notes": list(found.notes),
        "margin": found.margin,
        "control": None if found.control is None else asdict(found.control),
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
                "per_task": {row.task: _task_json(row, *index_pairs[number], number) for row in found.tasks},
                "answer": verdict(pair, found.margin),
                **({"sequential": asdict(sequential[number])} if sequential else {}),
            }
            for number, pair in enumerate(found.lengths)
        ],
    }


def _task_json(row: TaskRow, first: int, second: int, number: int) -> Mapping[str, Any]:
    (done, tried), (other_done, other_tried) = row.counts[first], row.counts[second]
    return {
        "first": {"done": done, "tried": tried},
        "second": {"done": other_done, "tried": other_tried},
        "difference": interval_json(task_difference(row, first, second)) if tried and other_tried else None,
        "p_holm": row.adjusted[number],
    }


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
    made.add_argument(
        "--margin",
        type=real(above=0),
        metavar="TASKS",
        help="difference in tasks per chain that does not matter: smaller ones are called equivalent",
    )
    made.add_argument(
        "--sequential",
        action="store_true",
        help="add a test that may be read after every chain: when was the question decided?",
    )
    made.add_argument(
        "--records", type=path_argument, metavar="FILE", help="write every attempt as a row to this .csv or .parquet"
    )
    made.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    made.add_argument(
        "--output", type=path_argument, metavar="FILE", help="also write it to this file (.json: as JSON)"
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    try:
        if options.records is not None:
            require_table_path(options.records, "--records")
        found = compare(sides_of(options.results), options.anyway, options.common, options.margin)
        sequential = sequential_results(found) if options.sequential else []
        text = as_markdown(found, sequential)
        data = json.dumps(as_json(found, sequential), indent=2, ensure_ascii=False) + "\n"
        if options.records is not None:
            write_record_table(options.records, TABLE, list(record_rows(found.sides)))
        if options.output is not None:
            write_text(options.output, data if options.output.suffix == ".json" else text)
    except (ValueError, OSError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(data, end="")
        return 0
    print(text)
    for path in (options.output, options.records):
        if path is not None:
            print(f"written to {path}")
    print("; ".join(verdict(pair, found.margin) for pair in found.lengths))
    print_next(f"blockdiff-vla report {shlex.join(options.results)}")
    return 0


if __name__ == "__main__":
    run_command(main)

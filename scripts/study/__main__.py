"""Study what learning to speak by ar, mdm, bd or joint does to seeing and acting.

    make study                                                    # ARGS="--plan main --processes 2"
    python -m scripts.study --dry-run                             # the runs, with an estimate of their time

Stage 1: a small network learns images and words by each objective, from the bundled questions about toys or from
questions of place about random scenes of the desk. Stage 2: it learns to act from there, with several weights of text
loss, with and without image loss, with and without a gradient of the action loss into the backbone. The same items are
measured before and after. Writes summary.md, study.png, records.csv and results.json, which grow as runs end.

A killed command resumes. Several machines share a study: the same command in the tasks of a Slurm step, or with --rank
and --world in the jobs of an array, after --only-data in one process.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from common.arguments import command_parser, path_argument, whole
from common.command import print_next, report_errors, run_command
from common.folder_lock import FolderBusy, hold
from scripts.study import data as study_data
from scripts.study.plan import MAIN_WORDS, PLANS, Data, Sizes, folder_of, plan_of

if TYPE_CHECKING:
    from scripts.study.table import Results
    from scripts.study.work import Study


@report_errors("study")
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    from preprocess_data.jobs.shard_writer import rank_and_world
    from scripts.study.work import Study

    rank, world = rank_and_world(args)
    plan = plan_of(args.plan, args.sizes, args.settings)
    study = Study(plan, Data(args.data.resolve()), args.output_dir.resolve(), args.sizes)
    if args.dry_run:
        _print_plan(study, args.processes * world)
        return 0
    command = shlex.join(["python", "-m", "scripts.study", *(sys.argv[1:] if argv is None else argv)])
    if args.only_report:
        return _report(study, command, [])
    try:
        if world == 1:
            with hold(study.data.root, "study, data", "--data "):
                study_data.make(study.plan, study.data, args.processes)
        else:
            study_data.require(study.plan, study.data)
        if args.only_data:
            print(f"data of plan {plan.name} are complete: {study.data.root}")
            print_next("the same command without --only-data")
            return 0
        study.require_same_settings()
        with hold(study.folder, f"study, rank {rank} of {world}", "--output-dir ", f".rank-{rank}.lock"):
            failures = study.work(rank, world, args.processes, lambda: _write(study, command))
            _decode(study)
    except KeyboardInterrupt:
        print("\nstopped; the same command resumes from here", file=sys.stderr)
        return 130
    return _report(study, command, failures)


def _write(study: Study, command: str, failures: Sequence[str] = ()) -> Results:
    from scripts.study.report import write_report  # loads torch, after the arguments are checked

    return write_report(study, command, failures)


def _report(study: Study, command: str, failures: Sequence[str]) -> int:
    """Write the page, print what is done; return the exit code."""
    from scripts.study.report import first_steps

    results = _write(study, command, failures)
    count = f"{len(results)} of {len(study.plan.runs)} runs are measured"
    print(f"done: {count}: {study.folder}/summary.md, study.png, records.csv")
    print_next(
        "read {page}" if not failures else "the same command tries what failed again", page=study.folder / "summary.md"
    )
    wrong = [first for first in first_steps(results) if not first.identical]
    for first in wrong:
        print(f"first step: {first}", file=sys.stderr)
    if failures:
        print(f"{len(failures)} failed", file=sys.stderr)
    return 1 if failures or wrong else 0


def _decode(study: Study) -> None:
    """Decode the models of stage 1 in every way, if all are trained; one rank does it."""
    starts = [run for run in study.plan.runs if run.stage == 1 and run.words == MAIN_WORDS]
    out = study.folder / "decoding"
    if not starts or not all(study.trained(run) for run in starts) or (out / "summary.md").is_file():
        return
    models: dict[str, list[str]] = {}
    for run in starts:
        models.setdefault(run.label, []).append(os.path.relpath(folder_of(run, study.folder)))
    count = str(min(96, study.plan.sizes.questions))
    given = ["--models", *(f"{name}={','.join(folders)}" for name, folders in models.items())]
    questions = os.path.relpath(study.data.words(MAIN_WORDS)[1])
    given += ["--questions", questions, "--count", count, "--output-dir", os.path.relpath(out)]
    try:
        with hold(out, "study, decoding", "--output-dir "):
            code = subprocess.run([sys.executable, "-m", "scripts.compare_decoding", *given], check=False).returncode
    except FolderBusy:  # another rank does it
        return
    if code:
        raise ValueError(f"the command ended with code {code}: python -m scripts.compare_decoding {shlex.join(given)}")


def _print_plan(study: Study, processes: int) -> None:
    """Print the runs with the estimated time that remains."""
    from scripts.study.work import estimate

    total = 0.0
    for run in study.plan.runs:
        seconds = estimate(run, study)
        total += seconds
        state = "measured" if study.measured(run) else "trained" if study.trained(run) else "to do"
        print(f"{run.name:62} {state:9} {seconds / 60:5.1f} min")
    print(
        f"plan {study.plan.name}: {study.plan.about}; {len(study.plan.runs)} runs, about {total / 3600:.1f} hours of "
        f"one core, {total / 3600 / processes:.1f} hours with {processes} process{'es' * (processes > 1)} "
        "(an estimate; data and other load come on top)"
    )


def _parser() -> argparse.ArgumentParser:
    made = command_parser(__doc__, prog="python -m scripts.study")
    add = made.add_argument
    plans = "; ".join(f"{plan.name}: {len(plan.runs)} runs, {plan.about}" for plan in PLANS.values())
    add("--plan", choices=list(PLANS), default="default", help=f"{plans} (default: %(default)s)")
    names = ", ".join(f"{field.name} ({field.default})" for field in fields(Sizes))
    add("--sizes", default="", metavar="NAME=N,...", help=f"other sizes than the plan's, of {names}")
    add(
        "settings",
        nargs="*",
        metavar="key=value",
        help="settings of every run, such as the network (see docs/study.md)",
    )
    add("--dry-run", action="store_true", help="print the runs and the estimated time, and end")
    add("--only-data", action="store_true", help="make the data and end")
    add("--only-report", action="store_true", help="write the page from what is measured, and end")
    processes = (
        "runs trained or measured at once, each on its share of the cores (default: one for each core, %(default)s)"
    )
    add("--processes", type=whole(1), default=os.cpu_count() or 1, help=processes)
    add("--rank", type=int, help="this rank (default: from Slurm's or torchrun's environment, else 0)")
    add("--world", type=int, help="number of ranks")
    add("--data", type=path_argument, default=Path("data/study"), help="made if missing (default: %(default)s)")
    add("--output-dir", type=path_argument, default=Path("results/study"), help="runs and page (default: %(default)s)")
    return made


if __name__ == "__main__":
    run_command(main)

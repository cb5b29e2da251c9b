"""Train the text objectives ar, mdm and bd alike, and compare them on held-out items with intervals.

    make compare
    python -m scripts.compare_objectives [--steps 400] [--seeds 0,1,2] [--blind] [section.key=value ...]

Every objective gets the same initial weights, data order and number of steps, with the embedded models (any key of a
run configuration can be overridden). All are evaluated on the same held-out questions and frames: likelihood, exact
match, accuracy and speed of the answers, errors of the actions, and with --chains closed-loop chains on the desk. Each
pair of objectives is compared item by item with intervals. Finished runs are not trained again, and a killed command
resumes.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from common.arguments import command_parser, path_argument, real, whole
from common.command import print_next, progress_bar, report_errors, run_command
from common.folder_lock import hold
from config.loading import load_job
from config.schema import Job
from scripts.objective_comparison.plan import (
    CONFIGS,
    TEXT_OBJECTIVES,
    Budget,
    Plan,
    overrides_from_run,
    read_objectives,
    read_seeds,
    write_blank_images,
)

if TYPE_CHECKING:
    from scripts.objective_comparison.report import Findings

ROOT = Path(__file__).resolve().parents[1]
RAW_SPLITS = ROOT / "dummy_data/calvin"


@report_errors("compare_objectives")
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    started = time.monotonic()
    start = () if args.from_run is None else overrides_from_run(args.from_run.resolve())
    overrides = (*start, *args.overrides)
    budget = Budget(args.steps, args.batch_size_pre, args.batch_size_mmu, args.learning_rate, overrides)
    folder = args.output_dir.resolve()
    plan = Plan(folder, read_objectives(args.objectives), read_seeds(args.seeds), args.blind, budget)
    plan = replace(plan, budget=replace(budget, overrides=(*_proprioception(plan, start), *overrides)))
    jobs = {name: _job(plan, name) for name in plan.objectives}
    try:
        with hold(folder, "compare_objectives", "--output-dir "):
            plan.write_or_check()
            identical = _run(plan, jobs, args, argv)
    except RuntimeError as error:  # a failed run
        raise ValueError(str(error)) from error
    except KeyboardInterrupt:
        print("\nstopped; the same command resumes from here", file=sys.stderr)
        return 130
    seconds = time.monotonic() - started
    print(f"done in {seconds:.0f} s: {folder}/summary.md, summary.json, curves.png; runs in {folder}/runs")
    runs = (f"{name}={folder / 'runs'}/{name}_seed{plan.seeds[0]}" for name in plan.objectives)
    print_next(
        f"read {folder}/summary.md; quality against speed: blockdiff-vla compare decoding --models {' '.join(runs)}"
    )
    if not identical:
        print("image or action losses of the first step differ between objectives: see summary.md", file=sys.stderr)
    return 0 if identical else 1


def _run(plan: Plan, jobs: dict[str, Job], args: argparse.Namespace, argv: Sequence[str] | None) -> bool:
    """Train, evaluate, report; return whether the first steps' image and action losses are identical."""
    from scripts.objective_comparison.train import train_all  # loads torch, after the arguments are checked

    first_job = next(iter(jobs.values()))
    data = first_job.dataset.params
    if not data.train_mmu_shards_path_or_url or not data.validation_mmu_shards_path_or_url:
        raise ValueError(
            "dataset.params.train_mmu_... and validation_mmu_shards_path_or_url are needed to compare text"
        )
    if data.train_mmu_sources:
        raise ValueError(
            "dataset.params.train_mmu_sources: objectives are compared on one source; give it as "
            "dataset.params.train_mmu_shards_path_or_url, with dataset.params.train_mmu_sources=[]"
        )
    if plan.blind:
        write_blank_images(Path(data.train_mmu_shards_path_or_url), plan.blank_data)
    kinds = f", {len(plan.runs)} runs" + (" (half of them blind)" if plan.blind else "")
    print(f"1/3 training {', '.join(plan.objectives)}: {plan.budget.steps} steps each{kinds}")
    trained = train_all(plan, args.jobs)
    finished = len(plan.runs) - len(trained)
    if finished:
        print(f"    {finished} of {len(plan.runs)} runs were trained already")
    return _evaluate_and_report(plan, jobs, Path(data.validation_mmu_shards_path_or_url), args, argv)


def _evaluate_and_report(
    plan: Plan, jobs: dict[str, Job], questions: Path, args: argparse.Namespace, argv: Sequence[str] | None
) -> bool:
    from policy_rollout.benchmarks import offline
    from policy_rollout.policies.baselines import ConstantPolicy
    from policy_rollout.policies.upvla import pick_device
    from scripts.objective_comparison import evaluate, pairwise, report
    from training.data.calvin import CalvinSplit

    job, raw = next(iter(jobs.values())), args.dataset_root
    print(f"2/3 evaluating on held-out questions ({questions}) and frames ({raw / 'validation'})")
    held_out = evaluate.read_held_out(job, questions)
    blank = held_out.blank(evaluate.blank_features(job, plan.blank_data / "blank.png")) if plan.blind else held_out
    training, validation = (CalvinSplit(raw / split) for split in ("training", "validation"))
    results: dict[str, list[evaluate.RunResult]] = {name: [] for name in plan.objectives}
    blind: dict[str, list[evaluate.RunResult]] = {name: [] for name in plan.objectives} if plan.blind else {}
    timed = [run for run in plan.runs if run.seed == plan.seeds[0] and not run.blind]
    total = 3 * len(held_out.questions) * len(plan.runs) + len(timed) * (evaluate.TIMED_QUESTIONS + 1)
    with progress_bar(total=total, desc="evaluating", unit="question") as bar:
        for run in plan.runs:
            bar.set_postfix_str(run.name, refresh=False)
            found = evaluate.evaluate_run(
                run, jobs[run.objective], blank if run.blind else held_out, validation, bar.update, args.chains
            )
            (blind if run.blind else results)[run.objective].append(found)
        bar.set_postfix_str("answers one by one", refresh=False)
        speeds = evaluate.time_answers(timed, job, held_out, bar.update)
        bar.update(bar.total - bar.n)
    samples = offline.list_samples(validation.annotations, job.act_step)
    average = offline.mean_action(training, offline.list_samples(training.annotations, job.act_step))
    constant = offline.evaluate(validation, ConstantPolicy(average, act_step=job.act_step), samples)
    print("3/3 writing the report")
    findings = report.Findings(
        plan=plan,
        held_out=held_out,
        kinds=evaluate.kinds_of(held_out),
        results=results,
        blind=blind,
        speeds=speeds,
        first=pairwise.first_steps(plan.runs),
        mean_action=constant.overall,
        notes=_notes(jobs),
        command=shlex.join(["python", "-m", "scripts.compare_objectives", *(sys.argv[1:] if argv is None else argv)]),
        machine=evaluate.machine(pick_device(job.training.device)),
        date=f"{datetime.now(timezone.utc):%Y-%m-%d}",
    )
    report.write_report(findings)
    _print_summary(findings)
    return all(first.identical for first in findings.first)


def _proprioception(plan: Plan, start: Sequence[str]) -> tuple[str, ...]:
    """Return the override that gives the models the robot's state, if they start anew and their data have states."""
    from training.data.episode_index import read_index  # loads torch, after the arguments are checked

    data = _job(plan, plan.objectives[0]).dataset.params.train_pre_shards_path_or_url
    has_states = not start and read_index(Path(data), images=False).states is not None
    return ("model.vla.proprioception=pose",) if has_states else ()


def _notes(jobs: dict[str, Job]) -> list[str]:
    """Return remarks on settings that the objectives do not share."""
    auxiliary = {name: job.text_diffusion.ar_aux_weight for name, job in jobs.items() if name != "ar"}
    return [
        f"`{name}` also learns next-token prediction (`text_diffusion.ar_aux_weight={weight:g}`)."
        for name, weight in auxiliary.items()
        if weight
    ]


def _print_summary(findings: Findings) -> None:
    """Print a short table and the main comparisons."""
    from scripts.objective_comparison import pairwise, report

    print(f"Held out; the best blind guess is right in {100 * findings.floor:.0f} %\n{report.text_table(findings)}")
    for pair in pairwise.compare_pairs(findings.results):
        if pair.metric in (pairwise.EXACT, pairwise.ACTION, pairwise.LENGTH):
            better = f"(P({pair.first} better) = {pair.probability_better:.2f})"
            print(f"  {pair.first} against {pair.second}, {pair.metric.name}: {pair.words} {better}")
    same = all(first.identical for first in findings.first)
    print(f"  image and action losses of the first step: {'identical' if same else 'DIFFERENT'}")


def _job(plan: Plan, objective: str) -> Job:
    run = next(run for run in plan.runs if run.objective == objective)
    arguments = [f"config={ROOT / 'config' / CONFIGS[objective]}.yaml", *plan.budget.arguments(), *run.settings]
    return load_job(arguments, TEXT_OBJECTIVES[objective])


def _parser() -> argparse.ArgumentParser:
    made = command_parser(__doc__, prog="compare_objectives")
    add, default = made.add_argument, Budget()
    add("overrides", nargs="*", metavar="section.key=value", help="for all runs, as in training")
    add("--steps", type=int, default=default.steps, help="optimizer steps (default: %(default)s)")
    add("--seeds", default="0", help="seeds; one run of each objective per seed (default: %(default)s)")
    objectives = "of ar, mdm, bd, joint (bd with ar; mdm and bd are then without it) (default: %(default)s)"
    add("--objectives", default="ar,mdm,bd", help=objectives)
    add("--blind", action="store_true", help="also train each on blank images, to measure how far guessing gets")
    output = "summary, figure, runs (default: %(default)s)"
    add("--output-dir", type=path_argument, default=Path("results"), help=output)
    jobs = "runs trained at once (default: one for each core, %(default)s)"
    add("--jobs", type=int, default=os.cpu_count() or 1, help=jobs)
    pre, mmu, rate = default.batch_size_pre, default.batch_size_mmu, default.learning_rate
    add("--batch-size-pre", type=whole(1), default=pre, help="robot samples per step (default: %(default)s)")
    add("--batch-size-mmu", type=whole(1), default=mmu, help="conversations per step (default: %(default)s)")
    add("--learning-rate", type=real(above=0), default=rate, help="peak learning rate (default: %(default)s)")
    start = "start all runs from its model, on its robot data (default: none)"
    add("--from-run", type=path_argument, metavar="RUN", help=start)
    chains = "closed-loop chains of three doors and lights on the desk (default: none)"
    add("--chains", type=whole(0), default=0, help=chains)
    recording = "raw recording whose validation split the actions are evaluated on (default: dummy_data/calvin)"
    add("--dataset-root", type=path_argument, default=RAW_SPLITS, help=recording)
    return made


if __name__ == "__main__":
    run_command(main)

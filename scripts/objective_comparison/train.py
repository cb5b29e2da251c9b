"""Train the planned runs in separate processes, several at a time; a killed command resumes."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing

from tqdm import tqdm

from common.command import progress_bar
from scripts.objective_comparison.plan import Plan, RunPlan, read_curve
from scripts.objective_comparison.processes import Work, run_works


def train_all(plan: Plan, jobs: int) -> list[RunPlan]:
    """Train the runs that are not finished, and return them.

    Raises ``RuntimeError`` with the end of the log if one fails; the others are stopped and resume at the next call.
    """
    missing = [run for run in plan.runs if not run.finished]
    works = [_work(plan, run) for run in missing]
    total = plan.budget.steps * len(plan.runs)
    if not works:
        return []
    with (
        progress_bar(total=total, desc="training", unit="step") as bar,
        closing(run_works(works, jobs, lambda running: _show(bar, plan, running))) as ended,
    ):
        for _, failure in ended:
            if failure is not None:
                raise RuntimeError(f"training {failure}")
    return missing


def _work(plan: Plan, run: RunPlan) -> Work:
    command = run.command(plan.budget, plan.blank_data)
    return Work(run.name, command, run.folder / "train.log", lambda: run.finished)


def _show(bar: tqdm[None], plan: Plan, running: Collection[str]) -> None:
    done = 0
    states = []
    for run in plan.runs:
        curve = [] if run.finished else read_curve(run)
        steps = plan.budget.steps if run.finished else int(curve[-1]["step"]) if curve else 0
        done += steps
        if run.name in running:
            nats = f" {curve[-1]['text/nats_per_token']:.2f} nats" if curve else ""
            states.append(f"{run.name} {steps}{nats}")
    bar.set_postfix_str(", ".join(states), refresh=False)
    bar.update(done - bar.n)

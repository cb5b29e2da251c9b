"""Train the planned runs in separate processes, several at a time; a killed command resumes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from scripts.objective_comparison.plan import ROOT, Plan, RunPlan, read_curve

POLL_SECONDS = 0.5
LOG_TAIL = 12
"""Lines at the end of a failed run's log that are shown."""


@dataclass
class _Process:
    run: RunPlan
    popen: subprocess.Popen[bytes]


def train_all(plan: Plan, jobs: int) -> list[RunPlan]:
    """Train the runs that are not finished, and return them.

    Raises ``RuntimeError`` with the end of the log if one fails; the others are stopped and resume at the next call.
    """
    waiting = [run for run in plan.runs if not run.finished]
    if not waiting:
        return []
    started = list(waiting)
    running: list[_Process] = []
    threads = max(1, (os.cpu_count() or 1) // jobs)
    total = plan.budget.steps
    pause = 0.5 if sys.stderr.isatty() else 10.0  # few lines in a log file
    with tqdm(total=total * len(plan.runs), desc="training", unit="step", dynamic_ncols=True, mininterval=pause) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    run = waiting.pop(0)
                    running.append(_Process(run, _start(plan, run, threads)))
                time.sleep(POLL_SECONDS)
                for process in [p for p in running if p.popen.poll() is not None]:
                    running.remove(process)
                    if process.popen.returncode or not process.run.finished:
                        raise RuntimeError(_failure(process))
                _show(bar, plan, running)
        finally:
            _stop(running)
    return started


def _start(plan: Plan, run: RunPlan, threads: int) -> subprocess.Popen[bytes]:
    run.folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    with (run.folder / "train.log").open("ab") as log:
        return subprocess.Popen(
            run.command(plan.budget, plan.blank_data),
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this command only, which then stops its runs
        )


def _show(bar: tqdm[None], plan: Plan, running: Sequence[_Process]) -> None:
    done = 0
    states = []
    for run in plan.runs:
        curve = [] if run.finished else read_curve(run)
        steps = plan.budget.steps if run.finished else int(curve[-1]["step"]) if curve else 0
        done += steps
        if any(process.run == run for process in running):
            nats = f" {curve[-1]['text/nats_per_token']:.2f} nats" if curve else ""
            states.append(f"{run.name} {steps}{nats}")
    bar.set_postfix_str(", ".join(states), refresh=False)
    bar.update(done - bar.n)


def _failure(process: _Process) -> str:
    log = process.run.folder / "train.log"
    end = "\n".join("  " + line for line in _last_lines(log))
    return f"training {process.run.name} ended with code {process.popen.returncode}; the end of {log}:\n{end}"


def _last_lines(log: Path) -> list[str]:
    text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    return [line for line in text.splitlines() if line.strip()][-LOG_TAIL:]


def _stop(running: Sequence[_Process]) -> None:
    """Terminate the processes; kill those that do not end within 20 seconds."""
    for process in running:
        process.popen.terminate()
    for process in running:
        try:
            process.popen.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.popen.kill()
            process.popen.wait()

"""Measure chains of tasks on the embedded desk: one by one as in the original, and as the evaluator runs them.

Runs the same chains in six ways, alternating, and reports the CPU time of a chain by part: the policy's forward,
rendering ("images"), physics (with the state of an observation), the oracle, everything else.

  original   one by one; both cameras rendered at every control step; the original's forward
  eager      one by one; both cameras rendered at every control step
  lazy       one by one; the policy's camera rendered when it needs an observation
  batched    --parallel environments in this process, one forward for all
  workers    the same in --workers processes besides the policy's
  processes  --workers + 1 processes with a policy each, as under torchrun, which share the chains

CPU time is that of all processes, so that other load does not count. With several processes wall time matters: it is
measured too, and "two cores" is its estimate on an idle machine: the larger of half of all CPU time and the CPU time of
the busiest process. Ways with different records are refused, except for the original's.

Examples:
  the figures of the documentation:
    python -m benchmarks.closed_loop --chains 4 --rounds 3 --out benchmarks/results/closed_loop.json
  another policy, which gets further in a chain:
    python -m benchmarks.closed_loop --model-config my_model.yaml

Without --model-config the embedded AR-VLA with random weights acts, which fails every first task after 360 steps.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.harness.record import ROOT, Parser, write
from benchmarks.harness.timed_desk import ORACLE, PHYSICS, RENDERING, Clock, TimedDesk
from benchmarks.harness.timing import Spread
from common.arguments import path_argument, whole
from common.command import progress_bar, run_command
from common.constants import CALVIN_MAX_STEPS
from common.tables import markdown_table
from config.loading import load_job
from models.pretrained.model_io import build
from models.vision.magvitv2 import load_magvit
from policy_rollout.benchmarks.desk import DeskBenchmark
from policy_rollout.closed_loop import records
from policy_rollout.closed_loop.interface import ChainJob, ChainRecord
from policy_rollout.closed_loop.runner import OnRecord, run_chains
from policy_rollout.closed_loop.work_queue import Worker
from policy_rollout.policies.interface import Observation
from policy_rollout.policies.upvla import UPVLAPolicy
from tests.benchmarks.naive_acting import Naive

CHAINS = 1000
FORWARD, REST = "forward", "rest"
PARTS = (FORWARD, RENDERING, PHYSICS, ORACLE, REST)
OWN = ("eager", "lazy", "batched", "workers", "processes")
WAYS = ("original", *OWN)


@dataclass(frozen=True)
class Run:
    """Seconds of all chains: CPU time of all processes by part, of the busiest process, and wall time.

    ``started``: CPU time of worker processes before their first environment, not included in the others.
    """

    parts: dict[str, float]
    busiest: float
    started: float
    wall: float
    records: list[ChainRecord]

    @property
    def cpu(self) -> float:
        return sum(self.parts.values())

    @property
    def two_cores(self) -> float:
        """Return the estimated seconds on two idle cores."""
        return max(self.busiest, self.cpu / 2)


@dataclass(frozen=True)
class Sizes:
    """Control ``steps`` of a task, environments side by side in a process, processes besides the first."""

    steps: int = CALVIN_MAX_STEPS
    parallel: int = 8
    workers: int = 1


def run_way(way: str, policy: UPVLAPolicy, jobs: Sequence[ChainJob], sizes: Sizes) -> Run:
    """Run all chains in one of ``WAYS``."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder, found = Path(name), list[ChainRecord]()
        wall, own, others = time.perf_counter(), time.process_time(), _children()
        if way == "processes":
            found = _run_in_processes(policy, jobs, sizes, folder)
        else:
            _run_here(way, policy, jobs, sizes, folder, found.append)
        wall, own, others = time.perf_counter() - wall, time.process_time() - own, _children() - others
        times = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*.json")]
    births: dict[int, list[float]] = {}
    for row in times:
        if way == "workers" and "born" in row and row["process"] != os.getpid():
            births.setdefault(row["process"], []).append(row["born"])
    started = sum(min(born) for born in births.values())
    parts = {part: sum(row.get(part, 0.0) for row in times) for part in PARTS}
    busiest = max([own, *(row["whole"] for row in times if "whole" in row)])
    parts[REST] = own + others - started - sum(parts.values())
    return Run(parts, busiest, started, wall, sorted(found, key=lambda record: record.index))


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _run_here(
    way: str, policy: UPVLAPolicy, jobs: Iterable[ChainJob], sizes: Sizes, folder: Path, on_record: OnRecord
) -> None:
    naive = Naive(policy.model, policy.vq, policy.prompter)

    def original_act(observations: Sequence[Observation]) -> NDArray[np.float32]:
        return np.stack([naive.rollout_step(o.rgb_static, o.instruction)[0] for o in observations])

    timed, clock, one_by_one = copy.copy(policy), Clock(), way in ("original", "eager", "lazy")
    if way == "original":
        setattr(timed, "act", original_act)  # noqa: B010 - mypy does not allow to assign a method
    clock.time_method(timed, "act", FORWARD)
    run_chains(
        TimedDesk(folder, eager=way in ("original", "eager")),
        timed,
        jobs,
        on_record,
        max_steps=sizes.steps,
        parallel=1 if one_by_one else sizes.parallel,
        workers=sizes.workers if way == "workers" else 0,
    )
    (folder / f"policy-{os.getpid()}.json").write_text(
        json.dumps({**clock.spent, "process": os.getpid()}), encoding="utf-8"
    )


def _run_in_processes(policy: UPVLAPolicy, jobs: Sequence[ChainJob], sizes: Sizes, folder: Path) -> list[ChainRecord]:
    """Run as the evaluation under torchrun, except that each process has a copy of this policy."""
    count = sizes.workers + 1
    fair = replace(sizes, parallel=min(sizes.parallel, -(-len(jobs) // count)))  # few chains are shared evenly

    def run() -> None:
        began = time.process_time()
        with Worker(folder) as worker:
            taken = worker.claim(jobs, lambda index: index in records.read(folder))
            _run_here("batched", policy, taken, fair, folder, lambda r: records.append(folder, worker.name, r))
        whole_run = {"whole": time.process_time() - began, "process": os.getpid()}
        (folder / f"whole-{os.getpid()}.json").write_text(json.dumps(whole_run), encoding="utf-8")

    processes = [get_context("fork").Process(target=run) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return list(records.read(folder).values())


def check_records(found: Mapping[str, Run]) -> int:
    """Return how many chains differ under the original's arithmetic. Exit if the package's ways differ."""
    first = found[next(name for name in OWN if name in found)].records
    for name in OWN:
        if name in found and found[name].records != first:
            raise SystemExit(f"{name} gives other records than the other ways: nothing is compared")
    return sum(a != b for a, b in zip(found["original"].records, first, strict=True)) if "original" in found else 0


def summarize(rounds: Sequence[Mapping[str, Run]], chains: int) -> dict[str, dict[str, Any]]:
    """Return seconds of a chain by way, and ratios to the first way."""
    first = next(iter(rounds[0]))

    def spread(name: str, value: Callable[[Run], float]) -> Spread:
        return Spread.of([value(runs[name]) / chains for runs in rounds])

    def ratio(name: str, value: Callable[[Run], float]) -> Spread:
        return Spread.of([value(runs[first]) / value(runs[name]) for runs in rounds])

    return {
        name: {
            "cpu": spread(name, lambda run: run.cpu),
            "parts": {part: spread(name, lambda run, part=part: run.parts[part]).median for part in PARTS},  # type: ignore[misc]
            "busiest_process": spread(name, lambda run: run.busiest),
            "two_cores": spread(name, lambda run: run.two_cores),
            "wall": spread(name, lambda run: run.wall),
            "start_of_workers": statistics.median(runs[name].started for runs in rounds),
            "times_faster_on_two_cores": ratio(name, lambda run: run.two_cores),
            "times_less_cpu": ratio(name, lambda run: run.cpu),
            "projected_minutes_for_1000_chains": spread(name, lambda run: run.two_cores).median * CHAINS / 60,
        }
        for name in rounds[0]
    }


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the results as a Markdown table."""
    rows = [[part, *(f"{f['parts'][part]:.2f}" for f in found.values())] for part in PARTS]
    for title, key in (("**CPU**", "cpu"), ("busiest process", "busiest_process"), ("**two cores**", "two_cores")):
        rows.append([title, *(f"{f[key].median:.2f}" for f in found.values())])
    rows.append(["times faster", *(str(f["times_faster_on_two_cores"]) for f in found.values())])
    projected = (f"{f['projected_minutes_for_1000_chains']:.0f} min" for f in found.values())
    rows.append(["1000 chains, projected", *projected])
    return markdown_table(["seconds of a chain", *found], rows)


def load_policy(args: argparse.Namespace) -> UPVLAPolicy:
    """Return the policy of --model-config, or the embedded one."""
    if args.model_config is not None:
        return UPVLAPolicy.from_config(args.model_config, device=str(args.device))
    torch.manual_seed(0)
    job = load_job([f"config={ROOT / 'config/tiny_arvla.yaml'}"], "ar")
    return UPVLAPolicy(build(job), load_magvit(job.model.vq_model.vq_model_name), device=args.device)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = Parser("closed_loop", __doc__, rounds=3)
    parser.add_argument("--model-config", type=path_argument, help="model yaml (the embedded AR-VLA, random weights)")
    parser.add_argument("--chains", type=whole(0), default=4, help="official chains of each way and round (4)")
    parser.add_argument(
        "--steps", type=whole(1), default=CALVIN_MAX_STEPS, help=f"control steps of a task ({CALVIN_MAX_STEPS})"
    )
    parser.add_argument("--parallel", type=whole(1), default=8, help="environments side by side (8)")
    parser.add_argument("--workers", type=whole(1), default=1, help="processes besides the policy's (1)")
    parser.add_argument("--ways", default=",".join(WAYS), help=f"which, by commas ({','.join(WAYS)})")
    args = parser.parse(argv)
    ways = parser.split("--ways", args.ways, WAYS)
    sizes = Sizes(args.steps, args.parallel, args.workers)
    policy, jobs = load_policy(args), DeskBenchmark().jobs(args.chains)
    rounds = []
    with progress_bar(total=args.rounds * len(ways), desc="closed_loop", unit="way") as bar:
        for number in range(args.rounds):
            runs: dict[str, Run] = {}
            for way in ways if number % 2 == 0 else ways[::-1]:
                runs[way] = run_way(way, policy, jobs, sizes)
                bar.update()
            rounds.append({way: runs[way] for way in ways})
    different = check_records(rounds[0])
    found = summarize(rounds, args.chains)
    print(table(found))
    done = rounds[0][ways[-1]].records
    settings = {
        "chains": args.chains,
        **asdict(sizes),
        "model_config": None if args.model_config is None else args.model_config.name,
        "tasks_done": sum(record.completed for record in done),
        "control_steps": sum(sum(record.steps) for record in done),
        "chains_that_the_original_arithmetic_plays_otherwise": different,
    }
    content = {"settings": settings, "results": found}
    write(args, content)
    return content


if __name__ == "__main__":
    run_command(main)

"""Chains of tasks on the embedded desk: one by one as it is written first, and as the evaluator plays them.

python -m benchmarks.closed_loop [--model-config my_model.yaml] [--chains 4]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.record import ROOT, arguments, parser, write
from benchmarks.timed_desk import IMAGES, ORACLE, PHYSICS, Clock, TimedDesk
from benchmarks.timing import Spread
from common.arguments import path_argument, whole
from common.command import run_command
from common.robot import CALVIN_MAX_STEPS
from config.load import load_job
from models.pretrained.model_io import build
from models.vision.magvitv2 import load_magvit
from policy_rollout.benchmarks.desk import DeskBenchmark
from policy_rollout.closed_loop import records
from policy_rollout.closed_loop.interface import ChainJob, ChainRecord
from policy_rollout.closed_loop.runner import OnRecord, run_chains
from policy_rollout.closed_loop.work_queue import Worker
from policy_rollout.policies.interface import ActionConvention, Observation
from policy_rollout.policies.upvla import UPVLAPolicy
from tests.benchmarks.naive_acting import Naive

NAME = "closed_loop"
DESCRIPTION = """\
Plays the same chains in six ways, in turn, and reports the CPU time of a chain and what it is spent on: the policy's
forward, images, physics (with the numbers of an observation), the oracle, everything else.

  original   one by one; both cameras drawn at every control step; the original's forward
  eager      one by one; both cameras drawn at every control step
  lazy       one by one; the policy's camera drawn when it looks
  batched    --parallel environments in this process, one forward for all
  workers    the same in --workers processes beside the policy's
  processes  --workers + 1 processes with a policy each, as under torchrun, which share the chains

CPU time is that of all processes, so that neighbours on the machine do not count. With several processes the wall is
what matters: it is measured too, and `two cores` is what it comes to where nobody else computes: the larger of half
of all CPU time and of the busiest process. Ways that do not give the same records are refused, the original's
excepted."""
EPILOG = """\
examples:
  the figures of the documentation:
    python -m benchmarks.closed_loop --chains 4 --rounds 3 --out benchmarks/results/closed_loop.json
  a policy of your own, which gets further in a chain:
    python -m benchmarks.closed_loop --model-config my_model.yaml

Without --model-config the embedded AR-VLA with random weights acts, which fails every first task after 360 steps."""

CHAINS = 1000
FORWARD, REST = "forward", "rest"
PARTS = (FORWARD, IMAGES, PHYSICS, ORACLE, REST)
OWN = ("eager", "lazy", "batched", "workers", "processes")
WAYS = ("original", *OWN)


@dataclass
class TimedPolicy:
    """``answer`` [B, T, 7] to observations, with the time it takes."""

    policy: UPVLAPolicy
    answer: Callable[[Sequence[Observation]], NDArray[np.float32]]
    clock: Clock = field(default_factory=Clock)

    @property
    def convention(self) -> ActionConvention:
        return self.policy.convention

    @property
    def act_step(self) -> int:
        return self.policy.act_step

    @property
    def cameras(self) -> tuple[str, ...]:
        return self.policy.cameras

    def reset(self) -> None:
        self.policy.reset()

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float32]:
        with self.clock.of(FORWARD):
            return self.answer(observations)


@dataclass(frozen=True)
class Played:
    """Seconds for all chains: CPU of all processes by part, of the busiest process alone, and on the wall.
    ``started``: CPU that worker processes took before their first environment was there, not counted in the others."""

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
        """Seconds on two cores that nobody else uses."""
        return max(self.busiest, self.cpu / 2)


@dataclass(frozen=True)
class Sizes:
    """``steps`` of a task, environments side by side in a process, processes beside the first."""

    steps: int = CALVIN_MAX_STEPS
    parallel: int = 8
    workers: int = 1


def play(way: str, policy: UPVLAPolicy, jobs: Sequence[ChainJob], sizes: Sizes) -> Played:
    """All chains in one of ``WAYS``."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder, played = Path(name), list[ChainRecord]()
        wall, own, others = time.perf_counter(), time.process_time(), _children()
        if way == "processes":
            played = _play_in_processes(policy, jobs, sizes, folder)
        else:
            _play_here(way, policy, jobs, sizes, folder, played.append)
        wall, own, others = time.perf_counter() - wall, time.process_time() - own, _children() - others
        noted = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*.json")]
    started = sum(
        min(row["born"] for row in noted if row["process"] == process and "born" in row)
        for process in {row["process"] for row in noted if way == "workers" and "born" in row}
        if process != os.getpid()
    )
    parts = {part: sum(row.get(part, 0.0) for row in noted) for part in PARTS}
    busiest = max([own, *(row["whole"] for row in noted if "whole" in row)])
    parts[REST] = own + others - started - sum(parts.values())
    return Played(parts, busiest, started, wall, sorted(played, key=lambda record: record.index))


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _play_here(
    way: str, policy: UPVLAPolicy, jobs: Iterable[ChainJob], sizes: Sizes, folder: Path, on_record: OnRecord
) -> None:
    naive = Naive(policy.model, policy.vq, policy.prompter)

    def originally(observations: Sequence[Observation]) -> NDArray[np.float32]:
        return np.stack([naive.rollout_step(o.rgb_static, o.instruction)[0] for o in observations])

    timed = TimedPolicy(policy, originally if way == "original" else policy.act)
    run_chains(
        TimedDesk(folder, eager=way in ("original", "eager")),
        timed,
        jobs,
        on_record,
        max_steps=sizes.steps,
        parallel=1 if way in ("original", "eager", "lazy") else sizes.parallel,
        workers=sizes.workers if way == "workers" else 0,
    )
    (folder / f"policy-{os.getpid()}.json").write_text(
        json.dumps({**timed.clock.spent, "process": os.getpid()}), encoding="utf-8"
    )


def _play_in_processes(policy: UPVLAPolicy, jobs: Sequence[ChainJob], sizes: Sizes, folder: Path) -> list[ChainRecord]:
    """As the evaluation under torchrun, but for loading the policy: each process has a copy of this one's."""
    count = sizes.workers + 1
    fair = replace(sizes, parallel=min(sizes.parallel, -(-len(jobs) // count)))  # few chains are shared evenly

    def run() -> None:
        began = time.process_time()
        with Worker(folder) as worker:
            taken = worker.claim(jobs, lambda index: index in records.read(folder))
            _play_here("batched", policy, taken, fair, folder, lambda r: records.append(folder, worker.name, r))
        whole = {"whole": time.process_time() - began, "process": os.getpid()}
        (folder / f"whole-{os.getpid()}.json").write_text(json.dumps(whole), encoding="utf-8")

    processes = [get_context("fork").Process(target=run) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return list(records.read(folder).values())


def refuse_differences(found: Mapping[str, Played]) -> int:
    """How many chains the original's arithmetic plays otherwise. Raises ``SystemExit`` where one of ours does."""
    first = found[next(name for name in OWN if name in found)].records
    for name in OWN:
        if name in found and found[name].records != first:
            raise SystemExit(f"{name} gives other records than the other ways: nothing is compared")
    return sum(a != b for a, b in zip(found["original"].records, first, strict=True)) if "original" in found else 0


def figures(rounds: Sequence[Mapping[str, Played]], chains: int) -> dict[str, dict[str, Any]]:
    """Seconds of a chain by way, and how many times less than the first way's."""
    first = next(iter(rounds[0]))
    found = {}
    for name in rounds[0]:
        plays = [played[name] for played in rounds]
        seconds = [play.two_cores / chains for play in plays]
        found[name] = {
            "cpu": Spread.of([play.cpu / chains for play in plays]),
            "parts": {part: statistics.median(play.parts[part] / chains for play in plays) for part in PARTS},
            "busiest_process": Spread.of([play.busiest / chains for play in plays]),
            "two_cores": Spread.of(seconds),
            "wall": Spread.of([play.wall / chains for play in plays]),
            "start_of_workers": statistics.median(play.started for play in plays),
            "times_faster_on_two_cores": Spread.of(
                [played[first].two_cores / played[name].two_cores for played in rounds]
            ),
            "times_less_cpu": Spread.of([played[first].cpu / played[name].cpu for played in rounds]),
            "projected_minutes_for_1000_chains": statistics.median(seconds) * CHAINS / 60,
        }
    return found


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """For people, and for Markdown."""
    rows = [["seconds of a chain", *found], ["---"] * (len(found) + 1)]
    rows += [[part, *(f"{f['parts'][part]:.2f}" for f in found.values())] for part in PARTS]
    rows.append(["**CPU**", *(f"{f['cpu'].median:.2f}" for f in found.values())])
    rows.append(["of the busiest process", *(f"{f['busiest_process'].median:.2f}" for f in found.values())])
    rows.append(["**two cores**", *(f"{f['two_cores'].median:.2f}" for f in found.values())])
    rows.append(["times faster", *(str(f["times_faster_on_two_cores"]) for f in found.values())])
    projected = (f"{f['projected_minutes_for_1000_chains']:.0f} min" for f in found.values())
    rows.append(["1000 chains, projected", *projected])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def the_policy(args: argparse.Namespace) -> UPVLAPolicy:
    if args.model_config is not None:
        return UPVLAPolicy.from_config(args.model_config, device=str(args.device))
    torch.manual_seed(0)
    job = load_job([f"config={ROOT / 'config/tiny_arvla.yaml'}"], "ar")
    return UPVLAPolicy(build(job), load_magvit(job.model.vq_model.vq_model_name), device=args.device)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    made = parser(NAME, DESCRIPTION, EPILOG)
    made.set_defaults(rounds=3)
    made.add_argument("--model-config", type=path_argument, help="who acts (the embedded AR-VLA with random weights)")
    made.add_argument("--chains", type=whole(0), default=4, help="of the official ones, for each way and round (4)")
    made.add_argument(
        "--steps", type=whole(1), default=CALVIN_MAX_STEPS, help=f"control steps of a task ({CALVIN_MAX_STEPS})"
    )
    made.add_argument("--parallel", type=whole(1), default=8, help="environments side by side (8)")
    made.add_argument("--workers", type=whole(1), default=1, help="processes beside the policy's (1: two cores in all)")
    made.add_argument("--ways", default=",".join(WAYS), help=f"which, by commas ({','.join(WAYS)})")
    args = made.parse_args(argv)
    ways = args.ways.split(",")
    if unknown := [way for way in ways if way not in WAYS]:
        made.error(f"--ways {args.ways}: {unknown[0]!r} is none of {', '.join(WAYS)}")
    torch.set_num_threads(args.threads)
    sizes = Sizes(args.steps, args.parallel, args.workers)
    policy, jobs = the_policy(args), DeskBenchmark().jobs(args.chains)
    rounds = []
    with tqdm(total=args.rounds * len(ways), desc=NAME, unit="way") as bar:
        for number in range(args.rounds):
            played: dict[str, Played] = {}
            for way in ways if number % 2 == 0 else ways[::-1]:
                played[way] = play(way, policy, jobs, sizes)
                bar.update()
            rounds.append({way: played[way] for way in ways})
    different = refuse_differences(rounds[0])
    found = figures(rounds, args.chains)
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
    write(args.out, NAME, arguments(argv), args.device, args.threads, content)
    return content


if __name__ == "__main__":
    run_command(main)

"""Evaluate the scripted experts on the desk or in the real CALVIN: success per task and scene, and chain lengths.

    python -m policy_rollout.desk.experts --table --scenes D --resets 50
    python -m policy_rollout.desk.experts --chains 100
    python -m policy_rollout.desk.experts --table --chains 100 --markdown docs/desk_experts.md
    python -m policy_rollout.desk.experts --environment calvin --table --resets 20 --markdown docs/calvin_experts.md

Success is the task oracle's verdict; an episode ends with it, or after 360 steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from common.arguments import path_argument, whole
from common.command import print_next, progress_bar
from common.files import write_text
from policy_rollout.calvin.initial_states import initial_state
from policy_rollout.calvin.oracle import TaskOracle
from policy_rollout.calvin.sequences import Chain, desk_sequences
from policy_rollout.desk.experts.policy import EXPERT_TASKS, PLAY, QUIET, Noise, ScriptedExpert, task_resets
from policy_rollout.desk.experts.worlds import ENVIRONMENTS, ExpertEnv, check_world, has_official_states, make_env
from policy_rollout.desk.layout import SCENES
from policy_rollout.desk.play import Video, play_task, random_actor


@dataclass(frozen=True)
class Episode:
    """One attempt at one task."""

    task: str
    scene: str
    seed: int
    success: bool
    steps: int
    attempts: int
    seconds: float  # CPU time


@dataclass(frozen=True)
class ChainResult:
    """Outcome of one chain of five: the number of tasks done in sequence."""

    scene: str
    index: int
    tasks: tuple[str, ...]
    done: int
    steps: int
    seconds: float


def run_episode(
    env: ExpertEnv, oracle: TaskOracle, task: str, seed: int, noise: Noise = QUIET, video: Video | None = None
) -> Episode:
    """Run the expert once, from a state in which the task is feasible. ``video`` records it."""
    obs = env.reset(*task_resets(task, seed, env.layout))
    began = time.process_time()
    expert = ScriptedExpert(env.layout, task, np.random.default_rng(seed), noise)
    success, steps = play_task(env, oracle, task, obs, expert.act, is_done=lambda: expert.done, video=video)
    return Episode(task, env.scene, seed, success, steps, expert.attempts, time.process_time() - began)


def run_chain(env: ExpertEnv, oracle: TaskOracle, chain: Chain, index: int, noise: Noise | None) -> ChainResult:
    """Run the tasks of a chain until one fails. `noise` None: random actions instead of an expert."""
    env.reset(*initial_state(chain.state))
    began, steps, count = time.process_time(), 0, 0
    rng = np.random.default_rng([index, 7])
    expert = ScriptedExpert(env.layout, chain.tasks[0], rng, noise or QUIET)
    for task in chain.tasks:
        expert.reset(task)
        actor = expert.act if noise is not None else random_actor(rng)
        success, used = play_task(env, oracle, task, env.get_obs(render=False), actor)
        steps += used
        if not success:
            break
        count += 1
    return ChainResult(env.scene, index, chain.tasks, count, steps, time.process_time() - began)


class Records:
    """Episodes that were run, by scene, task and seed; also in a file, one JSON line each after a line of settings.

    Raises ``ValueError`` naming the file if it has episodes of another world or noise.
    """

    def __init__(self, file: Path | None, environment: str, noise: Noise) -> None:
        self.file = file
        self._episodes: dict[tuple[str, str, int], Episode] = {}
        settings = json.loads(json.dumps({"environment": environment, **asdict(noise)}))
        if file is None:
            return
        if not file.is_file():
            write_text(file, json.dumps(settings) + "\n")
        first, *lines = file.read_text(encoding="utf-8").splitlines()
        if (found := json.loads(first)) != settings:
            raise ValueError(f"--records {file} has episodes of {found}, not of {settings}; give another file")
        self._index(Episode(**json.loads(line)) for line in lines)

    def _index(self, episodes: Iterable[Episode]) -> None:
        self._episodes |= {(e.scene, e.task, e.seed): e for e in episodes}

    def missing(self, scene: str, task: str, seeds: range) -> tuple[int, ...]:
        return tuple(seed for seed in seeds if (scene, task, seed) not in self._episodes)

    def of(self, scene: str, task: str, seeds: range) -> list[Episode]:
        return [self._episodes[scene, task, seed] for seed in seeds]

    def all(self, scenes: Sequence[str], tasks: Sequence[str]) -> list[Episode]:
        """Return all episodes of these scenes and tasks, in order."""
        order = [(scene, task) for scene in scenes for task in tasks]
        found = [e for e in self._episodes.values() if (e.scene, e.task) in order]
        return sorted(found, key=lambda e: (order.index((e.scene, e.task)), e.seed))

    def add(self, episodes: Sequence[Episode]) -> None:
        self._index(episodes)
        if self.file is not None and episodes:
            with self.file.open("a", encoding="utf-8") as stream:
                stream.writelines(json.dumps(asdict(episode)) + "\n" for episode in episodes)


# ---- in worker processes ----


def table_job(job: tuple[str, str, str, Sequence[int], Noise]) -> list[Episode]:
    """Run all episodes of one task in one scene."""
    environment, scene, task, seeds, noise = job
    if not seeds:
        return []
    env, oracle = make_env(environment, scene), TaskOracle()
    return [run_episode(env, oracle, task, seed, noise) for seed in seeds]


def chain_job(job: tuple[str, str, tuple[tuple[int, Chain], ...], Noise | None]) -> list[ChainResult]:
    """Run some chains in one scene."""
    environment, scene, chains, noise = job
    env, oracle = make_env(environment, scene), TaskOracle()
    return [run_chain(env, oracle, chain, index, noise) for index, chain in chains]


def _map(function: Callable[[Any], list[Any]], jobs: Sequence[Any], workers: int) -> Iterable[list[Any]]:
    if workers <= 1:
        yield from map(function, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(function, jobs)


def success_table(
    scenes: Sequence[str],
    tasks: Sequence[str],
    seeds: range,
    noise: Noise = QUIET,
    workers: int = 1,
    environment: str = "desk",
    records: Records | None = None,
) -> list[Episode]:
    """Run every task with every seed in every scene that `records` does not have, and print each result.

    Returns all episodes of these scenes and tasks that `records` then has, also those of other seeds.
    """
    records = Records(None, environment, noise) if records is None else records
    jobs = [
        (environment, scene, task, records.missing(scene, task, seeds), noise) for scene in scenes for task in tasks
    ]
    bar = progress_bar(zip(jobs, _map(table_job, jobs, workers), strict=True), total=len(jobs), unit="task")
    for (_, scene, task, _, _), some in bar:
        records.add(some)
        bar.write(f"{scene}  {task:26s} {_summary(records.of(scene, task, seeds))}")
    return records.all(scenes, tasks)


def _summary(episodes: Sequence[Episode]) -> str:
    succeeded = [e.steps for e in episodes if e.success]
    failed = ", ".join(f"seed {e.seed} after {e.steps} steps" for e in episodes if not e.success)
    steps = f"median {statistics.median(succeeded):3.0f}  longest {max(succeeded):3d}" if succeeded else " " * 24
    return f"{len(succeeded):3d}/{len(episodes)}  steps {steps}" + (f"  failed: {failed}" if failed else "")


def chain_lengths(
    scene: str, chains: int, noise: Noise | None, workers: int = 1, seed: int = 0, environment: str = "desk"
) -> list[ChainResult]:
    """Run `chains` chains of five of all tasks in one scene."""
    numbered = tuple(enumerate(desk_sequences(chains, EXPERT_TASKS, seed)))
    share = max(1, len(numbered) // (4 * max(1, workers)))
    jobs = [(environment, scene, numbered[i : i + share], noise) for i in range(0, len(numbered), share)]
    found: list[ChainResult] = []
    with progress_bar(total=len(numbered), desc=f"chains in scene {scene}", unit="chain") as bar:
        for some in _map(chain_job, jobs, workers):
            found += some
            bar.update(len(some))
    return found


def average(results: Sequence[ChainResult]) -> float:
    """Return the average chain length."""
    return sum(r.done for r in results) / len(results)


def _print_chains(name: str, results: Sequence[ChainResult]) -> None:
    rates = [sum(r.done > k for r in results) / len(results) for k in range(len(results[0].tasks))]
    shares = " ".join(f"{rate:.2f}" for rate in rates)
    print(f"{name}: average chain length {average(results):.2f} over {len(results)} chains ({shares})")
    for r in results if average(results) > 1 else ():
        if r.done < len(r.tasks):
            failed = f"{r.tasks[r.done]} failed after {', '.join(r.tasks[: r.done]) or 'the start'}"
            print(f"    chain {r.index}: {failed}")


# ---- the report ----


TITLES = {"desk": "Experts on the desk", "calvin": "Experts in the real CALVIN"}
LAYOUTS = {"desk": "and the layout's constants", "calvin": "and the layout that calvin_env's files give"}


def markdown(
    episodes: Sequence[Episode],
    chains: dict[str, list[ChainResult]],
    command: str,
    noise: Noise = QUIET,
    environment: str = "desk",
) -> str:
    """Return the results as a Markdown page."""
    lines = [
        f"# {TITLES[environment]}",
        "",
        f"Written by `{command}` on {time.strftime('%Y-%m-%d')}, {os.cpu_count()} CPU cores; "
        f"{'no noise' if noise == QUIET else _describe(noise)} unless stated.",
        "",
        "The experts are scripted controllers (`policy_rollout/desk/experts/`). They read `robot_obs`, `scene_obs`",
        f"{LAYOUTS[environment]}, and act through the 7-d relative action only. An episode succeeds if the task",
        "oracle agrees within 360 steps of 1/30 s; single tasks start from random states in which they can be done,",
        "chains from CALVIN's initial states. Random actions are uniform in [-1, 1].",
    ]
    if chains:
        lines += ["", "## Chains of five", "", "| actor, scene | chains | average length | 1 | 2 | 3 | 4 | 5 |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
        for name, results in chains.items():
            rates = " | ".join(f"{sum(r.done > k for r in results) / len(results):.2f}" for k in range(5))
            lines.append(f"| {name} | {len(results)} | {average(results):.2f} | {rates} |")
        ended = [(name, r) for name, rs in chains.items() if average(rs) > 1 for r in rs if r.done < len(r.tasks)]
        lines += ["", "Chains that ended early:", ""] if ended else []
        lines += [
            f"* {name}, chain {r.index}: {r.tasks[r.done]} (after {', '.join(r.tasks[: r.done]) or 'the start'})"
            for name, r in ended
        ]
    if episodes:
        lines += ["", "## Single tasks", "", *_task_rows(episodes)]
        seconds, steps = sum(e.seconds for e in episodes), sum(e.steps for e in episodes)
        lines += ["", f"{steps} control steps with expert and oracle, {steps / seconds:.0f} per CPU second."]
        failed = [e for e in episodes if not e.success]
        lines += ["", "## Failed episodes", ""] if failed else []
        lines += [f"* scene {e.scene}, {e.task}, seed {e.seed}, {e.steps} steps" for e in failed]
    return "\n".join(lines) + "\n"


def _describe(noise: Noise) -> str:
    low, high = noise.burst_steps
    return f"noise {noise.sigma:g} and pushes of {low} to {high} steps at {noise.burst_rate:g} a step"


def _task_rows(episodes: Sequence[Episode]) -> list[str]:
    scenes = sorted({e.scene for e in episodes})
    last = scenes[-1]
    rows = [
        "| task | " + " | ".join(scenes) + f" | median steps ({last}) | longest ({last}) |",
        "|---" * (len(scenes) + 3) + "|",
    ]
    for task in dict.fromkeys(e.task for e in episodes):
        cells = []
        for scene in scenes:
            some = [e.success for e in episodes if e.task == task and e.scene == scene]
            cells.append(f"{sum(some)}/{len(some)}")
        steps = [e.steps for e in episodes if e.task == task and e.scene == last and e.success]
        times = f"{statistics.median(steps):.0f} | {max(steps)}" if steps else "- | -"
        rows.append(f"| {task} | {' | '.join(cells)} | {times} |")
    totals = [sum(e.success for e in episodes if e.scene == s) for s in scenes]
    counts = [sum(e.scene == s for e in episodes) for s in scenes]
    rows.append("| all | " + " | ".join(f"{a}/{b}" for a, b in zip(totals, counts, strict=True)) + " | | |")
    return rows


PROGRAM = "python -m policy_rollout.desk.experts"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--environment", choices=ENVIRONMENTS, default="desk", help="desk, or the installed CALVIN")
    parser.add_argument("--table", action="store_true", help="success rate of every task from random feasible states")
    parser.add_argument("--chains", type=whole(0), default=0, metavar="N", help="average length of N chains of five")
    parser.add_argument("--tasks", nargs="*", default=list(EXPERT_TASKS), metavar="TASK", choices=EXPERT_TASKS)
    parser.add_argument("--scenes", default="D", help="of A,B,C,D, separated by commas")
    parser.add_argument("--resets", type=whole(1), default=50, help="episodes per task and scene")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the first reset and of the chains")
    parser.add_argument("--noise", action="store_true", help="disturb the experts as in recordings")
    parser.add_argument("--workers", type=whole(1), default=2, help="processes")
    parser.add_argument(
        "--records",
        type=path_argument,
        metavar="FILE",
        help="keep the table's episodes here, resume from them, and show all of them",
    )
    parser.add_argument("--markdown", type=path_argument, metavar="FILE", help="also write the results to this file")
    return parser


def _chains(args: argparse.Namespace, scenes: Sequence[str], noise: Noise) -> dict[str, list[ChainResult]]:
    """Run the chains of all scenes with the experts, and in the last one with noise and with random actions."""
    for scene in scenes:
        if args.environment == "calvin" and not has_official_states(make_env(args.environment, scene).layout):
            raise ValueError(
                f"--chains start from CALVIN's initial states, in which blocks of scene {scene} do not fit"
            )

    def run(scene: str, noise: Noise | None) -> list[ChainResult]:
        return chain_lengths(scene, args.chains, noise, args.workers, args.seed, args.environment)

    chains = {f"experts, {scene}": run(scene, noise) for scene in scenes}
    chains[f"experts with {_describe(PLAY)}, {scenes[-1]}"] = run(scenes[-1], PLAY)
    chains[f"random actions, {scenes[-1]}"] = run(scenes[-1], None)
    return chains


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = _parser()
    args = parser.parse_args(argv)
    scenes = [scene for scene in args.scenes.split(",") if scene]
    if unknown := [scene for scene in scenes if scene not in SCENES]:
        parser.error(f"--scenes: {unknown[0]!r} is not a scene; allowed are {', '.join(SCENES)}")
    if not args.table and args.chains < 1:
        parser.error("nothing to do; give --table, --chains N, or both")
    noise = PLAY if args.noise else QUIET
    seeds = range(args.seed, args.seed + args.resets)
    try:
        check_world(args.environment)
        records = Records(args.records, args.environment, noise)
        chains = _chains(args, scenes, noise) if args.chains else {}
    except ValueError as error:
        parser.error(str(error))
    episodes = (
        success_table(scenes, args.tasks, seeds, noise, args.workers, args.environment, records) if args.table else []
    )
    for name, results in chains.items():
        _print_chains(name, results)
    if args.markdown is not None:
        shown = " ".join(argv) if argv is not None else " ".join(sys.argv[1:])
        write_text(args.markdown, markdown(episodes, chains, f"{PROGRAM} {shown}", noise, args.environment))
        print(f"written: {args.markdown}")
    print_next("blockdiff-vla record --out DIR --episodes 200")

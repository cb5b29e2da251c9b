"""Doors and lights of the desk: the eight tasks that small models are recorded on, trained on and evaluated in."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from policy_rollout.benchmarks.desk import DeskBenchmark
from policy_rollout.calvin.initial_states import initial_state
from policy_rollout.calvin.instructions import validation_instruction
from policy_rollout.calvin.sequences import desk_sequences
from policy_rollout.calvin.tasks import DOORS_AND_LIGHTS
from policy_rollout.closed_loop.interface import ChainJob, ChainRecord
from policy_rollout.closed_loop.runner import run_chains
from policy_rollout.closed_loop.single_task import Episode, Rollout, run_episodes
from policy_rollout.desk.env import DeskEnv
from policy_rollout.desk.experts.evaluate import run_chain, run_episode
from policy_rollout.desk.experts.policy import QUIET, task_resets
from policy_rollout.policies.interface import Policy

SCENE = "D"
STATIC_SIZE = 128
"""Pixels of the static camera, in recordings and in closed loop."""
TASKS = DOORS_AND_LIGHTS
"""Tasks that a model of this size begins to learn in a few minutes."""
CHAIN_LENGTH = 3
"""A chain has no two tasks of one kind, and these tasks are of three kinds: drawer, sliding door, lights."""
MAX_STEPS = 120
"""Control steps (30 a second) for one task; an expert needs 15 to 45."""
REPLAN_EVERY = 5
FIRST_SEED = 1000
"""Seed of the first episode's reset; recordings draw theirs from 2^31 others."""

DESK = DeskBenchmark(scene=SCENE, static_size=STATIC_SIZE)


def rules() -> dict[str, Any]:
    """Return everything that outcomes depend on, except the policy and the number of episodes."""
    settings = {"tasks": list(TASKS), "chain_length": CHAIN_LENGTH, "patience": MAX_STEPS, "replan_every": REPLAN_EVERY}
    return {**settings, "first_seed": FIRST_SEED, "desk": DESK.stamp()}


def episodes(count: int, wrong_instruction: bool = False) -> list[Episode]:
    """Return single tasks in turn, each with its own reset and the instruction that the recordings use.

    With ``wrong_instruction`` each episode has the instruction of another of the tasks (each of the others equally
    often), and its success is still that of its own task: this measures a policy that sees the desk but does not know
    the task.
    """
    found = []
    for index in range(count):
        task = TASKS[index % len(TASKS)]
        robot, scene = task_resets(task, FIRST_SEED + index, SCENE)
        offset = 1 + index // len(TASKS) % (len(TASKS) - 1)
        instructed = TASKS[(index + offset) % len(TASKS)] if wrong_instruction else task
        found.append(Episode(index, task, validation_instruction(instructed), robot, scene))
    return found


def chains(count: int) -> list[ChainJob]:
    """Return chains of three tasks, by CALVIN's rules and from its initial states; fewer are a prefix of more."""
    jobs = []
    for index, chain in enumerate(desk_sequences(count, TASKS, length=CHAIN_LENGTH)):
        robot, scene = initial_state(chain.state)
        jobs.append(ChainJob(index, chain.tasks, tuple(map(validation_instruction, chain.tasks)), robot, scene))
    return jobs


def run_policy_episodes(
    policy: Policy,
    wanted: list[Episode],
    progress: Callable[[object], None] = lambda record: None,
    film: Collection[int] = (),
) -> Rollout:
    """Run single tasks in closed loop; ``film``: indices of the episodes whose frames are kept."""
    return run_episodes(
        DESK.make_env,
        policy,
        wanted,
        DESK.oracle(),
        max_steps=MAX_STEPS,
        replan_every=REPLAN_EVERY,
        parallel=16,
        record=film,
        progress=progress,
    )


def run_policy_chains(
    policy: Policy, jobs: list[ChainJob], progress: Callable[[object], None] = lambda record: None
) -> list[int]:
    """Return the number of tasks completed in each chain, in the order of ``jobs``."""
    done: dict[int, int] = {}

    def finished(record: ChainRecord) -> None:
        done[record.index] = record.completed
        progress(record)

    run_chains(DESK, policy, jobs, finished, max_steps=MAX_STEPS, replan_every=REPLAN_EVERY, parallel=16)
    return [done[job.index] for job in jobs]


def run_expert_episodes(count: int) -> list[bool]:
    """Return for each episode whether a scripted expert succeeds, from the same reset within the same MAX_STEPS."""
    env, oracle = DeskEnv(SCENE), DESK.oracle()
    try:
        results = [run_episode(env, oracle, TASKS[i % len(TASKS)], FIRST_SEED + i, QUIET) for i in range(count)]
    finally:
        env.close()
    return [result.success and result.steps <= MAX_STEPS for result in results]


def run_expert_chains(count: int) -> list[int]:
    """Return the number of tasks that the experts complete in each chain (with CALVIN's 360 steps for a task)."""
    env, oracle = DeskEnv(SCENE), DESK.oracle()
    try:
        return [
            run_chain(env, oracle, chain, index, QUIET).done
            for index, chain in enumerate(desk_sequences(count, TASKS, length=CHAIN_LENGTH))
        ]
    finally:
        env.close()

"""Doors and lights of the desk: the eight tasks that small models are recorded on, trained on and judged in."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np

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
"""Pixels of the static camera, in recordings and in closed loop alike."""
TASKS = DOORS_AND_LIGHTS
"""What a model of this size can begin to learn in a few minutes."""
CHAIN_LENGTH = 3
"""A chain has no two tasks of one kind, and these are of three kinds: drawer, sliding door, lights."""
PATIENCE = 120
"""Control steps (30 a second) for one task; an expert needs 15 to 45."""
REPLAN_EVERY = 5
FIRST_SEED = 1000
"""Of the resets that episodes start from; recordings draw theirs from 2^31 others."""

DESK = DeskBenchmark(scene=SCENE, static_size=STATIC_SIZE)


def rules() -> dict[str, Any]:
    """What outcomes depend on besides who plays and how often."""
    played = {"tasks": list(TASKS), "chain_length": CHAIN_LENGTH, "patience": PATIENCE, "replan_every": REPLAN_EVERY}
    return {**played, "first_seed": FIRST_SEED, "desk": DESK.stamp()}


def episodes(count: int, told_another: bool = False) -> list[Episode]:
    """Single tasks in turn, each from a reset of its own, told in the words that the recordings use.

    ``told_another``: every episode is told the sentence of another of the tasks (each of the others equally often), and
    still judged by its own: what a policy does that sees the desk and does not know what is wanted.
    """
    found = []
    for index in range(count):
        task = TASKS[index % len(TASKS)]
        robot, scene = task_resets(task, FIRST_SEED + index, SCENE)
        further = 1 + index // len(TASKS) % (len(TASKS) - 1)
        told = TASKS[(index + further) % len(TASKS)] if told_another else task
        found.append(Episode(index, task, validation_instruction(told), robot, scene))
    return found


def chains(count: int) -> list[ChainJob]:
    """Chains of three of the tasks, by CALVIN's rules and from its initial states; fewer are a prefix of more."""
    jobs = []
    for index, chain in enumerate(desk_sequences(count, TASKS, length=CHAIN_LENGTH)):
        robot, scene = initial_state(chain.state)
        jobs.append(ChainJob(index, chain.tasks, tuple(map(validation_instruction, chain.tasks)), robot, scene))
    return jobs


def play_episodes(
    policy: Policy,
    wanted: list[Episode],
    progress: Callable[[object], None] = lambda record: None,
    film: Collection[int] = (),
) -> Rollout:
    """Single tasks in closed loop."""
    return run_episodes(
        DESK.make_env,
        policy,
        wanted,
        DESK.oracle(),
        max_steps=PATIENCE,
        replan_every=REPLAN_EVERY,
        parallel=16,
        record=film,
        progress=progress,
    )


def play_chains(
    policy: Policy, jobs: list[ChainJob], progress: Callable[[object], None] = lambda record: None
) -> list[int]:
    """How many tasks of every chain were done, in the order of ``jobs``."""
    done: dict[int, int] = {}

    def finished(record: ChainRecord) -> None:
        done[record.index] = record.completed
        progress(record)

    run_chains(DESK, policy, jobs, finished, max_steps=PATIENCE, replan_every=REPLAN_EVERY, parallel=16)
    return [done[job.index] for job in jobs]


def expert_episodes(count: int) -> list[bool]:
    """Do the scripted experts the same tasks from the same resets, within the same patience?"""
    env, oracle = DeskEnv(SCENE), DESK.oracle()
    try:
        tried = [run_episode(env, oracle, TASKS[i % len(TASKS)], FIRST_SEED + i, QUIET) for i in range(count)]
    finally:
        env.close()
    return [one.success and one.steps <= PATIENCE for one in tried]


def expert_chains(count: int) -> list[int]:
    """How many tasks of the same chains the experts do (with CALVIN's 360 steps for each)."""
    env, oracle = DeskEnv(SCENE), DESK.oracle()
    try:
        found = [
            run_chain(env, oracle, chain, index, QUIET).done
            for index, chain in enumerate(desk_sequences(count, TASKS, length=CHAIN_LENGTH))
        ]
    finally:
        env.close()
    return found


def outcomes(rollout: Rollout) -> np.ndarray:
    """[episodes] 1 where the task was done."""
    return np.array([record.success for record in rollout.records], dtype=float)

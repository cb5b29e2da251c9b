"""Results of a closed loop that was never played."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from policy_rollout.closed_loop.interface import ChainRecord
from policy_rollout.closed_loop.records import write_results

TASKS = ("open_drawer", "lift_red_block_table", "turn_on_led", "push_blue_block_left", "close_drawer")
BENCHMARK = {"name": "desk", "scene": "D", "renderer": "raycast", "versions": {"mujoco": "3.2"}}
SETTINGS = {
    "checkpoint_sha256": "a" * 64,
    "benchmark": BENCHMARK,
    "ep_len": 360,
    "num_sequences": 40,
    "replan_every": None,
}


def chain(index: int, completed: int) -> ChainRecord:
    tasks = tuple(TASKS[(index + place) % len(TASKS)] for place in range(5))
    steps = tuple(40 + 7 * ((index + place) % 5) for place in range(completed))
    return ChainRecord(index, tasks, completed, steps if completed == 5 else (*steps, 360))


def write(folder: Path, completed: Sequence[int], **settings: Any) -> Path:
    """``folder/results.json`` with a chain for each of the numbers of tasks done."""
    folder.mkdir(parents=True, exist_ok=True)
    write_results(folder, [chain(i, done) for i, done in enumerate(completed)], {**SETTINGS, **settings})
    return folder


def drawn(seed: int, rate: float, count: int = 40) -> list[int]:
    """Tasks done in chains where each task succeeds at ``rate``."""
    fails = np.random.default_rng(seed).random((count, 5)) >= rate
    return [int(row.argmax()) if row.any() else 5 for row in fails]

"""Processes that write shards share the cores of the machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from preprocess_data.jobs.shard_writer import ShardTask, write_shards
from training.data.formats.shards import LEAST_ROWS, Plan, ShardWriter, begin


def write_threads(task: ShardTask[None], tick: Callable[[int], object] = lambda done: None) -> None:
    """Write the number of torch's threads into every row."""
    for shard in task.shards:
        writer = ShardWriter(task.folder, task.plan, shard)
        count = len(task.plan.rows_of(shard))
        writer.add({"threads": np.full((count, 1), torch.get_num_threads())})
        writer.close({})
        tick(count)
        (task.folder / f"threads_{shard}").write_text(str(torch.get_num_threads()))


@pytest.mark.parametrize("processes", [1, 2])
def test_torch_has_the_share_of_the_cores_of_a_process(
    processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores = os.cpu_count() or 1
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    plan, here = Plan.of(2 * LEAST_ROWS, {"threads": ("<i2", (1,))}, {"kind": "numbers"}), torch.get_num_threads()
    begin(tmp_path, plan)
    write_shards(ShardTask(None, tmp_path, plan), (0, 1), processes, "shards", write_threads, progress=False)
    found = {int(file.read_text()) for file in tmp_path.glob("threads_*")}
    assert found == ({here} if processes == 1 else {max(1, cores // 2)})
    assert torch.get_num_threads() == here, "this process keeps its threads"

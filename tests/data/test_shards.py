"""Rows in mapped files: what is not of one cache alone."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np

from training.data.formats import shards
from training.data.formats.shards import Plan, Rows, ShardWriter, begin, finish


def test_more_shards_may_be_open_than_a_process_usually_may_have_files(tmp_path: Path) -> None:
    plan = Plan.of(40 * shards.LEAST_ROWS, {"a": ("<i2", (3,))}, {"kind": "numbers"})
    begin(tmp_path, plan)
    for shard in range(plan.shards):
        writer = ShardWriter(tmp_path, plan, shard)
        writer.add({"a": np.full((len(plan.rows_of(shard)), 3), shard)})
        writer.close({})
    assert finish(tmp_path, plan) == 0
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, before[1]))
    try:
        rows = Rows(tmp_path, plan)
        assert [int(rows.row("a", shard * plan.shard_rows)[0]) for shard in range(plan.shards)] == list(range(40))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)

"""Going on exactly: every objective under every way to share the work, and with another number of processes."""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.faults.fleet import ALONE, DDP, ZERO2, Launch
from tests.faults.kinds import kill_at_random
from tests.faults.world import STEPS, Broken, Count, Small
from training.data.sampling_order import StepSampler, flow_seed

SHARED = {"robot": 16, "mmu": 6}
"""Samples of the two data sets of ``tests.training.world``."""


def exact(
    root: Path, world: Path, kills: int, rng: random.Random, launches: Sequence[Launch] = (ALONE, DDP, ZERO2)
) -> Count:
    """ar, mdm and bd, plain, DDP and ZeRO-2: killed, gone on with, and the bytes of the undisturbed run at the end."""
    total = Count("`kill -9`, every objective under every way to share the work")
    for objective, launch in itertools.product(("ar", "mdm", "bd"), launches):
        quiet = Small(world, root / "matrix-quiet", objective, launch)
        quiet.forget()
        quiet.finish()
        small = replace(quiet, folder=root / "matrix", workers=1)
        count = kill_at_random(small, quiet.left(), kills, rng)
        total.tried, total.survived = total.tried + count.tried, total.survived + count.survived
        total.note(f"{objective} {launch.describe()}", count.survived)
    return total


def other_processes(small: Small, orders: Sequence[tuple[Launch, int]]) -> Count:
    """Go on with another number of processes, in the middle of an epoch and of a batch: (launch, steps until which).
    The samples that were taken, as recorded in the processes, are those of the data's stream, each in its turn."""
    count = Count(f"gone on with {' then '.join(str(launch.processes) for launch, _ in orders)} processes")
    small.forget()
    streams: dict[str, list[int]] = {"robot": [], "mmu": []}
    first = 1
    for launch, last in orders:
        folder = small.folder.with_name(f"{small.folder.name}-taken-{first}")
        folder.mkdir()
        now = replace(small, launch=launch, more=("training.batch_size_pre=3", f"training.max_train_steps={last}"))
        fleet = now.start(prepare=lambda folder=folder: _write_down_what_is_taken(folder))
        fleet.wait()
        if set(fleet.codes.values()) != {0}:
            raise Broken(f"ended with {fleet.codes}\n{fleet.said()[-3000:]}")
        if first > 1:
            count.tried += 1
            if (
                "note: from here on not bit for bit" not in fleet.said()
                or f"processes {launch.processes} (was" not in fleet.said()
            ):
                raise Broken(f"it did not say what is no longer bit-equal:\n{fleet.said()[-2000:]}")
        ranks = [_taken(folder / str(rank)) for rank in range(launch.processes)]
        for step in range(first, last + 1):
            for of_ranks in zip(*(rank[step] for rank in ranks), strict=True):
                for flow, stream in streams.items():
                    rows = zip(*(batch[flow] for batch in of_ranks), strict=True)
                    stream.extend(index for row in rows for index in row)
        first = last + 1
    for flow, seed in (("robot", flow_seed(10086, "robot")), ("mmu", flow_seed(10086, "mmu"))):
        alone = StepSampler(SHARED[flow], 1, seed)
        expected = [alone.batch(place)[0] for place in range(len(streams[flow]))]
        if streams[flow] != expected:
            raise Broken(f"{flow}: samples {streams[flow]} instead of {expected}")
        count.note(f"{flow} samples in their turn", len(expected))
    count.survived = count.tried
    return count


def _write_down_what_is_taken(folder: Path) -> None:
    from training.failure.run_guard import RunGuard

    read = RunGuard.read

    def recording(self: RunGuard, batches: Any, number: int, step: int) -> Any:
        taken = read(self, batches, number, step)
        names = [{"robot": b.robot.indices.tolist(), "mmu": b.text.indices.tolist()} for b in taken]
        with (folder / os.environ.get("RANK", "0")).open("a") as file:
            file.write(json.dumps([step, names]) + "\n")
        return taken

    RunGuard.read = recording  # type: ignore[method-assign]


def _taken(file: Path) -> dict[int, list[dict[str, list[int]]]]:
    return dict(map(json.loads, file.read_text(encoding="utf-8").splitlines()))


ORDERS = ((DDP, 2), (ALONE, 5), (DDP, STEPS))

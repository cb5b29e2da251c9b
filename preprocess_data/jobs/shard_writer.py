"""Write the shards of a plan, divided among ranks and processes, with a progress bar, resumably."""

from __future__ import annotations

import argparse
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any, Generic, Protocol, TypeVar

import torch

from common.arguments import command_parser, path_argument
from common.command import progress_bar
from common.files import reason_of
from common.folder_lock import hold, live_owners
from common.processes import process_rank, shown_variables
from config.loading import load_job
from config.schema import Job
from preprocess_data.jobs.workers import in_processes
from training.data.formats.shards import Plan, finish, has_shard, is_whole

AHEAD = 2
"""Batches that are read while another one is processed."""
Row = TypeVar("Row")
Settings = TypeVar("Settings")


@dataclass(frozen=True)
class ShardTask(Generic[Settings]):
    """The shards of a plan that one process writes.

    ``rows``: the source of each row of the plan; ``process``: the process's number of ``processes`` of this rank.
    """

    settings: Settings
    folder: Path
    plan: Plan
    rows: Sequence[Any] = ()
    shards: tuple[int, ...] = ()
    process: int = 0
    processes: int = 1


class WriteShards(Protocol[Settings]):
    """A module-level function that writes the shards of a task; it calls ``tick`` with the number of new rows."""

    def __call__(self, task: ShardTask[Settings], /, tick: Callable[[int], object] = ...) -> None: ...


@contextmanager
def lock_plan(folder: Path, plan: Plan, ranks: tuple[int, int], command: str, option: str) -> Iterator[None]:
    """Lock this rank's part of a plan's folder, to which the other ranks of the plan write at the same time.

    A complete folder is not locked, since nothing is written to it; it may be read-only.
    Raises ValueError if another process has the rank or writes another plan, or if the folder is not writable.
    """
    if is_whole(folder, plan):
        yield
        return
    rank, world = ranks
    purpose = f"{command} (plan {plan.digest})"
    with ExitStack() as locks:
        try:
            locks.enter_context(hold(folder, f"{purpose}, rank {rank} of {world}", option, f".rank-{rank}.lock"))
        except OSError as error:
            raise ValueError(f"{option}{folder}: cannot be written to ({reason_of(error)}); give another") from None
        for other in live_owners(folder):
            if not other.purpose.startswith(purpose):
                raise ValueError(
                    f"{option}{folder} is in use by {other}, this is plan {plan.digest}; give another {option.strip()}"
                )
        yield


def write_shards(
    task: ShardTask[Settings],
    ranks: tuple[int, int],
    processes: int,
    label: str,
    write: WriteShards[Settings],
    progress: bool = True,
) -> str | None:
    """Write the missing shards of this rank (number, world size).

    Returns None if the folder is then complete, else a line about the shards of other ranks that are missing.
    """
    folder, plan = task.folder, task.plan
    own = range(ranks[0], plan.shards, ranks[1])
    missing = [shard for shard in own if not has_shard(folder, plan, shard)]
    total, remaining = (sum(len(plan.rows_of(shard)) for shard in shards) for shards in (own, missing))
    count = max(1, min(processes, len(missing)))
    tasks = [
        replace(task, shards=tuple(missing[number::count]), process=number, processes=processes)
        for number in range(count)
        if missing
    ]
    with progress_bar(
        desc=label, total=total, initial=total - remaining, unit="frame", disable=not progress, smoothing=0.1
    ) as bar:
        if len(tasks) == 1:
            write(tasks[0], tick=bar.update)
        elif tasks:
            with _ShardMonitor(folder, plan, missing, bar):
                for _ in in_processes(partial(_write_in_process, write), tasks, count):
                    pass
    others = finish(folder, plan)
    if not others:
        return None
    variables = shown_variables(os.environ, process_rank(os.environ).variables)
    why = f"; ranks are those of {variables} in the environment" if variables else ""
    return f"{folder}: this rank's part is done; {others} of {plan.shards} shards (of other ranks) are missing{why}"


def _write_in_process(write: WriteShards[Settings], task: ShardTask[Settings]) -> None:
    """Write the shards of a task in a process of its own, with its share of the cores.

    Processes with a thread of torch for every core wait for each other's threads.
    """
    torch.set_num_threads(min(torch.get_num_threads(), max(1, (os.cpu_count() or 1) // task.processes)))
    write(task)


class _ShardMonitor:
    """Advances a progress bar by the shards that other processes write."""

    def __init__(self, folder: Path, plan: Plan, missing: Sequence[int], bar: Any) -> None:
        self._end = Event()
        self._thread = Thread(target=self._follow, args=(folder, plan, set(missing), bar), daemon=True)

    def _follow(self, folder: Path, plan: Plan, missing: set[int], bar: Any) -> None:
        last = False
        while not last:
            last = self._end.wait(1.0)
            for shard in [shard for shard in missing if has_shard(folder, plan, shard)]:
                missing.discard(shard)
                bar.update(len(plan.rows_of(shard)))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()


def read_batches(read: Callable[[int], Row], rows: range, size: int, pool: ThreadPoolExecutor) -> Iterator[list[Row]]:
    """Yield batches of rows in order while threads read the next ones (decoding and resizing release the GIL)."""
    batches = iter([rows[start : start + size] for start in range(0, len(rows), size)])
    queue: deque[list[Future[Row]]] = deque()

    def submit_next() -> None:
        if (batch := next(batches, None)) is not None:
            queue.append([pool.submit(read, row) for row in batch])

    for _ in range(AHEAD):
        submit_next()
    while queue:
        submit_next()
        yield [future.result() for future in queue.popleft()]


# ------------------------------------------------------------------------------------------------------------- options
Group = argparse._ArgumentGroup  # noqa: SLF001 - the type of a public method's result


def cache_parser(
    description: str, epilog: str, run: str, data: str, output: str, batch: int
) -> tuple[argparse.ArgumentParser, Group, Group]:
    """Return the parser of a command that writes caches, with its groups "data" and "computation".

    Args:
        description: Text above the options.
        epilog: Text below the options.
        run: What is taken from a run's configuration.
        data: Help of ``--data``.
        output: Default of ``--output``.
        batch: Default of ``--batch-size``.
    """
    made = command_parser(description, epilog)
    inputs = made.add_argument_group("data")
    inputs.add_argument("--config", metavar="YAML", help=f"a run's configuration, for {run}")
    inputs.add_argument("overrides", nargs="*", metavar="key=value", help="with --config: as for training")
    inputs.add_argument("--data", type=path_argument, nargs="+", metavar="PATH", help=data)
    compute = made.add_argument_group("computation")
    compute.add_argument(
        "--output-dir",
        "--output",
        dest="output",
        type=path_argument,
        metavar="DIR",
        help=f"folder of the caches (default: {output})",
    )
    compute.add_argument("--device", default="auto", help="auto, cpu, cuda (all of them) or cuda:<n>")
    compute.add_argument("--batch-size", type=int, default=batch, metavar="N", help=f"images of a batch ({batch})")
    rank_options(compute)
    return made, inputs, compute


def run_job(options: argparse.Namespace) -> Job | None:
    """Return the job of ``--config`` and its overrides, or None. Raise ValueError for overrides without it."""
    if options.config is not None:
        return load_job([f"config={options.config}", *options.overrides])
    if options.overrides:
        raise ValueError(f"{options.overrides[0]}: settings of a run need --config")
    return None


def rank_options(group: Group) -> None:
    """Add ``--processes``, ``--readers``, ``--rank`` and ``--world``."""
    group.add_argument("--processes", type=int, default=1, metavar="N", help="processes (default 1)")
    group.add_argument("--readers", type=int, default=4, metavar="N", help="reading threads of each (default 4)")
    group.add_argument("--rank", type=int, help="this rank (default: from Slurm's or torchrun's environment, else 0)")
    group.add_argument("--world", type=int, help="number of ranks")


def rank_and_world(options: argparse.Namespace) -> tuple[int, int]:
    """Return the given rank and world size, else the launcher's. Raise ``ValueError`` if they contradict each other."""
    if (options.rank is None) != (options.world is None):
        raise ValueError("--rank and --world go together")
    if options.rank is None:
        launched = process_rank(os.environ)
        return launched.rank, launched.world
    if not 0 <= options.rank < options.world:
        raise ValueError(f"--rank {options.rank} --world {options.world}: a rank is at least 0 and less than the world")
    return options.rank, options.world


def process_device(device: str, process: int, processes: int) -> str:
    """Return the device of a process: ``cuda`` means all GPUs in turn, ``auto`` these or, without a GPU, the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device != "cuda":
        return device
    rank = process_rank(os.environ).local_rank
    return f"cuda:{(rank * processes + process) % torch.cuda.device_count()}"


def require_at_least(options: argparse.Namespace, **bounds: int) -> None:
    """Raise ValueError for an option below its bound."""
    for name, bound in bounds.items():
        value = getattr(options, name)
        if value is not None and value < bound:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {bound}, is {value}")

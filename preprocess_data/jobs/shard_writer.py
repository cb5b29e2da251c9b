"""Writing the shards of a plan: dealt out to ranks and processes, with a bar, and not twice when killed."""

from __future__ import annotations

import argparse
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any, Generic, Protocol, TypeVar

import torch
from tqdm import tqdm

from common.files import reason_of
from common.folder_lock import hold, live_owners
from common.processes import process_rank, shown_variables
from preprocess_data.jobs.workers import in_processes
from training.data.formats.shards import Plan, finish, has_shard, is_whole

AHEAD = 2  # batches that are read while one is worked on
Share = TypeVar("Share")
Share_contra = TypeVar("Share_contra", contravariant=True)
Row = TypeVar("Row")
Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Part(Generic[Settings]):
    """What one process does: these shards of a plan, as the settings say."""

    settings: Settings
    folder: Path
    plan: Plan
    shards: tuple[int, ...]


class Write(Protocol[Share_contra]):
    """A module's own function that writes the shards of a share, telling ``tick`` of rows."""

    def __call__(self, share: Share_contra, /, tick: Callable[[int], object] = ...) -> None: ...


@contextmanager
def writing(folder: Path, plan: Plan, ranks: tuple[int, int], command: str, option: str) -> Iterator[None]:
    """Hold this rank's part of a plan's folder, which the other ranks of the plan write to at the same time. A folder
    that is whole is not written to any more, and so may be read-only.

    Raises ValueError where another process has the rank or writes another plan, or where the folder cannot be written.
    """
    if is_whole(folder, plan):
        yield
        return
    rank, world = ranks
    purpose = f"{command} (plan {plan.digest})"
    with ExitStack() as held:
        try:
            held.enter_context(hold(folder, f"{purpose}, rank {rank} of {world}", option, f".rank-{rank}.lock"))
        except OSError as error:
            raise ValueError(f"{option}{folder}: cannot be written to ({reason_of(error)}); give another") from None
        for other in live_owners(folder):
            if not other.purpose.startswith(purpose):
                raise ValueError(
                    f"{option}{folder} is in use by {other}, this is plan {plan.digest}; give another {option.strip()}"
                )
        yield


def write_all(
    folder: Path,
    plan: Plan,
    ranks: tuple[int, int],
    processes: int,
    label: str,
    share: Callable[[tuple[int, ...], int], Share],
    write: Write[Share],
    progress: bool = True,
) -> int:
    """Write what this rank (``ranks``: which, of how many) is to write and is not there; how many shards the folder
    then still lacks. ``share``: (shards, number of the process) -> what ``write`` takes."""
    rank, world = ranks
    mine = range(rank, plan.shards, world)
    todo = [shard for shard in mine if not has_shard(folder, plan, shard)]
    total, left = (sum(len(plan.rows_of(shard)) for shard in some) for some in (mine, todo))
    count = max(1, min(processes, len(todo)))
    shares = [share(tuple(todo[number::count]), number) for number in range(count) if todo]
    with tqdm(desc=label, total=total, initial=total - left, unit="frame", disable=not progress, smoothing=0.1) as bar:
        if len(shares) == 1:
            write(shares[0], tick=bar.update)
        elif shares:
            with _Watching(folder, plan, todo, bar):
                for _ in in_processes(write, shares, count):
                    pass
    return finish(folder, plan)


def unfinished(folder: Path, plan: Plan, missing: int) -> str:
    """What a rank says that is done before others are."""
    variables = shown_variables(os.environ, process_rank(os.environ).variables)
    why = f"; ranks are those of {variables} in the environment" if variables else ""
    return f"{folder}: this rank's part is done; {missing} of {plan.shards} shards (of other ranks) are missing{why}"


class _Watching:
    """A bar that follows the shards that other processes write."""

    def __init__(self, folder: Path, plan: Plan, todo: Sequence[int], bar: Any) -> None:
        self._end = Event()
        self._thread = Thread(target=self._follow, args=(folder, plan, set(todo), bar), daemon=True)

    def _follow(self, folder: Path, plan: Plan, todo: set[int], bar: Any) -> None:
        last = False
        while not last:
            last = self._end.wait(1.0)
            for shard in [shard for shard in todo if has_shard(folder, plan, shard)]:
                todo.discard(shard)
                bar.update(len(plan.rows_of(shard)))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()


def read_ahead(read: Callable[[int], Row], rows: range, size: int, pool: ThreadPoolExecutor) -> Iterator[list[Row]]:
    """Batches of rows in order, the next ones being read by threads (decoding and resizing let go of Python's lock)."""
    batches = iter([rows[at : at + size] for at in range(0, len(rows), size)])
    waiting: deque[list[Future[Row]]] = deque()

    def more() -> None:
        if (batch := next(batches, None)) is not None:
            waiting.append([pool.submit(read, row) for row in batch])

    for _ in range(AHEAD):
        more()
    while waiting:
        more()
        yield [future.result() for future in waiting.popleft()]


def rank_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--processes", type=int, default=1, metavar="N", help="processes that work (default 1)")
    group.add_argument("--readers", type=int, default=4, metavar="N", help="threads of each that read (default 4)")
    group.add_argument("--rank", type=int, help="which part (default: of Slurm's or torchrun's environment, else 0)")
    group.add_argument("--world", type=int, help="of how many")


def ranks_of(options: argparse.Namespace) -> tuple[int, int]:
    """Return (rank, world) as given, else of the launcher. ``ValueError`` if they contradict each other."""
    if (options.rank is None) != (options.world is None):
        raise ValueError("--rank and --world go together")
    if options.rank is None:
        place = process_rank(os.environ)
        return place.rank, place.world
    if not 0 <= options.rank < options.world:
        raise ValueError(f"--rank {options.rank} --world {options.world}: a rank is at least 0 and less than the world")
    return options.rank, options.world


def process_device(device: str, number: int, processes: int) -> str:
    """Where the process of this number, of ``processes`` of this rank, computes: ``cuda`` stands for all GPUs in turn,
    ``auto`` for them or, where there are none, the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device != "cuda":
        return device
    rank = process_rank(os.environ).local_rank
    return f"cuda:{(rank * processes + number) % torch.cuda.device_count()}"


def least(options: argparse.Namespace, **bounds: int) -> None:
    """Raises ValueError for an option below its bound."""
    for name, bound in bounds.items():
        value = getattr(options, name)
        if value is not None and value < bound:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {bound}, is {value}")

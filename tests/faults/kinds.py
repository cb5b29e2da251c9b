"""The faults: kill, ask to stop, fill the disk, damage files, lose a process. Each function tries one kind.

A fault is survived if the same command, started again, ends with the bytes that the undisturbed run left; if on the way
there no checkpoint with its final name was damaged; and if what was said was one line and no traceback.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.fleet import Fleet
from tests.faults.world import STEPS, Broken, Count, Small
from training.checkpointing.manifest import list_checkpoints, open_checkpoint
from training.failure.preemption import PREEMPTED

Reference = dict[str, Any]
OPERATIONS = 58
"""File operations that ``kill_at_every_write`` goes through: those of a start and of two checkpoints."""
WHOM = {"one": "one process", "all": "all", "workers": "all and their workers"}


def kill_at_random(small: Small, reference: Reference, kills: int, rng: random.Random) -> Count:
    """SIGKILL to all processes of the run at random moments, again and again, until it has been killed so often."""
    count = Count(f"`kill -9` at a random moment, {small.launch.describe()}, {small.workers} data workers")
    small.forget()
    while count.tried < kills:
        fleet = small.start()
        begun = _begins(fleet.log)
        # Mostly while it trains and saves, now and then while it starts; every third aims at a checkpoint.
        ended = fleet.wait(until=begun) if rng.random() < 0.85 else fleet.poll()
        wait = rng.uniform(0.0, 2.0) + fleet.seconds
        if rng.random() < 1 / 3:
            ended = fleet.wait(until=lambda: any(small.folder.glob(".checkpoint-*")))
            wait = rng.uniform(0.0, 0.1) + fleet.seconds
        if ended or fleet.wait(until=_after(fleet, wait)):
            _ended_well(fleet.codes, fleet.said())
            small.must_be_as(reference)
            count.note("runs ended in between, equal to the bit")
            small.forget()
            continue
        writing = any(small.folder.glob(".checkpoint-*"))
        fleet.signal(signal.SIGKILL)
        fleet.wait()
        count.tried += 1
        count.note("while a checkpoint was being written" if writing else "at other moments")
        small.checkpoints_must_be_whole()
        count.survived += 1
    small.finish()
    small.must_be_as(reference)
    count.note("runs ended in between, equal to the bit")
    return count


def kill_at_every_write(small: Small, reference: Reference, every: int) -> Count:
    """SIGKILL just before the n-th time that a run touches a file in its folder: n = 1, 1 + every, ...; the run goes on
    from a checkpoint, writes two, and removes an old one."""
    count = Count(f"`kill -9` before the n-th file operation of a run, {small.launch.describe()}")
    small.forget()
    small.finish(*_until(3))
    kept = small.folder.with_name("kept-at-3")
    shutil.rmtree(kept, ignore_errors=True)
    small.folder.rename(kept)
    for number in range(1, OPERATIONS, every):
        shutil.copytree(kept, small.folder)
        fleet = small.start(prepare=partial(_die_at, small.folder, number))
        fleet.wait()
        if fleet.codes[0] != -signal.SIGKILL:
            raise Broken(f"operation {number}: ended with {fleet.codes}\n{fleet.said()[-2000:]}")
        count.tried += 1
        count.note("left half a checkpoint" if any(small.folder.glob(".checkpoint-*")) else "left none")
        small.checkpoints_must_be_whole()
        small.finish()
        small.must_be_as(reference)
        small.forget()
        count.survived += 1
    return count


def _until(step: int) -> tuple[str, ...]:
    """End early: the schedule is a constant, so that the steps are the same."""
    return (f"training.max_train_steps={step}",)


def _die_at(folder: Path, number: int) -> None:
    """Count file operations of this process under ``folder`` by Python's audit events; die before the n-th."""
    inside, left = str(folder), [number]
    changing = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        opened_to_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (event in changing or opened_to_write) and any(str(a).startswith(inside) for a in arguments[:2]):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(heard)


def ask_to_stop(small: Small, reference: Reference, times: int, rng: random.Random) -> Count:
    """SIGTERM or SIGUSR1 at random moments: to one process, to all, or to all and their data workers."""
    count = Count(f"SIGTERM or SIGUSR1 at a random moment, {small.launch.describe()}, {small.workers} data workers")
    small.forget()
    while count.tried < times:
        fleet = small.start()
        if _ended_within(fleet, rng.uniform(0.0, 1.0)):
            _ended_well(fleet.codes, fleet.said())
            small.must_be_as(reference)
            count.note("runs ended in between, equal to the bit")
            small.forget()
            continue
        name, whom = rng.choice(["SIGTERM", "SIGUSR1"]), rng.choice(["one", "all", "workers"])
        before = _newest(small)
        fleet.signal(
            signal.Signals[name], [rng.randrange(small.launch.processes)] if whom == "one" else None, whom == "workers"
        )
        fleet.wait()
        if set(fleet.codes.values()) == {0} and "done at step" in fleet.said():
            small.must_be_as(reference)  # it came after the last step
            small.forget()
            continue
        count.tried += 1
        count.note(f"{name} to {WHOM[whom]}")
        if set(fleet.codes.values()) != {PREEMPTED} or "Traceback" in fleet.said():
            raise Broken(f"{name} to {whom}: ended with {fleet.codes}\n{fleet.said()[-2000:]}")
        if f"stopped by {name} after step {_newest(small)}" not in fleet.said() or _newest(small) < before:
            raise Broken(f"no checkpoint of the step it stopped at: {fleet.said()[-1000:]}")
        small.checkpoints_must_be_whole()
        count.survived += 1
    small.finish()
    small.must_be_as(reference)
    return count


def lose_a_rank(small: Small, reference: Reference, times: int, rng: random.Random) -> Count:
    """SIGKILL to one process of several: the others have to end by themselves, and say one line."""
    count = Count(f"one process lost, {small.launch.describe()}")
    small.forget()
    while count.tried < times:
        fleet = small.start()
        if _ended_within(fleet, rng.uniform(0.0, 1.5)):
            _ended_well(fleet.codes, fleet.said())
            small.forget()
            continue
        lost = rng.randrange(small.launch.processes)
        fleet.signal(signal.SIGKILL, [lost])
        fleet.wait(limit=fleet.seconds + 60)
        others = {code for rank, code in fleet.codes.items() if rank != lost}
        if others == {0} and "done at step" in fleet.said():
            small.forget()
            continue
        count.tried += 1
        count.note(f"rank {lost}")
        if others != {1} or "Traceback" in fleet.said() or "another process of this run has ended" not in fleet.said():
            raise Broken(f"lost rank {lost}: ended with {fleet.codes}\n{fleet.said()[-3000:]}")
        small.checkpoints_must_be_whole()
        count.survived += 1
    small.finish()
    small.must_be_as(reference)
    return count


def damage_the_data(small: Small, times: int, rng: random.Random) -> Count:
    """A frame of the training or of the held-out data cannot be read: the rank that meets it tells the others."""
    count = Count(f"a damaged frame in the data, {small.launch.describe()}")
    for number in range(times):
        split = ("train_pre_shards_path_or_url", "validation_pre_shards_path_or_url")[number % 2]
        source = small.world / ("robot" if number % 2 == 0 else "robot_validation")
        data = small.folder.with_name("damaged-data")
        shutil.rmtree(data, ignore_errors=True)
        shutil.copytree(source, data)
        frame = rng.choice(sorted(data.rglob("*.npz"))[1:])
        _cut(frame, rng)
        small.forget()
        fleet = small.start(f"dataset.params.{split}={data}", "experiment.eval_every=2")
        fleet.wait()
        count.tried += 1
        count.note("training" if number % 2 == 0 else "held-out")
        said = [line for line in fleet.said().splitlines() if "stopped" in line]
        if (
            set(fleet.codes.values()) != {1}
            or "Traceback" in fleet.said()
            or len(said) != 1
            or frame.name not in said[0]
        ):
            raise Broken(f"{frame} damaged: ended with {fleet.codes}, {said}\n{fleet.said()[-3000:]}")
        small.checkpoints_must_be_whole()
        count.survived += 1
    return count


def damage_files(small: Small, reference: Reference, rng: random.Random, flips: int) -> Count:
    """Every file of the newest checkpoint: bits flipped, cut off, emptied, removed. Found each time; one of each file
    is followed by a run that says so, takes the one before, and ends as it should."""
    count = Count("a file of the newest checkpoint damaged")
    small.forget()
    small.finish(*_until(STEPS - 2))
    kept = small.folder.with_name("kept")
    shutil.rmtree(kept, ignore_errors=True)
    small.folder.rename(kept)
    newest = f"checkpoint-{STEPS - 2}"
    for name in sorted(str(f.relative_to(kept / newest)) for f in (kept / newest).rglob("*") if f.is_file()):
        damages = {f"bits flipped ({n + 1})": _flip for n in range(flips)} | {
            "cut off": _cut,
            "emptied": _empty,
            "removed": _remove,
        }
        run_with = rng.choice(list(damages))
        for what, damage in damages.items():
            shutil.rmtree(small.folder, ignore_errors=True)
            shutil.copytree(kept, small.folder)
            damage(small.folder / newest / name, rng)
            count.tried += 1
            try:
                open_checkpoint(small.folder / newest)
            except ValueError as error:
                if name not in str(error):
                    raise Broken(f"{name} {what}: the message names another file: {error}") from error
            else:
                raise Broken(f"{name} {what}: not found")
            if what == run_with:
                fleet = small.finish()
                said = fleet.said()
                if f"skipping {newest}" not in said or "Traceback" in said:
                    raise Broken(f"{name} {what}: {said[-2000:]}")
                small.must_be_as(reference)
                count.note("runs that went on from the one before")
            count.survived += 1
    shutil.rmtree(kept)
    return count


def _flip(file: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    place = rng.randrange(8 * len(content))
    content[place // 8] ^= 1 << place % 8
    file.write_bytes(content)


def _cut(file: Path, rng: random.Random) -> None:
    with file.open("r+b") as stream:
        stream.truncate(rng.randrange(file.stat().st_size))


def _empty(file: Path, rng: random.Random) -> None:
    file.write_bytes(b"")


def _remove(file: Path, rng: random.Random) -> None:
    file.unlink()


def fill_the_disk(small: Small, reference: Reference, sizes: int) -> Count:
    """A tmpfs as the output folder's disk, with room for less than the run wants; then room is made."""
    count = Count(f"disk full, {small.launch.describe()}")
    disk = small.folder.parent / f"disk-{small.launch.processes}"
    disk.mkdir(exist_ok=True)
    on_disk = replace(small, folder=disk / "run")
    wanted = _megabytes(small, reference)
    with _tmpfs(disk, 2 * wanted) as resize:
        if resize is None:
            count.skipped = "skipped: mounting a tmpfs needs root"
            return count
        for number in range(sizes):
            on_disk.forget()
            size = wanted * (number + 0.5) / sizes
            resize(size)
            fleet = on_disk.start()
            fleet.wait()
            _one_line_about_the_disk(fleet.codes, fleet.said(), size)
            left = [
                str(p.relative_to(disk)) for p in disk.rglob("*") if p.name.startswith(".") or p.name.endswith(".tmp")
            ]
            if left:
                raise Broken(f"{size:.2f} MB: left behind {left}")
            count.tried += 1
            count.note(f"with {len(list_checkpoints(on_disk.folder))} checkpoints before it")
            on_disk.checkpoints_must_be_whole()
            resize(2 * wanted)
            on_disk.finish()
            on_disk.must_be_as(reference)
            count.survived += 1
        on_disk.forget()
    return count


def fill_the_disk_while_metrics_are_written(
    small: Small, reference: Reference, times: int, rng: random.Random
) -> Count:
    """Somebody else fills the disk while the run is between two checkpoints."""
    count = Count("disk filled by somebody else between checkpoints")
    disk = small.folder.parent / "disk-metrics"
    disk.mkdir(exist_ok=True)
    on_disk = replace(
        small, folder=disk / "run", more=(*small.more, "experiment.save_every=4", "experiment.log_every=1")
    )
    quiet = replace(on_disk, folder=small.folder.parent / "quiet")
    quiet.forget()
    quiet.finish()
    expected = quiet.left()
    with _tmpfs(disk, 4 * _megabytes(small, reference)) as resize:
        if resize is None:
            count.skipped = "skipped: mounting a tmpfs needs root"
            return count
        for _ in range(times):
            on_disk.forget()
            fleet = on_disk.start()
            step = rng.choice([1, 5])
            fleet.wait(until=_told(on_disk.folder / "metrics.jsonl", step))
            filler = disk / "filler"
            _fill(filler)
            fleet.wait()
            _one_line_about_the_disk(fleet.codes, fleet.said(), None)
            count.tried += 1
            on_disk.checkpoints_must_be_whole()
            filler.unlink()
            on_disk.finish()
            on_disk.must_be_as(expected)
            count.survived += 1
        on_disk.forget()
    return count


def _fill(file: Path) -> None:
    with file.open("wb", buffering=0) as stream:
        for size in (1 << 16, 1 << 10, 1):
            try:
                while True:
                    stream.write(b"\0" * size)
            except OSError:
                continue


def _megabytes(small: Small, reference: Reference) -> float:
    """What a run takes with the three checkpoints it keeps and the final model."""
    small.forget()
    small.finish()
    return sum(file.stat().st_size for file in small.folder.rglob("*") if file.is_file()) / 1e6


@contextmanager
def _tmpfs(folder: Path, megabytes: float) -> Iterator[Callable[[float], None] | None]:
    """Mount one; gives a function that changes its size, or None where that is not allowed."""

    def mount(size: float, *options: str) -> bool:
        settings = ",".join([*options, f"size={max(int(size * 1000), 4)}k"])
        return (
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", settings, "tmpfs", str(folder)], capture_output=True
            ).returncode
            == 0
        )

    if not mount(megabytes):
        yield None
        return
    try:
        yield lambda size: None if mount(size, "remount") else _give_up(size)
    finally:
        subprocess.run(["umount", str(folder)], capture_output=True, check=False)


def _give_up(size: float) -> None:
    raise Broken(f"the tmpfs cannot be made {size:.2f} MB")


def _one_line_about_the_disk(codes: dict[int, int], said: str, size: float | None) -> None:
    where = "" if size is None else f"{size:.2f} MB: "
    if set(codes.values()) & {0, 75} or "Traceback" in said:
        raise Broken(f"{where}ended with {codes}\n{said[-3000:]}")
    about = [line for line in said.splitlines() if "No space left on device" in line]
    if len(about) != 1:
        raise Broken(f"{where}{len(about)} lines about the disk\n{said[-3000:]}")


def _told(metrics: Path, steps: int) -> Callable[[], bool]:
    return lambda: metrics.is_file() and metrics.read_bytes().count(b"\n") >= steps


def _after(fleet: Fleet, seconds: float) -> Callable[[], bool]:
    return lambda: fleet.seconds > seconds


def _ended_within(fleet: Fleet, seconds: float) -> bool:
    """Wait until the run begins, and so long after; has it ended by itself?"""
    return fleet.wait(until=_begins(fleet.log)) or fleet.wait(until=_after(fleet, seconds + fleet.seconds))


def _begins(log: Path) -> Callable[[], bool]:
    """Has the run said that it begins (or goes on)?"""
    return lambda: b"saved " in log.read_bytes()


def _ended_well(codes: dict[int, int], said: str) -> None:
    if set(codes.values()) != {0}:
        raise Broken(f"ended with {codes}; the log ends with\n{said[-3000:]}")


def _newest(small: Small) -> int:
    steps = [int(path.name.rpartition("-")[2]) for path in list_checkpoints(small.folder)]
    return max(steps, default=0)

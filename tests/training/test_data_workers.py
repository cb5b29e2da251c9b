"""A run whose data worker ends stops within seconds with one sentence on the likely cause."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
import torch

from common import shared_memory
from common.shared_memory import shared_memory_note
from models.pretrained.model_io import build
from models.vision.clip_encoder import load_clip
from tests.training.launches import ROOT
from tests.training.world import argv, load
from training.data import worker_processes
from training.data.dataloader import Flow, cotrain_loader
from training.data.worker_processes import LostWorker

SECONDS = 30
"""Far more than it takes, for a busy machine; a hang takes for ever."""


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("cannot be sent")
        self.held = lambda: None


class Numbers:
    """Samples that are their own index; ``end`` is called in the worker at sample 40."""

    def __init__(self, end: Callable[[], Any]) -> None:
        self.end = end

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> Any:
        return self.end() if index == 40 else torch.tensor([index])


def batches(end: Callable[[], Any], count: int = 2) -> Iterator[Any]:
    order = lambda seed, epoch: torch.arange(1000)  # noqa: E731
    return Flow(Numbers(end), lambda rows: rows, 2, seed=0, workers=count, order=order).batches()


def kill(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def raising(error: BaseException) -> Callable[[], None]:
    def end() -> None:
        raise error

    return end


ENDS: dict[str, tuple[Callable[[], Any], str]] = {
    "SIGKILL": (kill(signal.SIGKILL), "was killed, which the system does when memory runs out"),
    "SIGBUS": (kill(signal.SIGBUS), "shared memory is full"),
    "SIGSEGV": (kill(signal.SIGSEGV), "was killed by SIGSEGV"),
    "exit 0": (lambda: os._exit(0), "ended with exit code 0"),
    "exit 3": (lambda: os._exit(3), "ended with exit code 3"),
    "SystemExit": (raising(SystemExit("enough")), "SystemExit: enough"),
    "SystemExit without a word": (raising(SystemExit()), "SystemExit"),
    "KeyError": (raising(KeyError("colour")), "KeyError: 'colour'"),
    "MemoryError": (raising(MemoryError()), "MemoryError"),
    "an exception that cannot be pickled": (raising(Unpicklable()), "Unpicklable: cannot be sent"),
    "a batch that cannot be pickled": (lambda: lambda: None, "could not|Can't|cannot|pickle"),
    "no shared memory": (
        raising(RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)")),
        "/dev/shm has",
    ),
    "no open files": (raising(OSError(24, "Too many open files")), "ulimit -n"),
}


@pytest.mark.parametrize("how", ENDS)
def test_every_death_of_a_worker_is_one_sentence_within_seconds(how: str) -> None:
    end, output = ENDS[how]
    before, handler = set(active_children()), signal.getsignal(signal.SIGCHLD)
    flow = batches(end)
    started = time.monotonic()
    taken = []
    with pytest.raises(LostWorker, match=output) as lost:
        taken += [next(flow) for _ in range(1000)]
    assert time.monotonic() - started < SECONDS
    assert "\n" not in str(lost.value)
    assert "num_workers" in str(lost.value)
    assert signal.getsignal(signal.SIGCHLD) is handler
    del flow
    assert set(active_children()) <= before  # nobody is left, nothing is raised later


class Dead:
    """A worker that is alive until ``next`` has been called, then dead."""

    alive = True

    def is_alive(self) -> bool:
        return self.alive


def signal_at(number: int, call: Callable[[], None]) -> bool:
    """Run ``call`` with a SIGCHLD before bytecode instruction ``number`` of ``_next``; return whether there is one."""
    seen = 0

    def trace(frame: Any, event: str, arg: Any) -> Any:
        nonlocal seen
        if frame.f_code is not worker_processes._next.__code__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            seen += 1
            if seen - 1 == number:
                signal.raise_signal(signal.SIGCHLD)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return seen > number


@pytest.mark.parametrize("dies", [False, True])
def test_the_handler_of_sigchld_is_restored_wherever_the_signal_arrives(dies: bool) -> None:
    handler = signal.getsignal(signal.SIGCHLD)

    outcomes: list[str | int] = []

    def call() -> None:
        worker = Dead()

        def batches() -> Iterator[int]:
            worker.alive = not dies
            yield 1

        try:
            outcomes.append(worker_processes._next(batches(), [worker]))  # type: ignore[list-item]
        except RuntimeError as error:
            outcomes.append(str(error))

    number = 0
    while signal_at(number, call):
        after = signal.signal(signal.SIGCHLD, handler)
        assert after is handler, number
        number += 1
    assert number > 20
    assert set(outcomes) == ({1, "a data worker is dead"} if dies else {1})


def test_a_death_is_raised_only_where_a_batch_is_asked_for() -> None:
    flow = batches(lambda: 0)
    before = set(active_children())
    next(flow)
    worker = next(iter(set(active_children()) - before))
    os.kill(worker.pid or 0, signal.SIGKILL)
    end = time.monotonic() + 2
    while time.monotonic() < end:  # SIGCHLD arrives while something else is done
        time.sleep(0.05)
    with pytest.raises(LostWorker, match="memory runs out"):
        next(flow)


def test_without_workers_an_error_keeps_its_traceback() -> None:
    flow = batches(raising(KeyError("colour")), count=0)
    with pytest.raises(KeyError, match="colour"):
        [next(flow) for _ in range(1000)]


def test_the_death_of_one_flows_worker_is_no_error_of_the_other(tmp_path: Path) -> None:
    one, other = batches(lambda: 0, 1), batches(kill(signal.SIGKILL), 1)
    next(one)
    with pytest.raises(LostWorker):
        [next(other) for _ in range(1000)]
    assert [int(row) for row in next(one)] == [2, 3]


def test_the_need_of_the_default_recipe_is_about_94_mb(world: Path, tmp_path: Path) -> None:
    """4 workers a flow, 2 batches each: 4 x 2 frames of 512 pixels, 4 images of 336 pixels in float32."""
    robot = Flow(Numbers(int), list, 4, seed=0, workers=4, sample_bytes=2 * 3 * 512**2)
    text = Flow(Numbers(int), list, 4, seed=0, workers=4, sample_bytes=3 * 336**2 * 4)
    assert (robot.in_flight + text.in_flight) / 1e6 == pytest.approx(94, abs=1)
    job = load(world, tmp_path / "out", dataset__params__num_workers=3, training__batch_size_pre=5)
    built = build(job)
    clip = load_clip(job.model.showo.clip_model_path)
    loader = cotrain_loader(job, built.prompter, clip.image_spec, patches=clip.num_patches)
    assert loader.robot is not None
    assert loader.text is not None
    robot_batch, text_batch = next(loader.robot.batches()), next(loader.text.batches())
    assert loader.robot.in_flight == 6 * (robot_batch.views.nbytes + robot_batch.future_views.nbytes)
    assert loader.text.in_flight == 6 * text_batch.pixels.nbytes


def test_a_small_dev_shm_is_reported_at_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(64_000_000, 0, 64_000_000))
    note = shared_memory_note(94_000_000, 1)
    assert note is not None
    assert "94 MB" in note
    assert f"{tmp_path} has 64 MB, 64 MB of them free" in note
    assert "--shm-size" in note
    assert "dataset.params.num_workers" in note
    assert shared_memory_note(32_000_000, 1) is None
    assert "128 MB" in str(shared_memory_note(32_000_000, 4))
    assert shared_memory_note(0, 8) is None


@pytest.mark.slow
def test_a_full_dev_shm_ends_the_run_with_its_sentence(world: Path, tmp_path: Path) -> None:
    how = next((way for way in ("-m", "-Urm") if not subprocess.run(["unshare", way, "true"]).returncode), None)
    script = 'mount -t tmpfs -o size=256k tmpfs /dev/shm || exit 77; exec timeout -k 20 150 "$@"'
    over = ("dataset.params.num_workers=2", "training.batch_size_pre=64")
    train = [sys.executable, "train_upvla.py", *argv(world, tmp_path / "out", *over)]
    if how is None:
        pytest.skip("no namespaces for mounts here")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["unshare", how, "bash", "-c", script, "bash", *train], cwd=ROOT, env=env, capture_output=True, text=True
    )
    if done.returncode == 77:
        pytest.skip("no mounts here")
    assert done.returncode == 1
    assert "warning: data workers keep up to 2 MB" in done.stdout
    output = done.stderr.strip().splitlines()[-1]
    assert output.startswith("stopped before step 1: a data worker could not send a batch")
    assert "/dev/shm has" in output
    assert "Traceback" not in done.stderr

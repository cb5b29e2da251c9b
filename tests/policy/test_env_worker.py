"""Environments in worker processes: what becomes of chains when one breaks down, of workers when the parent does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from policy_rollout.closed_loop.interface import ChainRecord, EnvFactory
from policy_rollout.closed_loop.runner import run_chains
from tests.policy.counting import Counting, LoggingRecorder, Still, Unmakeable, job

JOBS = [job(i, 3, 7) for i in range(6)]
WAYS = {i: ChainRecord(i, ("add 3", "add 7"), 2, (3, 7)) for i in range(6)}


def play(factory: EnvFactory, workers: int = 2, parallel: int = 4, **options: Any) -> dict[int, ChainRecord]:
    done: dict[int, ChainRecord] = {}
    run_chains(
        factory, Still(), JOBS, lambda r: done.update({r.index: r}), workers=workers, parallel=parallel, **options
    )
    return done


def test_a_process_that_crashes_is_replaced_and_its_chains_are_run_again(tmp_path: Path) -> None:
    recorder = LoggingRecorder({2})
    assert play(Counting(tmp_path, times=1, chains=(2,)), recorder=recorder) == WAYS
    assert [file.name for file in tmp_path.iterdir()] == ["2"], "it did break down"
    assert recorder.calls[2].count("start") == 1
    assert recorder.calls[2][-1] == "finished with 2"


def test_a_chain_that_crashes_its_process_twice_is_named_with_the_output(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"chain 2 \(add 3, add 7\)") as error:
        play(Counting(tmp_path, times=9, chains=(2,)))
    said = str(error.value)
    assert "SIGSEGV" in said
    assert "the arm has left the world" in said
    assert "in step" in said, "where it happened"


def test_a_chain_with_another_one_that_crashes_is_not_blamed(tmp_path: Path) -> None:
    """All in one process, which three of them break once each: every other chain is lost three times."""
    assert play(Counting(tmp_path, times=1, chains=(0, 1, 2)), workers=1) == WAYS
    assert len(list(tmp_path.iterdir())) == 3


def test_an_environment_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"FileNotFoundError.*nowhere"):
        play(Unmakeable(tmp_path / "nowhere"))


HOLD = """
import sys
from policy_rollout.closed_loop.runner import run_chains
from tests.policy.counting import Counting, Still, job

class Slow(Still):
    def act(self, observations):
        print("asked", flush=True)
        sys.stdin.read()

run_chains(Counting(), Slow(), [job(i, 3) for i in range(4)], print, workers=2, parallel=4)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_parent(how: signal.Signals) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "asked\n"
    children = [
        int(pid) for pid in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text(encoding="utf-8").split()
    ]
    assert len(children) == 2
    parent.send_signal(how)
    parent.communicate()
    deadline = time.monotonic() + 10
    while any(_runs(pid) for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_workers_load_no_network() -> None:
    said = subprocess.run(
        [sys.executable, "-c", "import sys, policy_rollout.closed_loop.env_worker; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == "False\n"

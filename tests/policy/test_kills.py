"""An evaluation that is killed, again and again, at any moment, gives the numbers of one that was left in peace."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.policy.playing import main as play_in_peace


def start(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.policy.playing", str(folder), *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def results(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text())


def recorded(folder: Path) -> int:
    return sum(len(file.read_text().splitlines()) for file in (folder / "records").glob("*"))


def kill_while_it_plays(playing: subprocess.Popen[str], folder: Path, after: float) -> bool:
    """SIGKILL some seconds after the process has begun to record; False where it was done before that."""
    before = recorded(folder)
    while playing.poll() is None and recorded(folder) == before:
        time.sleep(0.005)
    time.sleep(after)
    playing.kill()
    _, said = playing.communicate()
    assert playing.returncode in (0, -9), said
    return playing.returncode == -9


def end(playing: subprocess.Popen[str]) -> None:
    _, said = playing.communicate(timeout=300)
    assert playing.returncode == 0, said


def kill_many_times(folder: Path, world: str, chains: int, kills: int, most: float, seed: int = 0) -> None:
    rng = random.Random(seed)
    play_in_peace(str(folder / "peace"), world, str(chains), "0")
    assert len({row["completed"] for row in results(folder / "peace")["records"]}) > 2, "outcomes differ"
    harassed = folder / "harassed"
    for _ in range(kills):
        assert kill_while_it_plays(start(harassed, world, chains), harassed, rng.uniform(0, most))
    assert not (harassed / "results.json").exists()
    end(start(harassed, world, chains))
    assert results(harassed) == results(folder / "peace")
    written = sorted(path.name for path in harassed.iterdir())
    assert written == ["leases", "owners", "records", "results.json", "settings.json"], "nothing half-written stays"


def test_killing_the_evaluation_twice_changes_no_number(tmp_path: Path) -> None:
    kill_many_times(tmp_path, "counting", chains=60, kills=2, most=0.1)


@pytest.mark.slow
def test_killing_the_evaluation_on_the_desk_twenty_times_changes_no_number(tmp_path: Path) -> None:
    kill_many_times(tmp_path, "desk", chains=100, kills=20, most=0.6)


def test_the_chains_of_a_killed_process_are_claimed_while_others_run(tmp_path: Path) -> None:
    play_in_peace(str(tmp_path / "peace"), "counting", "60", "0")
    folder = tmp_path / "together"
    victim, others = start(folder, "counting", 60), [start(folder, "counting", 60) for _ in range(2)]
    kill_while_it_plays(victim, folder, 0.05)
    for other in others:
        end(other)
    assert results(folder) == results(tmp_path / "peace")
    assert recorded(folder) <= 60 + 4, "each chain was played once, but for those that the victim had not recorded"


def test_processes_share_the_chains_and_run_none_twice(tmp_path: Path) -> None:
    together = [start(tmp_path, "counting", 60) for _ in range(3)]
    for one in together:
        end(one)
    shares = [len(file.read_text().splitlines()) for file in (tmp_path / "records").glob("*")]
    assert sum(shares) == 60
    assert len(shares) > 1

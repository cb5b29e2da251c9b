"""Who holds a folder: refused while the owner lives, free when it is dead, however it died."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common import folder_lock
from common.folder_lock import LOCK_NAME, FolderBusy, Owner, hold, hold_file, live_owners
from common.processes import process_stamp

ROOT = Path(__file__).resolve().parents[2]
OPTION = "--out "
HOLDER = """
import os, sys, time
from pathlib import Path
from common.folder_lock import hold
with hold(Path(sys.argv[1]), "a test", "--out "):
    if len(sys.argv) > 2 and os.fork() == 0:
        time.sleep(60)
    print("holds", flush=True)
    time.sleep(60)
"""


@contextmanager
def held_by_another(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDER, str(folder), *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("PATIENCE", 0.2), ("HEARTBEAT", 0.1), ("WATCH", 0.3), ("SETTLE", 0.05)):
        monkeypatch.setattr(folder_lock, name, seconds)


def test_the_second_process_is_refused_with_host_process_and_start_time(tmp_path: Path) -> None:
    with held_by_another(tmp_path) as owner:
        with pytest.raises(FolderBusy) as refused, hold(tmp_path, "a test", OPTION):
            pass
        said, record = str(refused.value), json.loads((tmp_path / LOCK_NAME).read_text())
    assert record["pid"] == owner.pid
    for fact in (f"--out {tmp_path}", f"process {owner.pid}", record["host"], record["since"]):
        assert fact in said
    assert "\n" not in said


def test_a_killed_owner_blocks_nobody_even_if_its_forked_child_lives(tmp_path: Path) -> None:
    with held_by_another(tmp_path, "fork") as owner:
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
        assert (tmp_path / LOCK_NAME).is_file()
        with hold(tmp_path, "a test", OPTION):
            assert live_owners(tmp_path) == []


def test_a_folder_is_held_once_in_a_process_too_and_is_as_it_was_afterwards(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    with hold(folder, "a test", OPTION), pytest.raises(FolderBusy), hold(folder, "a test", OPTION):
        pass
    assert list(tmp_path.iterdir()) == []
    with hold(folder, "a test", OPTION):
        (folder / "result").touch()
    assert os.listdir(folder) == ["result"]


def test_files_of_one_folder_are_held_one_by_one(tmp_path: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    with (
        hold_file(first, "a test", OPTION),
        hold_file(second, "a test", OPTION),
        pytest.raises(FolderBusy, match=r"a\.json"),
        hold_file(first, "a test", OPTION),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def _child(folder: Path, answer: Any) -> None:
    try:
        with hold(folder, "a child", OPTION):
            answer.put("holds")
    except FolderBusy:
        answer.put("refused")


def test_a_forked_child_is_another_process_and_its_end_releases_nothing(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    answer = fork.Queue()
    with hold(tmp_path, "a test", OPTION):
        child = fork.Process(target=_child, args=(tmp_path, answer))
        child.start()
        assert answer.get(timeout=20) == "refused"
        child.join()
        with held_tried(tmp_path) as code:
            assert code == 1


@contextmanager
def held_tried(folder: Path) -> Iterator[int]:
    yield subprocess.run([sys.executable, "-c", HOLDER, str(folder)], cwd=ROOT, capture_output=True).returncode


def left_behind(folder: Path, owner: Owner, age: float = 0.0) -> Path:
    lock = folder / LOCK_NAME
    lock.write_text(json.dumps(vars(owner)))
    os.utime(lock, (time.time() - age, time.time() - age))
    return lock


DEAD = {
    "the machine was booted again": {"boot": "another boot", "machine": "here another boot"},
    "the container was started again and gave the same number": {"process": f"{os.getpid()} 1"},
    "the job was requeued on another machine": {"host": "other", "boot": "theirs", "machine": "other theirs"},
}


@pytest.mark.parametrize("locks", [True, False], ids=["locks", "no locks"])
@pytest.mark.parametrize("what", list(DEAD))
def test_a_dead_owner_never_blocks(tmp_path: Path, what: str, locks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    without_locks(monkeypatch, locks)
    left_behind(tmp_path, replace(Owner.me("a dead run"), **DEAD[what]))  # type: ignore[arg-type]
    started = time.monotonic()
    with hold(tmp_path, "a test", OPTION):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["purpose"] == "a test"
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("locks", [True, False], ids=["locks that are local", "no locks"])
def test_an_owner_on_another_machine_is_known_by_its_heartbeat(
    tmp_path: Path, locks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch, locks)
    lock = left_behind(tmp_path, replace(Owner.me("their run"), boot="theirs", machine="other", host="other"))
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.05):
            os.utime(lock)

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        with pytest.raises(FolderBusy, match=r"their run.*on host other"), hold(tmp_path, "a test", OPTION):
            pass
    finally:
        ended.set()
        beating.join()


def test_without_locks_a_live_process_of_this_machine_is_known_by_its_start_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch, False)
    owner = replace(Owner.me("a test"), pid=os.getppid(), process=process_stamp(os.getppid()))
    left_behind(tmp_path, owner, age=1000)
    with pytest.raises(FolderBusy, match=f"process {os.getppid()}"), hold(tmp_path, "a test", OPTION):
        pass


def test_a_lock_file_that_was_cut_off_blocks_nobody(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).write_text('{"host": "som')
    with hold(tmp_path, "a test", OPTION):
        pass


def without_locks(monkeypatch: pytest.MonkeyPatch, locks: bool) -> None:
    def unsupported(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    if not locks:
        monkeypatch.setattr("common.folder_lock.fcntl.lockf", unsupported)

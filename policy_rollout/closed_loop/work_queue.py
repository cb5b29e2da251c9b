"""Who plays which chain, agreed through files: no process hands out work, and any of them may be killed.

    <folder>/owners/<owner>        a process that takes chains; touched every few seconds as long as it lives
    <folder>/leases/<chain>.<n>    who has taken the chain, the first time (n = 0), or after that one died (n = 1 ...):
                                   a symbolic link to the owner

Links are made, never changed or removed: of several processes that want the same one exactly one succeeds.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType

from common.files import remove, write_json
from common.processes import machine, process_stamp
from policy_rollout.closed_loop.env_slot import ChainJob

BEAT = 5.0
"""Seconds between two signs of life."""
LEASE = 60.0
"""Seconds without one after which an owner on another machine counts as dead."""


class Owner:
    """This process, as one of those that play the chains of ``folder``. Use it in a ``with`` statement."""

    def __init__(self, folder: Path) -> None:
        self._owners, self._leases = folder / "owners", folder / "leases"
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._sign = self._owners / self.name
        self._ended = threading.Event()

    def __enter__(self) -> Owner:
        for place in (self._owners, self._leases):
            place.mkdir(parents=True, exist_ok=True)
        write_json(self._sign, {"machine": machine(), "process": process_stamp(os.getpid())}, indent=None)
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """What it took and did not finish is free at once."""
        self._ended.set()
        remove(self._sign)  # one that stays is an ended process's, and so blocks nobody

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                os.utime(self._sign)
            except FileNotFoundError:
                return  # the folder has been removed, or the process is just ending
            except OSError:
                continue  # a network file system that stumbles: the next sign may come through

    def take(self, jobs: Iterable[ChainJob], recorded: Callable[[int], bool]) -> Iterator[ChainJob]:
        """Those of ``jobs`` that nobody has, or that a dead process had, each taken when it is asked for. ``recorded``
        says whether a chain has been finished meanwhile."""
        times: dict[int, int] = {}
        for link in os.listdir(self._leases):
            index, before = map(int, link.split("."))
            times[index] = max(times.get(index, 0), before + 1)
        for job in jobs:
            number = times.get(job.index, 0)
            if number and (self._lives(job.index, number - 1) or recorded(job.index)):
                continue
            if self._link(job.index, number):
                yield job

    def _link(self, index: int, number: int) -> bool:
        link, mine = self._leases / f"{index}.{number}", os.path.join("..", "owners", self.name)
        try:
            os.symlink(mine, link)
        except FileExistsError:
            return os.readlink(link) == mine  # a network file system may have asked twice
        return True

    def _lives(self, index: int, number: int) -> bool:
        link = self._leases / f"{index}.{number}"
        try:
            said, seen = json.loads(link.read_text(encoding="utf-8")), link.stat().st_mtime
        except FileNotFoundError:
            return False  # it has ended
        if said["machine"] == machine():
            pid = int(said["process"].split()[0])
            return bool(said["process"] == process_stamp(pid))
        os.utime(self._sign)  # the file system's clock tells how old the other's sign is, not this machine's
        return self._sign.stat().st_mtime - seen < LEASE

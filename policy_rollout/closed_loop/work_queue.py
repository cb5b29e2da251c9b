"""A queue of chains, shared by processes through files: no process distributes work, and any of them may be killed.

    <folder>/owners/<worker>       a process that runs chains; its modification time is the heartbeat
    <folder>/leases/<chain>.<n>    the claim of a chain, the first (n = 0) or one after the previous worker died
                                   (n = 1 ...): a symbolic link to the worker's file

Links are created, never changed or removed: of several processes that create the same link, exactly one succeeds.
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
from policy_rollout.closed_loop.interface import ChainJob

HEARTBEAT = 5.0
"""Seconds between two heartbeats."""
EXPIRY = 60.0
"""Seconds without a heartbeat after which a worker on another machine is considered dead."""


class Worker:
    """This process as a worker of ``folder``. Use it in a ``with`` statement."""

    def __init__(self, folder: Path) -> None:
        self._owners, self._leases = folder / "owners", folder / "leases"
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._file = self._owners / self.name
        self._ended = threading.Event()

    def __enter__(self) -> Worker:
        self._leases.mkdir(parents=True, exist_ok=True)
        write_json(self._file, {"machine": machine(), "process": process_stamp(os.getpid())}, indent=None)
        threading.Thread(target=self._heartbeat, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Release the chains that were claimed and not finished."""
        self._ended.set()
        remove(self._file)  # if that fails: the file of an ended process blocks no chain

    def _heartbeat(self) -> None:
        while not self._ended.wait(HEARTBEAT):
            try:
                os.utime(self._file)
            except FileNotFoundError:
                return  # the folder was removed, or the process is ending
            except OSError:
                continue  # a temporary failure of a network file system

    def claim(self, jobs: Iterable[ChainJob], recorded: Callable[[int], bool]) -> Iterator[ChainJob]:
        """Yield the jobs that no live worker has claimed; each is claimed when it is yielded.

        ``recorded`` returns whether a chain has a record by now.
        """
        claims: dict[int, int] = {}
        for link in os.listdir(self._leases):
            index, number = map(int, link.split("."))
            claims[index] = max(claims.get(index, 0), number + 1)
        for job in jobs:
            number = claims.get(job.index, 0)
            if number and (self._is_alive(job.index, number - 1) or recorded(job.index)):
                continue
            if self._link(job.index, number):
                yield job

    def _link(self, index: int, number: int) -> bool:
        link, target = self._leases / f"{index}.{number}", os.path.join("..", "owners", self.name)
        try:
            os.symlink(target, link)
        except FileExistsError:
            return os.readlink(link) == target  # a network file system may have sent the request twice
        return True

    def _is_alive(self, index: int, number: int) -> bool:
        """Return whether the worker of a claim is alive."""
        link = self._leases / f"{index}.{number}"
        try:
            owner, heartbeat = json.loads(link.read_text(encoding="utf-8")), link.stat().st_mtime
        except FileNotFoundError:
            return False
        if owner["machine"] == machine():
            pid = int(owner["process"].split()[0])
            return bool(owner["process"] == process_stamp(pid))
        os.utime(self._file)  # compare times of the file system's clock, not of this machine's
        return self._file.stat().st_mtime - heartbeat < EXPIRY

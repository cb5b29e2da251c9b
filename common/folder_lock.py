"""One process writes to a folder at a time: the second is refused with the owner's host, process and start time.

    <folder>/.lock     who holds the folder, as JSON; removed by the owner at its end

The owner holds a POSIX record lock (``lockf``) on the file for as long as it lives. The system releases it however the
process ends, and a forked child (a data worker) does not inherit it, so that no child keeps a dead owner's folder.
(``flock`` and open-file-description locks are inherited.) Such a lock is lost if any code of the owner opens and closes
the lock file again: nothing but this module does.

A lock file that a killed owner left never blocks. Where the lock was acquired, an owner on this kernel is dead. Where
the file system has no locks, an owner of this machine is known by its process id and start time. An owner on another
machine, whose lock may be invisible here (mounts with local locks), is alive only if its heartbeat, the modification
time of the lock file, is seen to change.

Several ranks of one run share a folder: the main rank holds it for all.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from common.processes import boot_id, machine, process_stamp

LOCK_NAME = ".lock"
HEARTBEAT = 5.0
"""Seconds between two heartbeats."""
EXPIRY = 60.0
"""Seconds without one after which an owner on another machine is dead."""
WATCH = 3 * HEARTBEAT
"""Seconds in which a heartbeat of an owner on another machine is waited for, where the last one is no older."""
PATIENCE = 2.0
"""Seconds during which a taken lock is tried again, since a killed owner may still be exiting."""
SETTLE = 0.5
"""Without locks: seconds after which of several that took the folder at once the last one is known."""
_DENIED = (errno.EACCES, errno.EAGAIN)
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)

_Key = tuple[int, int, str]
_held: dict[_Key, int] = {}
"""(device, inode, name of the lock file) of the folders that this process holds -> its process id."""
_guard = threading.Lock()


class FolderBusy(ValueError):
    """Another process holds the folder."""


@dataclass(frozen=True)
class Owner:
    """Who holds a folder. ``process``: ``process_stamp``; ``since``: UTC; ``purpose``: such as ``training``."""

    host: str
    boot: str
    machine: str
    pid: int
    process: str
    since: str
    purpose: str

    @classmethod
    def me(cls, purpose: str) -> Owner:
        pid, now = os.getpid(), f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
        return cls(socket.gethostname(), boot_id(), machine(), pid, process_stamp(pid), now, purpose)

    def __str__(self) -> str:
        return f"{self.purpose} (process {self.pid} on host {self.host}, since {self.since})"


@contextmanager
def hold(folder: Path, purpose: str, option: str, name: str = LOCK_NAME, shown: Path | None = None) -> Iterator[None]:
    """Hold ``folder`` (made if it does not exist) until the block ends.

    ``option``: the user's option with its separator (``experiment.output_dir=``, ``--out ``). ``name``: the lock file,
    if parts of the folder are locked separately; ``shown``: the value of the option. Raises ``FolderBusy`` if another
    process holds it, and ``OSError`` if it is not writable. A folder that was made here and stays empty is removed at
    the end.
    """
    made = _make(folder)
    status = folder.stat()
    key = (status.st_dev, status.st_ino, name)
    lock, me = folder / name, Owner.me(purpose)
    with _guard:
        if _held.get(key) == me.pid:
            raise FolderBusy(_refusal(shown or folder, option, "this process already"))
        _held[key] = me.pid
    ended, beat = threading.Event(), None
    handle: int | None = None
    try:
        handle = _acquire(lock, me, lambda owner: _refusal(shown or folder, option, owner))
        beat = threading.Thread(target=_beat, args=(handle, ended), name="folder-lock", daemon=True)
        beat.start()
        yield
    finally:
        if os.getpid() == me.pid:  # a forked child that gets here holds nothing
            ended.set()
            if beat is not None:
                beat.join()
            if handle is not None:
                _release(lock, handle, me)
            with _guard:
                _held.pop(key, None)
            _remove_empty(made)


@contextmanager
def hold_file(path: Path, purpose: str, option: str) -> Iterator[None]:
    """Hold one file that is going to be written, in a folder that others write to as well; see ``hold``."""
    with hold(path.parent, purpose, option, f".{path.name}{LOCK_NAME}", path):
        yield


def live_owners(folder: Path) -> list[Owner]:
    """Return the other processes that hold ``folder`` or a part of it, as far as the file system has locks."""
    found = []
    for lock in sorted(path for path in folder.iterdir() if is_lock(path.name)):
        status = folder.stat()
        if _held.get((status.st_dev, status.st_ino, lock.name)) == os.getpid():
            continue  # opening it would lose the lock
        with suppress(OSError):
            handle = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
            try:
                owner = _read(handle) if _lock(handle) is None else None
            finally:
                os.close(handle)
            found += [] if owner is None else [owner]
    return found


def is_lock(name: str) -> bool:
    """Is this the name of a lock file?"""
    return name.startswith(".") and name.endswith(LOCK_NAME)


def _refusal(folder: Path, option: str, owner: object) -> str:
    return (
        f"{option}{folder} is in use by {owner}; wait until that has ended, or give another {option.strip(' =')} "
        "(two processes would overwrite each other's files)"
    )


def _make(folder: Path) -> list[Path]:
    """Make the folder and those above it; return those that did not exist, the deepest first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty(made: list[Path]) -> None:
    with suppress(OSError):  # it is not empty: what was made is used
        for path in made:
            path.rmdir()


# --- acquiring -------------------------------------------------------------------------------------------------------


def _acquire(lock: Path, me: Owner, refusal: Callable[[object], str]) -> int:
    """Return the descriptor of the lock file, which names this process now. Raises ``FolderBusy``."""
    until = time.monotonic() + PATIENCE
    while True:
        handle, writable = _open(lock)
        keep = False
        try:
            locked = _lock(handle) if writable else False
            if locked is None:
                if time.monotonic() > until:
                    raise FolderBusy(refusal(_read(handle) or "another process"))
                time.sleep(0.1)
                continue
            if not _is_at(handle, lock):  # its owner has ended and removed it
                continue
            owner = _read(handle)
            if owner is not None and owner != me and _is_alive(owner, handle, lock, locked):
                raise FolderBusy(refusal(owner))
            if not writable:  # of a dead owner with another account: the folder's rights decide
                lock.unlink(missing_ok=True)
                continue
            _write(handle, me)
            if not locked:
                time.sleep(SETTLE)
                owner = _read(handle)
                if owner != me or not _is_at(handle, lock):
                    raise FolderBusy(refusal(owner or "another process"))
            keep = True
            return handle
        finally:
            if not keep:
                os.close(handle)


def _open(lock: Path) -> tuple[int, bool]:
    """(descriptor, may it be written to?). A lock file that is removed at that moment is made again."""
    while True:
        try:
            return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), True
        except FileNotFoundError:  # the folder was empty and has been removed
            lock.parent.mkdir(parents=True, exist_ok=True)
        except PermissionError:
            if not os.access(lock.parent, os.W_OK | os.X_OK):
                raise
            with suppress(FileNotFoundError):
                return os.open(lock, os.O_RDONLY | os.O_CLOEXEC), False


def _lock(handle: int) -> bool | None:
    """Lock a whole file. True: done; None: another process has it; False: the file system has no locks."""
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _DENIED:
            return None
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


def _is_at(handle: int, lock: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(lock))
    except FileNotFoundError:
        return False


def _is_alive(owner: Owner, handle: int, lock: Path, locked: bool) -> bool:
    """Does the owner that a lock file names still run? ``locked``: this process was given the lock."""
    if locked and owner.boot == boot_id():
        return False
    if owner.machine == machine():
        return process_stamp(owner.pid) == owner.process
    last = os.fstat(handle).st_mtime
    with tempfile.TemporaryFile(dir=lock.parent) as clock:  # the file system's clock, not this machine's
        if os.fstat(clock.fileno()).st_mtime - last > EXPIRY:
            return False
    until = time.monotonic() + WATCH
    while time.monotonic() < until:
        time.sleep(HEARTBEAT / 5)
        if os.fstat(handle).st_mtime != last:
            return True
    return False


def _read(handle: int) -> Owner | None:
    """The owner that a lock file names; None while it is being written, and where it was cut off."""
    with suppress(OSError, ValueError, TypeError):
        return Owner(**json.loads(os.pread(handle, 1 << 16, 0)))
    return None


def _write(handle: int, me: Owner) -> None:
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(asdict(me)).encode(), 0)


# --- holding ---------------------------------------------------------------------------------------------------------


def _beat(handle: int, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT):
        with suppress(OSError):  # a network file system that stumbles: the next one may come through
            os.utime(handle)


def _release(lock: Path, handle: int, me: Owner) -> None:
    with suppress(OSError):  # the folder may not exist; a file that stays blocks no process
        if _is_at(handle, lock) and _read(handle) == me:
            lock.unlink()
    os.close(handle)

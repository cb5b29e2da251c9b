"""Environment slots in worker processes, for simulators that are slow, crash, or allow one environment per process.

The policy stays in the parent process. Observations are sent through pipes: 0.6 ms of CPU, where rendering takes 40, so
shared memory would save 1 % (docs/log.md).

A worker is a fresh interpreter that loads no network. It exits when its pipe closes, so that no worker outlives its
parent. If a worker crashes, its chains are lost and a new worker replaces it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

from policy_rollout.closed_loop.env_slot import ChainFinished, EnvSlot, SlotEvent, SlotSettings, WorkerCrashed
from policy_rollout.closed_loop.interface import ChainJob, EnvFactory
from policy_rollout.policies.action_chunking import Actions

OUTPUT_CHARS = 2000
"""Characters from the end of a crashed worker's output that the error message shows."""
CLOSE_SECONDS = 5.0
"""Time that a worker has to close its environments."""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class WorkerSlots:
    """Slots in worker processes: slot s is in worker s modulo their number. A worker starts with its first chain."""

    def __init__(self, factory: EnvFactory, settings: SlotSettings, count: int, workers: int) -> None:
        if type(factory).__module__ == "__main__":
            raise ValueError(
                f"{type(factory).__name__} is defined in the script that runs, which worker processes cannot import: "
                "move it to a module, or set workers=0"
            )
        self.count = count
        self._workers = [_Worker(factory, settings) for _ in range(min(workers, count))]

    def start(self, slot: int, job: ChainJob, record_video: bool) -> None:
        self._worker(slot).call("start", slot, job, record_video)

    def execute(self, slot: int, chunk: Actions) -> None:
        self._worker(slot).call("execute", slot, chunk)

    def events(self, wait: bool) -> list[tuple[int, SlotEvent]]:
        found: list[tuple[int, SlotEvent]] = []
        workers = {worker.pipe: worker for worker in self._workers if worker.pipe is not None and worker.busy}
        for pipe in _readable(list(workers), None if wait else 0):
            found += workers[pipe].receive()
        return found

    def _worker(self, slot: int) -> _Worker:
        return self._workers[slot % len(self._workers)]

    def close(self) -> None:
        for worker in self._workers:
            worker.close_pipe()
        deadline = time.monotonic() + CLOSE_SECONDS
        for worker in self._workers:
            worker.join(deadline)


def _readable(pipes: Sequence[Connection], timeout: float | None) -> list[Connection]:
    return [pipe for pipe in wait(pipes, timeout) if isinstance(pipe, Connection)] if pipes else []


class _Worker:
    """The parent's side of a worker process."""

    def __init__(self, factory: EnvFactory, settings: SlotSettings) -> None:
        self._setup = factory, settings
        self._process: subprocess.Popen[bytes] | None = None
        self.pipe: Connection | None = None
        self._pending: deque[int] = deque()
        """Slots with a call that has no result yet, in the order in which the worker handles them."""
        self._active: set[int] = set()
        """Slots with an unfinished chain."""

    @property
    def busy(self) -> bool:
        return bool(self._active)

    def call(self, method: str, slot: int, *arguments: object) -> None:
        """Call a method of ``EnvSlot`` in the worker; ``receive`` returns the result."""
        if self.pipe is None:
            self._start()
        assert self.pipe is not None
        self._pending.append(slot)
        self._active.add(slot)
        self._send((method, slot, arguments))

    def receive(self) -> list[tuple[int, SlotEvent]]:
        """Return the next event, or ``WorkerCrashed`` of all active slots."""
        assert self.pipe is not None
        try:
            slot, event = self.pipe.recv()
        except (EOFError, OSError):  # the worker ended before or within a message
            return self._crashed()
        self._pending.remove(slot)
        if isinstance(event, ChainFinished):
            self._active.discard(slot)
        return [(slot, event)]

    def _start(self) -> None:
        self.pipe, child_pipe = Pipe()
        # Simulators print a lot; their output is shown only after a crash.
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", __name__, str(child_pipe.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            pass_fds=[child_pipe.fileno()],
            env={**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        )
        child_pipe.close()
        self._send(self._setup)

    def _send(self, message: object) -> None:
        assert self.pipe is not None
        with suppress(OSError):  # `receive` fails likewise and handles the error
            self.pipe.send(message)

    def _crashed(self) -> list[tuple[int, SlotEvent]]:
        """Return ``WorkerCrashed`` of all active slots. The worker crashed in the first pending call."""
        code = self._wait(time.monotonic() + CLOSE_SECONDS)
        output = f"({_describe_exit(code)}) {self._output_tail()}"
        first = self._pending[0] if self._pending else None
        events: list[tuple[int, SlotEvent]] = [(slot, WorkerCrashed(output, slot == first)) for slot in self._active]
        self._active.clear()
        self._pending.clear()
        self.join(deadline=0.0)
        return events

    def _output_tail(self) -> str:
        self._output.seek(0)
        return self._output.read().decode(errors="replace").strip()[-OUTPUT_CHARS:] or "none"

    def close_pipe(self) -> None:
        if self.pipe is not None:
            self.pipe.close()
            self.pipe = None

    def join(self, deadline: float) -> None:
        """Wait for the process until ``deadline`` (of ``time.monotonic``), then kill it."""
        self.close_pipe()
        if self._process is not None:
            self._wait(deadline)
            self._output.close()
            self._process = None

    def _wait(self, deadline: float) -> int:
        assert self._process is not None
        try:
            return self._process.wait(max(deadline - time.monotonic(), 0.01))
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _describe_exit(code: int) -> str:
    return f"signal {-code}, {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def serve(pipe: Connection) -> None:
    """Run in a worker: handle the calls in order and send the event of each, until the pipe closes."""
    slots: dict[int, EnvSlot] = {}
    factory, settings = pipe.recv()
    while True:
        try:
            method, number, arguments = pipe.recv()
        except (EOFError, OSError):
            break  # the parent has closed the pipe or ended
        if number not in slots:
            slots[number] = EnvSlot.make(factory, settings)
        event = getattr(slots[number], method)(*arguments)
        try:
            pipe.send((number, event))
        except OSError:
            break
    for slot in slots.values():
        slot.env.close()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles an interrupt and closes its workers
    serve(Connection(int(sys.argv[1])))

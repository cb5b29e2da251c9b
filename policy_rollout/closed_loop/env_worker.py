"""Seats in worker processes, for simulators that are slow, crash, or allow one environment in a process.

The policy stays in the process that started them. Observations come through pipes: 0.6 ms of CPU where the look itself
takes 40, so shared memory would save a hundredth (docs/log.md).

A worker is a fresh interpreter that loads no network. It ends when its pipe does, so that none outlives a parent that
was killed. When it breaks down itself, its seats are lost, and a new worker takes its place.
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

from policy_rollout.closed_loop.env_slot import ChainFinished, ChainJob, EnvSlot, Rules, SlotEvent, WorkerCrashed, World
from policy_rollout.policies.action_chunking import Actions

LAST_WORDS = 2000
"""Characters of a broken worker's output that are told."""
PATIENCE = 5.0
"""Seconds that a worker has to close its environments."""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class WorkerSeats:
    """Seat s is in worker s modulo their number. Workers start with the first chain that is begun in them."""

    def __init__(self, world: World, rules: Rules, count: int, workers: int) -> None:
        if type(world).__module__ == "__main__":
            raise ValueError(
                f"{type(world).__name__} is defined in the script that runs, which worker processes cannot import: "
                "put it in a module, or take workers=0"
            )
        self.count = count
        self._workers = [_Worker(world, rules) for _ in range(min(workers, count))]

    def begin(self, seat: int, job: ChainJob, film: bool) -> None:
        self._of(seat).tell("begin", seat, job, film)

    def plan(self, seat: int, chunk: Actions) -> None:
        self._of(seat).tell("plan", seat, chunk)

    def ready(self, wait: bool) -> list[tuple[int, SlotEvent]]:
        moments: list[tuple[int, SlotEvent]] = []
        talking = {worker.pipe: worker for worker in self._workers if worker.pipe is not None and worker.busy}
        for pipe in _readable(list(talking), None if wait else 0):
            moments += talking[pipe].hear()
        return moments

    def _of(self, seat: int) -> _Worker:
        return self._workers[seat % len(self._workers)]

    def close(self) -> None:
        for worker in self._workers:
            worker.dismiss()
        deadline = time.monotonic() + PATIENCE
        for worker in self._workers:
            worker.end(deadline)


def _readable(pipes: Sequence[Connection], timeout: float | None) -> list[Connection]:
    return [pipe for pipe in wait(pipes, timeout) if isinstance(pipe, Connection)] if pipes else []


class _Worker:
    """The parent's side of a worker process."""

    def __init__(self, world: World, rules: Rules) -> None:
        self._setup = world, rules
        self._process: subprocess.Popen[bytes] | None = None
        self.pipe: Connection | None = None
        self._asked: deque[int] = deque()
        """Seats that owe an answer, in the order in which they will be served."""
        self._seated: set[int] = set()
        """Seats with a chain that is not over."""

    @property
    def busy(self) -> bool:
        return bool(self._seated)

    def tell(self, what: str, seat: int, *arguments: object) -> None:
        if self.pipe is None:
            self._start()
        assert self.pipe is not None
        self._asked.append(seat)
        self._seated.add(seat)
        self._send((what, seat, arguments))

    def hear(self) -> list[tuple[int, SlotEvent]]:
        assert self.pipe is not None
        try:
            seat, moment = self.pipe.recv()
        except (EOFError, OSError):  # it ended before a message, or in the midst of one
            return self._bury()
        self._asked.remove(seat)
        if isinstance(moment, ChainFinished):
            self._seated.discard(seat)
        return [(seat, moment)]

    def _start(self) -> None:
        self.pipe, theirs = Pipe()
        # Simulators talk a lot; what they say is shown when one breaks down.
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "policy_rollout.closed_loop.env_worker", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs.fileno()],
            env={**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        )
        theirs.close()
        self._send(self._setup)

    def _send(self, message: object) -> None:
        assert self.pipe is not None
        with suppress(OSError):  # reading tells the same, and there it is dealt with
            self.pipe.send(message)

    def _bury(self) -> list[tuple[int, SlotEvent]]:
        """All chains of the worker are lost; it broke down over what it was asked first."""
        code = self._await(time.monotonic() + PATIENCE)
        words = f"({_ending(code)}) {self._words()}"
        lost: list[tuple[int, SlotEvent]]
        lost = [
            (seat, WorkerCrashed(words, by_it=bool(self._asked) and seat == self._asked[0])) for seat in self._seated
        ]
        self._seated.clear()
        self._asked.clear()
        self.end(deadline=0.0)
        return lost

    def _words(self) -> str:
        self._output.seek(0)
        return self._output.read().decode(errors="replace").strip()[-LAST_WORDS:] or "none"

    def dismiss(self) -> None:
        if self.pipe is not None:
            self.pipe.close()
            self.pipe = None

    def end(self, deadline: float) -> None:
        self.dismiss()
        if self._process is not None:
            self._await(deadline)
            self._output.close()
            self._process = None

    def _await(self, deadline: float) -> int:
        assert self._process is not None
        try:
            return self._process.wait(max(deadline - time.monotonic(), 0.01))
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _ending(code: int) -> str:
    return f"signal {-code}, {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def serve(pipe: Connection) -> None:
    """What a worker does: each message in turn is answered by the moment that its seat has come to."""
    seats: dict[int, EnvSlot] = {}
    world, rules = pipe.recv()
    while True:
        try:
            what, number, arguments = pipe.recv()
        except (EOFError, OSError):
            break  # the parent has closed the pipe, or is no more
        if number not in seats:
            seats[number] = EnvSlot.make(world, rules)
        moment = getattr(seats[number], what)(*arguments)
        try:
            pipe.send((number, moment))
        except OSError:
            break
    for seat in seats.values():
        seat.env.close()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's, who ends its workers
    serve(Connection(int(sys.argv[1])))

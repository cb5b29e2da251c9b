"""Training runs as real processes that start in a moment: forked from one that has everything imported.

Each process runs the real entry point with the environment that a launcher would give it, in a process group of its own
(its data workers with it), and is killed by real signals. Nothing is patched in it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

LIMIT_S = 600.0
"""A run that takes longer hangs."""
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Launch:
    """How the processes of a run are started: how many, and the launcher's environment."""

    processes: int = 1
    environment: tuple[tuple[str, str], ...] = ()

    def describe(self) -> str:
        zero = dict(self.environment).get("ACCELERATE_DEEPSPEED_ZERO_STAGE")
        return (
            "1 process" if self.processes == 1 else f"{self.processes} processes, {f'ZeRO-{zero}' if zero else 'DDP'}"
        )


ALONE = Launch()
DDP = Launch(2, (("ACCELERATE_USE_CPU", "true"),))
ZERO2 = Launch(
    2,
    (
        ("ACCELERATE_USE_DEEPSPEED", "true"),
        ("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"),
        ("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none"),
        ("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none"),
        ("ACCELERATE_DEEPSPEED_ZERO3_INIT", "false"),
        ("DS_ACCELERATOR", "cpu"),
    ),
)


def load_everything(launches: Sequence[Launch]) -> None:
    """Import what a run imports, so that forks need not. (Nothing may be computed in this process: threads of torch's
    would be missing in the forks.)"""
    import tensorboard.summary.writer.event_file_writer  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    from transformers import CLIPVisionModel, PhiForCausalLM  # noqa: F401

    import train_upvla  # noqa: F401
    import training.trainer  # noqa: F401

    if any(dict(launch.environment).get("ACCELERATE_USE_DEEPSPEED") for launch in launches):
        import deepspeed  # noqa: F401


@dataclass
class Fleet:
    """The processes of one run."""

    log: Path
    pids: list[int]
    started: float = field(default_factory=time.monotonic)
    codes: dict[int, int] = field(default_factory=dict)
    """Exit code by rank of those that have ended; minus the signal where one killed them."""

    def signal(self, number: int, ranks: Sequence[int] | None = None, with_workers: bool = True) -> None:
        for rank, pid in enumerate(self.pids):
            if rank not in self.codes and (ranks is None or rank in ranks):
                with suppress(ProcessLookupError):
                    os.killpg(pid, number) if with_workers else os.kill(pid, number)

    def poll(self) -> bool:
        """Have all of them ended?"""
        for rank, pid in enumerate(self.pids):
            if rank not in self.codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.codes[rank] = os.waitstatus_to_exitcode(status)
        return len(self.codes) == len(self.pids)

    def wait(self, until: Callable[[], bool] = lambda: False, limit: float = LIMIT_S) -> bool:
        """Until all have ended (True) or ``until`` holds (False); raises ``TimeoutError`` with the log's end."""
        while not self.poll():
            if until():
                return False
            if time.monotonic() - self.started > limit:
                self.signal(signal.SIGKILL)
                raise TimeoutError(f"still running after {limit:.0f} s; the log ends with\n{self.said()[-2000:]}")
            time.sleep(0.002)
        # Data workers of a rank that was killed alone notice by themselves; here nobody waits for that.
        for pid in self.pids:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        return True

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


def start(
    objective: str, argv: Sequence[str], launch: Launch, log: Path, prepare: Callable[[], None] | None = None
) -> Fleet:
    """Fork the processes of a run; ``prepare`` is called in each before it trains."""
    port = _free_port()
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    pids = []
    for rank in range(launch.processes):
        pid = os.fork()
        if pid == 0:
            _child(objective, argv, launch, rank, port, log, prepare)
        pids.append(pid)
    for pid in pids:
        with suppress(PermissionError, ProcessLookupError):
            os.setpgid(pid, pid)  # the child does so too; whoever is first
    return Fleet(log, pids)


def _child(
    objective: str,
    argv: Sequence[str],
    launch: Launch,
    rank: int,
    port: int,
    log: Path,
    prepare: Callable[[], None] | None,
) -> None:
    code = 70
    try:
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # nothing outlives the trial
        out = os.open(log, os.O_WRONLY | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        if launch.processes > 1:
            world = str(launch.processes)
            places = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
            os.environ.update(places, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        os.environ.update(dict(launch.environment))
        from config.loading import main_or_exit
        from train_upvla import main

        if prepare is not None:
            prepare()
        main_or_exit(lambda: main(objective, argv))  # type: ignore[arg-type]
        code = 0
    except SystemExit as end:  # as the interpreter does it
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

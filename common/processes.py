"""The rank of this process, from the variables that torchrun or a Slurm step sets, and the identity of processes."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

TORCHRUN = ("RANK", "WORLD_SIZE")
SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "MPI_LOCALNRANKS")
MPI_PREFIXES = ("OMPI_COMM_WORLD_", "PMI_", "MV2_COMM_WORLD_", "MPI_LOCAL")


@dataclass(frozen=True)
class ProcessRank:
    """The number of this process among all processes and among those of this machine.

    ``variables``: the environment variables that it was read from; empty for a process without a launcher.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    variables: tuple[str, ...] = field(default=(), compare=False)


def process_rank(env: Mapping[str, str]) -> ProcessRank:
    """Return the place that torchrun's variables give, else that of a Slurm step, else that of a single process.

    Both ``RANK`` and ``WORLD_SIZE`` make torchrun's; job scripts set one of them on their own in a Slurm step. Raises
    ``ValueError`` in one line for variables that are incomplete or contradict each other, and for those of ``mpirun``.
    """
    if all(name in env for name in TORCHRUN):
        return _place(env, TORCHRUN, "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if _integer(env, SLURM[1], 1) > 1:
        if SLURM[0] not in env:
            raise ValueError(_incomplete(env, [SLURM[1]], [SLURM[0]], "SLURM_"))
        return _place(env, SLURM, "SLURM_LOCALID", None)  # Slurm gives every task its own cores
    if _integer(env, "WORLD_SIZE", 1) > 1 or _integer(env, "RANK", 0) > 0:
        there = [name for name in TORCHRUN if name in env]
        raise ValueError(_incomplete(env, there, [name for name in TORCHRUN if name not in env], "torchrun's"))
    mpi = [name for name in MPI_SIZES if _integer(env, name, 1) > 1]
    if mpi:
        unset = [name for name in env if name.startswith(MPI_PREFIXES)]
        raise ValueError(
            f"{shown_variables(env, mpi)} in the environment: mpirun is no launcher of this project, or the variables "
            f"are left over; start several processes by accelerate launch, torchrun or srun, or {unset_command(unset)}"
        )
    return ProcessRank()


def shown_variables(env: Mapping[str, str], names: Iterable[str]) -> str:
    """Return ``NAME=value`` of the variables that are set, for a message."""
    return " ".join(f"{name}={env[name]}" for name in names if name in env)


def unset_command(names: Iterable[str]) -> str:
    """Return the shell command that removes variables."""
    return f"unset {' '.join(sorted(names))}"


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables inside the ``with`` block and restore the former values after it."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _incomplete(env: Mapping[str, str], there: list[str], missing: list[str], whose: str) -> str:
    return (
        f"{shown_variables(env, there)} in the environment without {' and '.join(missing)}: {whose} variables are left "
        f"over or incomplete; start several processes by accelerate launch, torchrun or srun, or {unset_command(there)}"
    )


def _place(env: Mapping[str, str], names: tuple[str, str], local_rank: str, local_world: str | None) -> ProcessRank:
    rank, world = (_integer(env, name) for name in names)
    found = tuple(name for name in (*names, local_rank, local_world) if name is not None and name in env)
    local, here = _integer(env, local_rank, 0), 1 if local_world is None else _integer(env, local_world, 1)
    if not 0 <= rank < world or local < 0 or (local_world is not None and local_world in env and local >= here):
        raise ValueError(
            f"{shown_variables(env, found)} in the environment contradict each other (a rank is at least 0 and less "
            f"than the number of processes); start again by the launcher, or {unset_command(found)}"
        )
    return ProcessRank(rank, world, local, here, found)


def _integer(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    """Return a variable as a whole number; ``default`` if it is not set or empty."""
    text = env.get(name, "").strip()
    if not text and default is not None:
        return default
    try:
        return int(text)
    except ValueError:
        raise ValueError(
            f"{name}={text} in the environment: expected a whole number; start again by the launcher, or "
            f"{unset_command([name])}"
        ) from None


# ------------------------------------------------------------------------------------------------------------- identity
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = Path("/proc/self/ns/pid")


def boot_id() -> str:
    """Return the identity of the running kernel, empty if the system has none.

    It changes with every boot. Containers on one machine share it.
    """
    return _BOOT_ID.read_text(encoding="utf-8").strip() if _BOOT_ID.exists() else ""


def machine() -> str:
    """Return a text that is equal for processes that see each other's process ids, and for no others."""
    namespace = os.readlink(_PID_NAMESPACE) if _PID_NAMESPACE.is_symlink() else ""
    return " ".join(fact for fact in (socket.gethostname(), boot_id(), namespace) if fact)


def process_stamp(pid: int) -> str:
    """Return the id and the start time of a process of this machine; ``<pid> gone`` if there is no such process.

    Ids are reused; the start time distinguishes the processes.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        state, started = fields[0], fields[19]
    except (FileNotFoundError, ProcessLookupError):
        return f"{pid} {_without_proc(pid)}"
    return f"{pid} gone" if state in "ZX" else f"{pid} {started}"


def _without_proc(pid: int) -> str:
    if Path("/proc/self").exists():
        return "gone"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "gone"
    except PermissionError:
        pass
    return "running"

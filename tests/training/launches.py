"""Runs of the real entry points through ``accelerate launch``, with two CPU processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.training.runs import Outcome
from tests.training.world import argv

ROOT = Path(__file__).resolve().parents[2]
LAUNCH_FILES = ROOT / "accelerate_configs"
ON_CPU = {"ACCELERATE_USE_CPU": "true"}
"""What DDP and FSDP need where there is no GPU; DeepSpeed must not see it."""
DDP = (("--multi_gpu", "--num_processes", "2"), ON_CPU)


def sharded(kind: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """Launch options and environment of ``zero1``, ``zero2``, ``zero3``, ``fsdp2`` or ``ddp``."""
    if kind == "ddp":
        return DDP
    if kind == "fsdp2":
        return ("--config_file", str(LAUNCH_FILES / "4_gpus_fsdp2.yaml"), "--num_processes", "2"), ON_CPU
    config = LAUNCH_FILES / f"4_gpus_deepspeed_{kind}.yaml"
    return ("--config_file", str(config), "--num_processes", "2"), {}


def start(
    world: Path,
    folder: Path,
    options: tuple[str, ...],
    env: dict[str, str] | None = None,
    overrides: tuple[str, ...] = (),
    script: str = "train_upvla.py",
    port: str = "0",
) -> subprocess.CompletedProcess[str]:
    """Run the entry point on the CPU by ``accelerate launch`` and wait for its end."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *options, "--main_process_port", port]
    launcher.append(script)
    given = argv(world, folder, "optimizer.params.epsilon=1e-3", *overrides)
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "SLURM_"))}
    settings |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **(env or {})}
    return subprocess.run([*launcher, *given], cwd=ROOT, env=settings, capture_output=True, text=True, timeout=600)


def launch(
    world: Path,
    folder: Path,
    options: tuple[str, ...],
    env: dict[str, str] | None = None,
    overrides: tuple[str, ...] = (),
    script: str = "train_upvla.py",
) -> Outcome:
    """Run ``start`` and check for the final model: processes on a loaded CPU can abort after that."""
    done = start(world, folder, options, env, overrides, script)
    assert (folder / "model.safetensors").is_file(), why(done)
    return Outcome(folder)


def why(done: subprocess.CompletedProcess[str]) -> str:
    """Return the last lines of the first process, without those of the launcher."""
    own = [line for line in done.stderr.splitlines() if "[rank0]" in line or "rror:" in line]
    return "\n".join(own[-40:]) or done.stdout[-1000:] + done.stderr[-2000:]


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The line with which a run refused to start; a launcher's report has it behind the word "traceback"."""
    lines = [line for line in done.stderr.splitlines() if "config error:" in line]
    assert lines, done.stderr[-3000:]
    return lines[0][lines[0].index("config error:") :]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""A Slurm cluster for the time of the tests: two nodes, both of them this machine."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "scripts" / "dev" / "slurm_cluster.sh"
NEEDED = ("slurmctld", "slurmd", "sbatch", "srun", "munged")


@dataclass(frozen=True)
class Slurm:
    """``sbatch``, ``srun`` and the like on the cluster; jobs see this test's interpreter as their environment."""

    conf: Path
    logs: Path
    env: dict[str, str] = field(default_factory=dict)

    def command(self, *command: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        settings = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "ACCELERATE_"))}
        settings |= {"SLURM_CONF": str(self.conf), **self.env, **env}
        return subprocess.run(command, cwd=cwd, env=settings, capture_output=True, text=True, timeout=900)

    def submit(self, *arguments: str | Path, cwd: Path, wait: bool = True, **env: str) -> tuple[int, str]:
        """(exit code, what the job printed), or, without waiting, (the job's number, '')."""
        options = ["--wait"] if wait else ["--parsable"]
        given = ["sbatch", *options, "--output", f"{self.logs}/%x-%j.out", *map(str, arguments)]
        done = self.command(*given, cwd=cwd, **env)
        if not wait:
            assert done.returncode == 0, done.stderr
            return int(done.stdout), ""
        number = done.stdout.split()[-1] if done.stdout else "none"
        logs = list(self.logs.glob(f"*-{number}.out"))
        return done.returncode, (logs[0].read_text() if logs else "") + done.stderr

    def job(self, number: int) -> dict[str, str]:
        """What the controller knows of a job."""
        said = self.command("scontrol", "show", "job", str(number)).stdout
        return dict(pair.split("=", 1) for pair in said.split() if "=" in pair)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no Slurm here ({', '.join(missing)}): apt-get install slurmctld slurmd slurm-client munge")
    if os.geteuid() != 0:
        pytest.skip("slurmd has to be root")
    folder = tmp_path_factory.mktemp("slurm")
    folder.chmod(0o755)
    # Ports of its own: the daemons of tests that were killed may still be there.
    settings = {**os.environ, "PORT": str(random.randrange(11000, 16000))}
    up = subprocess.run(
        [str(CLUSTER), "up", str(folder), "4"], env=settings, capture_output=True, text=True, timeout=60
    )
    if up.returncode:
        subprocess.run([str(CLUSTER), "down", str(folder)], timeout=60)
    assert up.returncode == 0, up.stderr
    logs = folder / "jobs"
    logs.mkdir()
    env = {"VENV": str(Path(sys.executable).parents[1]), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    try:
        yield Slurm(conf=folder / "slurm.conf", logs=logs, env=env)
    finally:
        subprocess.run(
            ["scancel", "--user=root"], env={**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}, timeout=30
        )
        subprocess.run([str(CLUSTER), "down", str(folder)], timeout=60)

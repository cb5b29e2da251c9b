"""What the sbatch files have in common, without Slurm (with it: tests/slurm)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def entered(folder: Path, ask: str, **env: str) -> list[str]:
    """What a job that starts in ``folder`` says after it has entered the project."""
    script = f'set -euo pipefail; PROJECT={ROOT}; source "$PROJECT/scripts/slurm_job.sh"; enter_project; {ask}'
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SRUN_"))}
    done = subprocess.run(["bash", "-c", script], cwd=folder, env=clean | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[1:]


def test_relative_paths_start_from_where_the_job_was_submitted(tmp_path: Path) -> None:
    (tmp_path / "phi").mkdir()
    given = {
        "LLM_MODEL_PATH": "phi",
        "PRETRAINED_MODEL_PATH": "someone/on-the-hub",
        "LOG_DIR": "log",
        "RUN_ROOT": "run",
    }
    ask = 'printf "%s\\n" "$LLM_MODEL_PATH" "$PRETRAINED_MODEL_PATH" "$LOG_DIR" "$RUN_ROOT" "$PWD"'
    said = entered(tmp_path, ask, **given)
    assert said == [
        str(tmp_path / "phi"),
        "someone/on-the-hub",
        str(tmp_path / "log"),
        str(tmp_path / "run"),
        str(ROOT),
    ]


def test_the_tasks_of_a_step_have_the_cpus_that_the_job_asked_for(tmp_path: Path) -> None:
    assert entered(tmp_path, 'env | grep "^SRUN_"', SLURM_CPUS_PER_TASK="3") == ["SRUN_CPUS_PER_TASK=3"]
    assert entered(tmp_path, 'echo "${SRUN_CPUS_PER_TASK:-none}"') == ["none"]

"""What the sbatch files have in common, without Slurm (with it: tests/slurm)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def entered(folder: Path, ask: str, argument: str = "", **env: str) -> list[str]:
    """What a job that starts in ``folder`` says after it has entered the project."""
    script = (
        f'set -euo pipefail; PROJECT={ROOT}; source "$PROJECT/scripts/slurm_job.sh"; enter_project {argument}; {ask}'
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SRUN_"))}
    done = subprocess.run(["bash", "-c", script], cwd=folder, env=clean | env, capture_output=True, encoding="utf-8")
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


def test_a_job_has_a_folder_of_its_own_and_run_root_wins(tmp_path: Path) -> None:
    home, submitted = tmp_path / "home", tmp_path / "submitted"
    home.mkdir()
    submitted.mkdir()
    own, ask = '"$(job_folder blockdiff_quick_ar)"', 'echo "$RUN_ROOT"'
    job = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(submitted)}
    assert entered(submitted, ask, own, HOME=str(home), **job) == [str(home / "blockdiff_quick_ar_7")]
    assert entered(submitted, ask, own, HOME="/nowhere", **job) == [str(submitted / "blockdiff_quick_ar_7")]
    assert entered(submitted, ask, own, HOME=str(home), RUN_ROOT="mine", **job) == [str(submitted / "mine")]
    assert entered(submitted, ask, HOME=str(home), **job) == [str(submitted)]


def test_jobs_install_one_after_the_other(tmp_path: Path) -> None:
    """Each holds the lock for a moment and writes when it has and when it gives it back."""
    script = (
        f'source "{ROOT}/scripts/slurm_job.sh"; '
        "install() { echo in >>log; sleep 0.2; echo out >>log; }; one_at_a_time install"
    )
    env = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    jobs = [subprocess.Popen(["bash", "-c", script], cwd=tmp_path, env=env) for _ in range(4)]
    assert [job.wait(30) for job in jobs] == [0] * 4
    assert (tmp_path / "log").read_text(encoding="utf-8").split() == ["in", "out"] * 4


def test_a_requeued_job_continues_its_training(tmp_path: Path) -> None:
    ask = 'TRAIN_DATA=data; training_command ar out 2; printf "%s\\n" "${TRAIN[@]}"'
    assert "experiment.resume_from_checkpoint=latest" not in entered(tmp_path, ask)
    assert "experiment.resume_from_checkpoint=latest" in entered(tmp_path, ask, SLURM_RESTART_COUNT="1")

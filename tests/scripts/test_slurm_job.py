"""What the sbatch files have in common, without Slurm (with it: tests/slurm)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "OMP_NUM_THREADS")
CLEAN = {name: os.environ[name] for name in KEPT if name in os.environ}
"""Nothing else of this machine's environment, because a job reports variables that resemble its settings."""


def entered(folder: Path, ask: str, argument: str = "", **env: str) -> list[str]:
    """What a job that starts in ``folder`` says after it has entered the project."""
    script = (
        f'set -euo pipefail; PROJECT={ROOT}; source "$PROJECT/scripts/slurm_job.sh"; enter_project {argument}; {ask}'
    )
    done = subprocess.run(["bash", "-c", script], cwd=folder, env=CLEAN | env, capture_output=True, encoding="utf-8")
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


def sourced(**env: str) -> subprocess.CompletedProcess[str]:
    script = f'set -euo pipefail; PROJECT={ROOT}; source "$PROJECT/scripts/slurm_job.sh"; echo started'
    return subprocess.run(["bash", "-c", script], env=CLEAN | env, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("MODEL_CONFIG", "MODEL_CFG"),
        ("MODEL_CGF", "MODEL_CFG"),
        ("model_cfg", "MODEL_CFG"),
        ("DATA_ROOT", "DATASET_ROOT"),
        ("NUM_SEQUENCE", "NUM_SEQUENCES"),
        ("TRAINING_STEPS", "TRAIN_STEPS"),
        ("LOGDIR", "LOG_DIR"),
        ("ENVMODE", "ENV_MODE"),
    ],
)
def test_a_near_miss_of_a_setting_ends_the_job(name: str, setting: str) -> None:
    done = sourced(**{name: "x"})
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {name} is not a setting of this job: did you mean {setting}?")
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout
    for value in ("", "x"):  # the name is needed by something else
        done = sourced(**{name: "x", setting: value})
        assert (done.returncode, done.stdout) == (0, "started\n")
        assert f"{name} is not a setting of this job and has no effect" in done.stderr


def test_a_name_that_resembles_a_setting_less_is_reported_and_others_are_not() -> None:
    done = sourced(DATASET_PATH="x", LUA_ROOT="x")
    assert done.returncode == 0
    notice = "notice: DATASET_PATH is not a setting of this job and has no effect; did you mean DATASET_ROOT?"
    assert notice in done.stderr
    usual = (
        "CALVIN_ROOT",
        "PROJECTS",
        "PYTHONPATH",
        "VIRTUAL_ENV",
        "CUDA_ROOT",
        "LMOD_DIR",
        "ENV",
        "PIP_CERT",
        "HF_HOME",
        "WORLD_SIZE",
        "TMPDIR",
    )
    done = sourced(**dict.fromkeys(usual, "x"), MODEL_CFG="x", DATASET_ROOT="x", NUM_SEQUENCES="3", TRAIN_STEPS="1")
    assert (done.returncode, done.stderr) == (0, "")


SRUN = """#!/usr/bin/env bash
printf '%s\\n' "$@" >"$ARGUMENTS"
for given in "$@"; do
    [[ $given != log_dir=* ]] || { mkdir -p "${given#log_dir=}" && touch "${given#log_dir=}/results.json"; }
done
"""


def rollout(folder: Path, *arguments: str, **env: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run the job with a stand-in for srun. Return what it did, and what srun was called with."""
    srun, called = folder / "bin" / "srun", folder / "arguments"
    srun.parent.mkdir(exist_ok=True)
    srun.write_text(SRUN)
    srun.chmod(0o755)
    called.unlink(missing_ok=True)
    given = {"ENV_MODE": "system", "PYTHON": sys.executable, "ARGUMENTS": str(called), "LOG_DIR": "log", **env}
    given["PATH"] = f"{srun.parent}:{os.environ['PATH']}"
    script = str(ROOT / "scripts" / "rollout_distributed_calvin.sbatch")
    done = subprocess.run(["bash", script, *arguments], cwd=folder, env=CLEAN | given, capture_output=True, text=True)
    return done, called.read_text().splitlines() if called.exists() else []


@pytest.mark.slow
def test_the_rollout_job_reads_its_model_data_and_number_of_chains(tmp_path: Path) -> None:
    (tmp_path / "my model.yaml").touch()
    (tmp_path / "task" / "validation" / ".hydra").mkdir(parents=True)
    for model, data in (("MODEL_CFG", "DATASET_ROOT"), ("MODEL_YAML", "CALVIN_DATA_ROOT")):
        env = {model: "my model.yaml", data: "task", "NUM_SEQUENCES": "7"}
        done, given = rollout(tmp_path, "environment=calvin", "ep_len=5", **env)
        assert done.returncode == 0, done.stderr
        assert f"model_config={tmp_path / 'my model.yaml'}" in given
        assert f"dataset_path={tmp_path / 'task'}" in given
        assert "num_sequences=7" in given
        assert [text for text in given if text.startswith("environment=")] == ["environment=calvin"]
    done, given = rollout(tmp_path, MODEL_CFG="my model.yaml")
    assert done.returncode == 0, done.stderr
    assert "environment=desk" in given
    assert "num_sequences=1000" in given


@pytest.mark.parametrize(
    ("env", "error"),
    [
        ({"MODEL_CFG": "none.yaml"}, "error: MODEL_CFG=none.yaml: no such file"),
        ({"DATASET_ROOT": "/nowhere"}, "error: DATASET_ROOT=/nowhere: no such folder"),
        ({"NUM_SEQUENCES": "many"}, "error: NUM_SEQUENCES=many: expected a whole number from 1 to 1000"),
        ({"NUM_SEQUENCES": "0"}, "error: NUM_SEQUENCES=0: expected a whole number from 1 to 1000"),
        ({"NUM_SEQUENCES": "1001"}, "error: NUM_SEQUENCES=1001: expected a whole number from 1 to 1000"),
        ({"MODEL_CFG": "a", "MODEL_YAML": "b"}, "error: MODEL_CFG=a and MODEL_YAML=b: these are two names of one"),
        ({"DATASET_ROOT": "a", "CALVIN_DATA_ROOT": "b"}, "error: DATASET_ROOT=a and CALVIN_DATA_ROOT=b: these are two"),
        ({"DATASET_ROOTS": "a"}, "error: DATASET_ROOTS is not a setting of this job: did you mean DATASET_ROOT?"),
        ({"DATA_ROOT": "a"}, "error: DATA_ROOT is not a setting of this job: did you mean DATASET_ROOT?"),
    ],
)
def test_the_rollout_job_refuses_wrong_settings_in_one_line(tmp_path: Path, env: dict[str, str], error: str) -> None:
    done, given = rollout(tmp_path, **env)
    assert done.returncode == 2
    assert done.stderr.startswith(error)
    assert len(done.stderr.splitlines()) == 1
    assert not given


def test_the_rollout_job_refuses_data_that_calvin_cannot_play_before_it_trains(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    done, given = rollout(tmp_path, DATASET_ROOT="data")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: DATASET_ROOT={tmp_path / 'data'}: policy_rollout.calvin: ")
    assert len(done.stderr.splitlines()) == 1
    assert not given
    assert not (tmp_path / "debug_data").exists()


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


def test_a_job_runs_the_project_that_it_was_submitted_from(tmp_path: Path) -> None:
    assert entered(tmp_path, 'echo "$PYTHONPATH"', PYTHONPATH="/other") == [f"{ROOT}:/other"]


def test_a_job_installs_the_project_editable_into_a_python_that_lacks_packages(tmp_path: Path) -> None:
    python, called = tmp_path / "python", tmp_path / "called"
    python.write_text(f'#!/bin/sh\n[ "$1" != - ] || echo torch\n[ "$2" != pip ] || echo "$@" >>{called}\n')
    python.chmod(0o755)
    env = {"ENV_MODE": "system", "PYTHON": str(python), "XDG_CACHE_HOME": str(tmp_path)}
    for user, flags in (("1", "--user "), ("0", "")):
        entered(tmp_path, "choose_python", PIP_USER=user, **env)
        assert called.read_text(encoding="utf-8").splitlines()[-1].endswith(f"--quiet {flags}--editable {ROOT}[serve]")


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

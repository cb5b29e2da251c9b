"""The sbatch files, submitted, queued and run on a real Slurm."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from tests.slurm.conftest import ROOT, Slurm
from tests.training.world import build_world

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
SCRIPTS = ROOT / "scripts"
COLUMNS = "| evaluation | samples |"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_world(tmp_path_factory.mktemp("world"))


def rows(summary: Path) -> list[str]:
    lines = summary.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith(COLUMNS)
    return [line.split("|")[1].strip() for line in lines[2:]]


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def wait_for(what: Callable[[], bool], seconds: float, why: Callable[[], str]) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, why()
        time.sleep(0.5)


def test_quick_checks_submitted_together_share_no_folder(slurm: Slurm, tmp_path: Path) -> None:
    """Two of one kind and one through DeepSpeed, from a folder that is not the project: each in its own under HOME."""
    home, submitted = tmp_path / "home", tmp_path / "submitted"
    home.mkdir()
    submitted.mkdir()
    kinds = {"quick_debug_ar_eval": "blockdiff_quick_ar", "quick_debug_ar_eval_deepspeed": "blockdiff_quick_ar_ds"}
    if find_spec("deepspeed") is None:
        del kinds["quick_debug_ar_eval_deepspeed"]
    env = {"HOME": str(home), "TRAIN_STEPS": "2", "MAX_SAMPLES": "2", "INSTALL_DEEPSPEED": "0"}
    jobs = {}
    for script in ("quick_debug_ar_eval", *kinds):
        number, _ = slurm.submit(SCRIPTS / f"{script}.sbatch", cwd=submitted, wait=False, **env)
        jobs[number] = home / f"{kinds[script]}_{number}"

    def told() -> str:
        return "".join(log.read_text(encoding="utf-8") for n in jobs for log in slurm.logs.glob(f"*-{n}.out"))

    ended = ("COMPLETED", "FAILED")
    wait_for(lambda: all(slurm.job(n)["JobState"] in ended for n in jobs), 900, told)
    assert [slurm.job(n)["JobState"] for n in jobs] == ["COMPLETED"] * len(jobs), told()
    assert sorted(path for path in home.iterdir() if path.name.startswith("blockdiff")) == sorted(jobs.values())
    assert not list(submitted.iterdir())
    for folder in jobs.values():
        assert (folder / "outputs/quick_arvla/checkpoint-2/unwrapped_model/model.safetensors").is_file()
        results = json.loads((folder / "results" / "quick_arvla_offline_eval.json").read_text(encoding="utf-8"))
        assert results["overall"]["samples"] == 2
        assert results["policy"]["checkpoint"].startswith(str(folder))
        assert rows(folder / "results" / "summary.md") == ["quick_arvla_offline_eval"]
        assert not list(folder.glob("outputs/quick_arvla/earlier-*"))


def _start_requeued(slurm: Slurm, job: int, why: Callable[[], str]) -> None:
    """Start a requeued job without Slurm's delay of two minutes, once its nodes have ended its first start.

    A job that starts while its node still ends the first start fails at once. The node is idle for a moment before it
    starts to end the job, so it must be idle several times in a row.
    """

    def nodes_are_idle() -> bool:
        time.sleep(1)
        return set(slurm.command("sinfo", "-h", "-o", "%T").stdout.split()) == {"idle"}

    wait_for(lambda: all(nodes_are_idle() for _ in range(4)), 60, why)
    slurm.command("scontrol", "update", f"JobId={job}", "StartTime=now")


def test_a_requeued_quick_check_continues_in_its_folder(slurm: Slurm, tmp_path: Path) -> None:
    """The job requeues itself once, between its training and its evaluation."""
    data = tmp_path / "data"
    shutil.copytree(ROOT / "dummy_data" / "calvin", data)
    script = tmp_path / "requeue.sbatch"
    # Between training and evaluation, in the first start.
    text = (SCRIPTS / "quick_debug_ar_eval.sbatch").read_text(encoding="utf-8")
    stop = '[[ ${SLURM_RESTART_COUNT:-0} != 0 ]] || { scontrol requeue "$SLURM_JOB_ID"; sleep 60; }\nevaluate_offline'
    assert "\nevaluate_offline" in text
    script.write_text(text.replace("evaluate_offline", stop, 1), encoding="utf-8")
    env = {
        "HOME": str(tmp_path),
        "PROJECT": str(ROOT),
        "TRAIN_STEPS": "2",
        "MAX_SAMPLES": "2",
        "DATASET_ROOT": str(data),
    }
    number, _ = slurm.submit("--requeue", "--open-mode=append", script, cwd=tmp_path, wait=False, **env)
    log = slurm.logs / f"quick_arvla-{number}.out"

    def told() -> str:
        return (log.read_text(encoding="utf-8") if log.is_file() else "") + str(slurm.job(number))

    wait_for(lambda: slurm.job(number).get("Restarts") == "1", 200, told)
    _start_requeued(slurm, number, told)
    wait_for(lambda: slurm.job(number)["JobState"] in ("COMPLETED", "FAILED"), 300, told)
    assert slurm.job(number)["JobState"] == "COMPLETED", told()
    folder = tmp_path / f"blockdiff_quick_ar_{number}"
    assert [path.name for path in tmp_path.glob("blockdiff*")] == [folder.name]
    assert "checkpoint-2 at step 2" in told()
    assert not list(folder.glob("outputs/quick_arvla/earlier-*"))
    assert rows(folder / "results" / "summary.md") == ["quick_arvla_offline_eval"]


def test_the_quick_check_trains_with_deepspeed_on_as_many_processes_as_gpus(slurm: Slurm, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    run_root = tmp_path / "elsewhere"
    script = SCRIPTS / "quick_debug_ar_eval_deepspeed.sbatch"
    env = {"RUN_ROOT": str(run_root), "INSTALL_DEEPSPEED": "0", "TRAIN_STEPS": "1", "MAX_SAMPLES": "2"}
    code, said = slurm.submit("--gres=gpu:2", script, cwd=tmp_path, **env)
    assert code == 0, said
    assert "2 processes (DeepSpeed ZeRO-2)" in said
    assert (run_root / "outputs" / "quick_arvla" / "checkpoint-1" / "metadata.json").is_file()
    assert rows(run_root / "results" / "summary.md") == ["quick_arvla_offline_eval"]


def test_all_three_objectives_have_their_row(slurm: Slurm, tmp_path: Path) -> None:
    script = SCRIPTS / "blockdiff_debug_pip_home.sbatch"
    env = {"PYTHON": sys.executable, "MAX_SAMPLES": "2", "HOME": str(tmp_path)}
    code, said = slurm.submit(script, cwd=tmp_path, **env)
    assert code == 0, said
    assert f"python: {sys.executable} " in said, "ENV_MODE=system is the default"
    (folder,) = tmp_path.glob("blockdiff_debug_run_[0-9]*")
    assert rows(folder / "results" / "summary.md") == [f"debug_{o}_offline_eval" for o in ("ar", "mdm", "bd")]
    for objective in ("ar", "mdm", "bd"):
        config = yaml.safe_load((folder / "outputs" / f"debug_{objective}" / "config.yaml").read_text())
        assert config["training"]["text_objective"] == objective


def test_a_job_that_cannot_run_says_why_and_fails(slurm: Slurm, tmp_path: Path) -> None:
    script = SCRIPTS / "quick_debug_ar_eval.sbatch"
    code, said = slurm.submit(script, cwd=tmp_path, DATASET_ROOT="/nowhere")
    assert code == 2
    assert "error: DATASET_ROOT=/nowhere has no folder training" in said
    code, said = slurm.submit(script, cwd=tmp_path, ENV_MODE="conda")
    assert code == 2
    assert "ENV_MODE=conda: allowed are auto, venv, system" in said


def test_srun_with_two_tasks_is_one_run_with_two_processes(slurm: Slurm, world: Path, tmp_path: Path) -> None:
    given = [f"config={world / 'tiny.yaml'}", f"experiment.output_dir={tmp_path / 'out'}"]
    done = slurm.command(
        "srun", "--ntasks=2", "--output", f"{tmp_path}/task-%t.out", sys.executable, "train_upvla.py", *given, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr + (tmp_path / "task-1.out").read_text(encoding="utf-8")
    record = json.loads((tmp_path / "out" / "checkpoint-2" / "metadata.json").read_text())
    assert len(list((tmp_path / "out" / "checkpoint-2" / "training_state").glob("random_states_*.pkl"))) == 2
    assert record["global_step"] == 2


def test_two_nodes_train_together_and_go_on_after_a_preemption(slurm: Slurm, world: Path, tmp_path: Path) -> None:
    """SIGUSR1, as Slurm sends it before a job's time is over: a checkpoint, back into the queue, on to the end. The
    losses are those of a run that nobody disturbed."""
    pytest.importorskip("deepspeed")
    last = 60

    def command(folder: Path) -> list[str | Path]:
        options = ["--nodes=2", "--gres=gpu:1", "--cpus-per-task=1"]
        given = [f"config={world / 'tiny.yaml'}", f"experiment.output_dir={folder}", f"training.max_train_steps={last}"]
        return [*options, SCRIPTS / "train_multinode.sbatch", "train_upvla.py", *given, *latest]

    latest = ["experiment.resume_from_checkpoint=latest"]
    out = tmp_path / "disturbed"
    job, _ = slurm.submit(*command(out), cwd=tmp_path, wait=False)
    log = slurm.logs / f"blockdiff_train-{job}.out"

    def told() -> str:
        return (log.read_text() if log.is_file() else "") + str(slurm.job(job))

    wait_for(lambda: (out / "metrics.jsonl").is_file() and len(metrics(out)) >= 3, 240, told)
    assert slurm.command("scancel", "--batch", "--signal=USR1", str(job)).returncode == 0
    wait_for(lambda: slurm.job(job).get("Restarts") == "1", 120, told)
    stopped_at = max(int(folder.name.rpartition("-")[2]) for folder in out.glob("checkpoint-*"))
    assert 3 <= stopped_at < last
    _start_requeued(slurm, job, told)
    wait_for(lambda: slurm.job(job)["JobState"] in ("COMPLETED", "FAILED"), 300, told)
    assert slurm.job(job)["JobState"] == "COMPLETED", told()
    assert "start 2: 2 node(s) x 1 process(es)" in told()
    assert f"checkpoint-{stopped_at} at step {stopped_at}" in told()
    assert [record["step"] for record in metrics(out)] == list(range(1, last + 1))

    code, said = slurm.submit(*command(tmp_path / "quiet"), cwd=tmp_path)
    assert code == 0, said
    assert [r["total/loss"] for r in metrics(out)] == [r["total/loss"] for r in metrics(tmp_path / "quiet")]


LAUNCHER = """#!/usr/bin/env bash
case "$*" in
*accelerate.commands.launch*)
    echo "launched, restarts: ${SLURM_RESTART_COUNT:-0}"
    [[ ${SLURM_RESTART_COUNT:-0} == 0 ]] || exit "$(cat "$0.code")"
    trap 'echo "SIGTERM came"; sleep 1; exit 1' TERM
    while :; do sleep 0.2; done ;;
*) exec REAL "$@" ;;
esac
"""


@pytest.mark.parametrize(("code", "ends"), [("0", "COMPLETED"), ("3", "FAILED")])
def test_a_job_that_saved_when_a_more_urgent_one_came_is_requeued(
    slurm: Slurm, tmp_path: Path, code: str, ends: str
) -> None:
    """SIGTERM, as Slurm's own preemption sends it; the training is a stand-in that leaves as training does under a
    launcher. Its second start fails by itself, or does not, and is not requeued."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(LAUNCHER.replace("REAL", sys.executable))
    python.chmod(0o755)
    (tmp_path / "bin" / "python.code").write_text(code)
    given = ["--nodes=2", "--gres=gpu:4", "--cpus-per-task=1", SCRIPTS / "train_multinode.sbatch", "train_upvla.py"]
    job, _ = slurm.submit(*given, "config=x", cwd=tmp_path, wait=False, VENV=str(tmp_path))
    log = slurm.logs / f"blockdiff_train-{job}.out"

    def told() -> str:
        return (log.read_text() if log.is_file() else "") + str(slurm.job(job))

    wait_for(lambda: told().count("launched, restarts: 0") == 2, 120, told)
    urgent, _ = slurm.submit("-p", "urgent", "--nodes=2", "--gres=gpu:4", "--wrap=true", cwd=tmp_path, wait=False)
    wait_for(lambda: slurm.job(job).get("Restarts") == "1", 60, told)
    assert "SIGTERM came" in told()
    assert "stopped early (code 1): requeueing the job" in told()
    wait_for(lambda: slurm.job(urgent)["JobState"] == "COMPLETED", 60, told)
    _start_requeued(slurm, job, told)
    wait_for(lambda: slurm.job(job)["JobState"] in ("COMPLETED", "FAILED"), 60, told)
    assert slurm.job(job)["JobState"] == ends, told()
    assert slurm.job(job)["Restarts"] == "1"


def test_the_tasks_of_a_job_play_every_chain_once(slurm: Slurm, tmp_path: Path) -> None:
    """Three chains over two nodes, a few steps each; then once more, where nothing is left to play."""
    script = SCRIPTS / "rollout_distributed_calvin.sbatch"
    env = {"NUM_SEQUENCES": "3", "LOG_DIR": str(tmp_path / "log")}
    code, said = slurm.submit("--nodes=2", "--cpus-per-task=1", script, "ep_len=10", cwd=tmp_path, **env)
    assert code == 0, said
    results = json.loads((tmp_path / "log" / "results.json").read_text())
    assert [record["index"] for record in results["records"]] == [0, 1, 2]
    counts = [len(file.read_text().splitlines()) for file in (tmp_path / "log" / "records").iterdir()]
    assert sum(counts) == 3
    env["MODEL_CFG"] = str(tmp_path / "outputs" / "rollout_arvla" / "model.yaml")
    code, said = slurm.submit(script, "ep_len=10", cwd=tmp_path, **env)
    assert code == 0, said
    assert json.loads((tmp_path / "log" / "results.json").read_text())["records"] == results["records"]


def test_jobs_queue_for_the_gpus_there_are(slurm: Slurm, tmp_path: Path) -> None:
    """Four on each of two nodes: the third job that wants four waits, one that wants five of a node is refused."""
    wants = ("--gres=gpu:4", "--nodes=1", "--ntasks=1", "--wrap=sleep 60")
    jobs = [slurm.submit(*wants, cwd=tmp_path, wait=False)[0] for _ in range(3)]
    wait_for(
        lambda: [slurm.job(j)["JobState"] for j in jobs] == ["RUNNING", "RUNNING", "PENDING"], 20, lambda: str(jobs)
    )
    assert slurm.command("sbatch", "--gres=gpu:5", *wants[1:], cwd=tmp_path).returncode != 0
    assert slurm.command("scancel", *map(str, jobs)).returncode == 0


def test_the_sandbox_goes_down_without_a_trace(slurm: Slurm, tmp_path: Path) -> None:
    """Beside the other one: with ports of its own."""
    import os

    env = {**os.environ, "PORT": "27817", "NODES": "1"}
    script = str(SCRIPTS / "dev" / "slurm_cluster.sh")
    up = subprocess.run([script, "up", str(tmp_path), "0"], env=env, capture_output=True, text=True, timeout=60)
    assert up.returncode == 0, up.stderr
    pids = [int(file.read_text()) for file in [*tmp_path.glob("*.pid"), tmp_path / "munge" / "pid"]]
    assert len(pids) == 3
    subprocess.run([script, "down", str(tmp_path)], check=True, timeout=60)
    alive = [
        pid for pid in pids if Path(f"/proc/{pid}/cmdline").is_file() and Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert not alive
    assert not list(tmp_path.glob("*.pid"))

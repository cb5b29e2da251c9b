"""Sweeps: every combination once, each by its script and in its folder, checked before the first one starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from common.files import PROJECT_DIR
from common.folder_lock import hold
from config.loading import ConfigError, load_job, to_yaml
from config.sweep import expand, sweep, take_apart, wants_sweep
from config.sweep_worker import name_of
from tests.config.conftest import Given

STUB = """
import json, os, pathlib, signal, sys, time
given = dict(a.split("=", 1) for a in sys.argv[2:])
folder = pathlib.Path(given["experiment.output_dir"])
(folder / "started").open("a").write(pathlib.Path(sys.argv[1]).name + "\\n")
seed = int(given["training.seed"])
if seed == 13:
    sys.exit("stopped: the loss of step 1 is not finite")
if seed == 99 and not (folder / "again").exists():
    (folder / "again").touch()
    os.kill(os.getppid(), signal.SIGKILL)  # the whole sweep dies here
    time.sleep(0.2)
    sys.exit(0)
for step in (1, 2):
    line = {"step": step, "total/loss": seed + 1 / step, "lr": 0.1}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\\n")
print("arguments", given.get("question"), given.get("block_diffusion.block_size_candidates"))
"""


@pytest.fixture
def argv(tmp_path: Path, given: Given) -> list[str]:
    """A sweep whose runs are a ten-line stand-in for training."""
    (tmp_path / "stub.py").write_text(STUB)
    launch = f"sweep.launch={sys.executable} {tmp_path / 'stub.py'}"
    config = "config=config/upvla_action_tuning.yaml"
    return ["-m", config, *given.argv, f"experiment.output_dir={tmp_path / 'sweep'}", launch]


def rows(folder: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads((folder / "sweep.json").read_text())
    return found


def test_every_combination_runs_once_by_the_script_of_its_objective(argv: list[str], tmp_path: Path) -> None:
    sweep([*argv, "training.text_objective=ar,mdm,bd", "training.seed=range(0,2)"], "ar")
    folder = tmp_path / "sweep"
    started = {path.parent.name: path.read_text().split() for path in folder.glob("*/started")}
    scripts = {"ar": "train_upvla.py", "mdm": "train_mdm_vla.py", "bd": "train_blockdiff_vla.py"}
    assert started == {
        f"text_objective={name},seed={seed}": [script] for name, script in scripts.items() for seed in (0, 1)
    }
    table = (folder / "sweep.md").read_text().splitlines()
    assert table[0] == ("| training.text_objective | training.seed | total/loss | steps | seconds | state | folder |")
    assert len(table) == 2 + 6
    assert table[3].startswith("| ar | 1 | 1.5 | 2 | ")
    assert table[3].endswith("| done | text_objective=ar,seed=1 |")
    assert [row["overrides"] for row in rows(folder)][-1] == {"training.text_objective": "bd", "training.seed": "1"}


def test_a_failing_run_does_not_stop_the_others_and_the_exit_code_tells(
    argv: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        sweep([*argv, "training.seed=1,13,2"], "ar")
    assert end.value.code == 1
    assert [row["state"] for row in rows(tmp_path / "sweep")] == ["done", "failed (exit 1)", "done"]
    assert "stopped: the loss of step 1 is not finite" in capfd.readouterr().out.splitlines()[-2]


def test_a_sweep_that_was_killed_goes_on_without_what_is_finished(argv: list[str], tmp_path: Path) -> None:
    command = [sys.executable, str(PROJECT_DIR / "train_upvla.py"), *argv, "training.seed=1,99,2"]
    killed = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_DIR)
    assert killed.returncode == -9
    assert not (tmp_path / "sweep" / "seed=2").exists()
    again = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_DIR)
    assert again.returncode == 0, again.stderr
    assert "[seed=1] already finished" in again.stdout
    assert [row["state"] for row in rows(tmp_path / "sweep")] == ["done"] * 3
    starts = {path.parent.name: len(path.read_text().split()) for path in (tmp_path / "sweep").glob("*/started")}
    assert starts == {"seed=1": 1, "seed=99": 2, "seed=2": 1}


def test_a_finished_run_with_other_settings_is_not_taken_for_this_one(argv: list[str], tmp_path: Path) -> None:
    sweep([*argv, "training.seed=1,2"], "ar")
    sweep([*argv, "training.seed=1,2", "training.max_train_steps=7"], "ar")
    assert (tmp_path / "sweep" / "seed=1" / "started").read_text().split() == ["train_upvla.py"] * 2


@pytest.mark.parametrize(
    ("swept", "says"),
    [
        ("training.seed=0,x", r"training\.seed=x .*expected a whole number >= 0 .*no run of the sweep was started"),
        ("training.sed=0,1", r"training\.sed=0 .*did you mean training\.seed\?"),
        ("block_diffusion.block_size=4,0", r"block_size=0 .*in the run block_diffusion\.block_size=0"),
        ("training.seed=interval(0,1)", "--multirun: "),
        ("training.seed=0,1 hydra/launcher=submitit_slurm", r"needs a package of requirements-optional\.txt"),
        ("training.seed=0,1 hydra/sweeper=optuna", r"hydra/sweeper=optuna: no such setting of a sweep"),
        ("training.seed=0,1 hydra.sweep.subdir=x", r"hydra\.sweep\.subdir=x: .* allowed are .*hydra\.sweep\.dir"),
    ],
)
def test_a_mistake_in_any_combination_is_told_before_the_first_run(
    argv: list[str], tmp_path: Path, swept: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=says):
        sweep([*argv, *swept.split()], "ar")
    assert not (tmp_path / "sweep").exists()


def test_an_objective_that_is_not_swept_belongs_to_the_script(argv: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"run: python train_mdm_vla\.py"):
        sweep([*argv, "training.text_objective=mdm", "training.seed=0,1"], "ar")


def test_texts_arrive_as_they_were_typed_and_lists_can_be_swept(argv: list[str], tmp_path: Path) -> None:
    sweep([*argv, "training.seed=3", "question=What is open?", "block_diffusion.block_size_candidates=[4,8],[2]"], "ar")
    logs = {path.parent.name: path.read_text() for path in (tmp_path / "sweep").glob("*/output.log")}
    assert logs == {
        "block_size_candidates=[4,8]": "arguments What is open? [4,8]\n",
        "block_size_candidates=[2]": "arguments What is open? [2]\n",
    }


def test_configurations_and_presets_can_be_swept_too(argv: list[str], tmp_path: Path) -> None:
    rest = [argument for argument in argv if not argument.startswith("config=")]
    configs = "config=config/arvla_action_tuning.yaml,config/bdvla_action_tuning.yaml"
    sweep([*rest, configs, "preset=48gb,80gb", "training.seed=1"], "ar")
    started = sorted(path.read_text().strip() for path in (tmp_path / "sweep").glob("*/started"))
    assert started == ["train_blockdiff_vla.py"] * 2 + ["train_upvla.py"] * 2


def test_a_swept_text_with_spaces_is_quoted_and_arrives_without_quotes(argv: list[str], tmp_path: Path) -> None:
    request = take_apart(["question='What is open?','Why?'", "experiment.name=a=b"])
    assert (request.swept, request.fixed) == (["question='What is open?','Why?'"], ["experiment.name=a=b"])
    assert expand(request) == [["question=What is open?"], ["question=Why?"]]
    sweep([*argv, "training.seed=1", "question='What is open?','Why?'"], "ar")
    logs = {path.read_text() for path in (tmp_path / "sweep").glob("*/output.log")}
    assert logs == {"arguments What is open? None\n", "arguments Why? None\n"}


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_sigterm_stops_the_running_processes_and_the_next_sweep_continues(
    argv: list[str], tmp_path: Path, launcher: str
) -> None:
    stub = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); print('waits'); time.sleep(60)"
    (tmp_path / "stub.py").write_text(STUB + f"if (folder.parent.parent / 'wait').exists():\n    {stub}\n")
    (tmp_path / "wait").touch()
    swept = ["training.seed=1,2,3", f"hydra/launcher={launcher}", "hydra.launcher.n_jobs=2"]
    command = [sys.executable, str(PROJECT_DIR / "train_upvla.py"), *argv, *swept]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT_DIR) as process:
        assert process.stdout is not None
        running = 1 if launcher == "basic" else 2
        while running:
            running -= process.stdout.readline().startswith("waits")
        process.terminate()
        assert process.wait(30) == 143
    assert not (tmp_path / "sweep" / "seed=3").exists()
    assert not list((tmp_path / "sweep").glob("*/sweep_run.json"))
    (tmp_path / "wait").unlink()
    assert subprocess.run(command, stdout=subprocess.DEVNULL, cwd=PROJECT_DIR).returncode == 0
    assert [row["state"] for row in rows(tmp_path / "sweep")] == ["done"] * 3


def test_names_of_runs_are_short_safe_and_different() -> None:
    assert name_of(["training.seed=1", "block_diffusion.block_size=4"]) == "seed=1,block_size=4"
    assert name_of(["a.path=1", "b.path=2"]) == "a.path=1,b.path=2"
    assert "/" not in name_of(["model.showo.llm_model_path=a/b"])
    assert name_of(["model.showo.llm_model_path=a/b"]) != name_of(["model.showo.llm_model_path=a_b"])
    assert len(name_of([f"question={'x' * 1000}"])) < 200


def test_help_wins_over_a_sweep() -> None:
    assert wants_sweep(["-m", "config=x"])
    assert not wants_sweep(["-m", "--help"])
    assert not wants_sweep(["config=x"])


@pytest.mark.slow
def test_several_runs_at_once_through_joblib(argv: list[str], tmp_path: Path) -> None:
    command = [sys.executable, str(PROJECT_DIR / "train_upvla.py"), *argv, "training.seed=1,2,3"]
    several = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    done = subprocess.run([*command, *several], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["state"] for row in rows(tmp_path / "sweep")] == ["done"] * 3


@pytest.mark.slow
def test_runs_as_jobs_of_submitit(argv: list[str], tmp_path: Path) -> None:
    """Its local executor makes the same job files as on Slurm and starts them as processes."""
    pytest.importorskip("submitit")
    command = [sys.executable, str(PROJECT_DIR / "train_upvla.py"), *argv, "training.seed=1,13"]
    done = subprocess.run([*command, "hydra/launcher=submitit_local"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert [row["state"] for row in rows(tmp_path / "sweep")] == ["done", "failed (exit 1)"]


def test_a_sweep_folder_with_runs_of_other_settings_is_refused_before_the_first_run(
    argv: list[str], tmp_path: Path
) -> None:
    sweep([*argv, "training.seed=1,2"], "ar")
    job = load_job([*(a for a in argv if not a.startswith(("-m", "sweep."))), "training.seed=1"], "ar")
    job.optimizer.params.learning_rate = 0.5
    (tmp_path / "sweep" / "seed=1" / "config.yaml").write_text(to_yaml(job), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"experiment\.output_dir=.*optimizer\.params\.learning_rate=0\.5, now it is"):
        sweep([*argv, "training.seed=1,2"], "ar")
    job = load_job([*(a for a in argv if not a.startswith(("-m", "sweep."))), "training.seed=1"], "ar")
    job.experiment.save_every, job.dataset.params.num_workers = 7, 3  # no result depends on these
    (tmp_path / "sweep" / "seed=1" / "config.yaml").write_text(to_yaml(job), encoding="utf-8")
    sweep([*argv, "training.seed=1,2"], "ar")
    assert (tmp_path / "sweep" / "seed=1" / "started").read_text().split() == ["train_upvla.py"]


def test_two_sweeps_do_not_write_into_one_folder(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        hold(tmp_path / "sweep", "another sweep", "experiment.output_dir="),
        pytest.raises(ConfigError, match=r"experiment\.output_dir="),
    ):
        sweep([*argv, "training.seed=1,2"], "ar")

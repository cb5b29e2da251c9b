"""Several processes take the step that one takes."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.runs import Outcome, same, train
from tests.training.world import argv

ROOT = Path(__file__).resolve().parents[2]


def launch(
    world: Path,
    folder: Path,
    *options: str,
    env: dict[str, str] | None = None,
    overrides: tuple[str, ...] = (),
    script: str = "train_upvla.py",
) -> Outcome:
    """``accelerate launch`` the entry point with two CPU processes; the end is judged by what it left behind."""
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        *options,
        "--main_process_port",
        "0",
        script,
    ]
    given = argv(world, folder, "optimizer.params.epsilon=1e-3", *overrides)
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    done = subprocess.run([*command, *given], cwd=ROOT, env=settings, capture_output=True, text=True, timeout=300)
    assert (folder / "model.safetensors").is_file(), done.stderr[-2000:]
    return Outcome(folder)


@pytest.mark.slow
def test_two_processes_with_batch_two_take_the_step_of_one_with_batch_four(
    run: Callable[..., Outcome], world: Path, tmp_path: Path
) -> None:
    one = run("one", training__batch_size_pre=4, training__batch_size_mmu=4, optimizer__params__epsilon=1e-3)
    launcher = ("--multi_gpu", "--num_processes", "2")
    two = launch(world, tmp_path / "two", *launcher, env={"ACCELERATE_USE_CPU": "true"})
    assert two.curve("total/loss") == pytest.approx(one.curve("total/loss"), rel=2e-6)
    assert same(one.weights(), two.weights(), tolerance=2e-6)


@pytest.mark.slow
def test_two_processes_hide_the_words_that_one_hides(world: Path, tmp_path: Path) -> None:
    """Block diffusion draws by sample: the split over ranks has no say."""
    bd = {"training__text_objective": "bd", "training__batch_size_pre": 4, "training__batch_size_mmu": 4}
    one = train(world, tmp_path / "one", "bd", optimizer__params__epsilon=1e-3, **bd)
    two = launch(
        world,
        tmp_path / "two",
        "--multi_gpu",
        "--num_processes",
        "2",
        env={"ACCELERATE_USE_CPU": "true"},
        overrides=("training.text_objective=bd",),
        script="train_blockdiff_vla.py",
    )
    assert two.curve("text/nats_per_token") == pytest.approx(one.curve("text/nats_per_token"), rel=2e-6)
    assert same(one.weights(), two.weights(), tolerance=2e-6)


@pytest.mark.slow
def test_deepspeed_takes_it_too_with_accumulated_micro_batches(
    run: Callable[..., Outcome], world: Path, tmp_path: Path
) -> None:
    pytest.importorskip("deepspeed")
    one = run("one", training__batch_size_pre=8, training__batch_size_mmu=8, optimizer__params__epsilon=1e-3)
    config = str(ROOT / "accelerate_configs" / "4_gpus_deepspeed_zero2.yaml")
    halves = ("training.gradient_accumulation_steps=2",)
    two = launch(world, tmp_path / "two", "--config_file", config, "--num_processes", "2", overrides=halves)
    assert two.curve("total/loss") == pytest.approx(one.curve("total/loss"), rel=2e-6)
    assert same(one.weights(), two.weights(), tolerance=2e-6)


def test_a_bad_command_line_ends_with_one_line_and_code_2(world: Path, tmp_path: Path) -> None:
    given = argv(world, tmp_path / "out", "training.max_train_stepz=3")
    done = subprocess.run([sys.executable, "train_upvla.py", *given], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if "max_train_stepz" in line]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("script", ["train_mdm_vla.py", "train_blockdiff_vla.py"])
def test_the_script_of_another_objective_says_which_one_to_use(
    world: Path, tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [script, *argv(world, tmp_path / "out", "training.text_objective=ar")])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert end.value.code == 2
    assert "python train_upvla.py" in capsys.readouterr().err

"""Random draws of several processes, and the message for a bad command line (the rest: test_sharded)."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.launches import ROOT, launch, sharded, start
from tests.training.runs import same, train
from tests.training.world import argv


@pytest.mark.slow
def test_two_processes_hide_the_words_that_one_hides(world: Path, tmp_path: Path) -> None:
    """Block diffusion draws by sample, independent of the split over ranks."""
    bd = {"training__text_objective": "bd", "training__batch_size_pre": 4, "training__batch_size_mmu": 4}
    one = train(world, tmp_path / "one", "bd", optimizer__params__epsilon=1e-3, **bd)
    over = ("training.text_objective=bd",)
    two = launch(world, tmp_path / "two", *sharded("ddp"), over, script="train_blockdiff_vla.py")
    assert two.curve("text/nats_per_token") == pytest.approx(one.curve("text/nats_per_token"), rel=2e-6)
    assert same(one.weights(), two.weights(), tolerance=2e-6)


def test_a_bad_command_line_ends_with_one_line_and_code_2(world: Path, tmp_path: Path) -> None:
    given = argv(world, tmp_path / "out", "training.max_train_stepz=3")
    done = subprocess.run([sys.executable, "train_upvla.py", *given], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if "max_train_stepz" in line]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("script", ["train_mdm_vla.py", "train_blockdiff_vla.py"])
def test_the_script_of_another_objective_names_the_right_one(
    world: Path, tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [script, *argv(world, tmp_path / "out", "training.text_objective=ar")])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert end.value.code == 2
    assert "python train_upvla.py" in capsys.readouterr().err


@pytest.mark.slow
def test_under_a_launcher_an_error_is_reported_once_and_last(world: Path, tmp_path: Path) -> None:
    options, env = sharded("ddp")
    done = start(world, tmp_path / "out", options, env, ("training.max_train_stepz=3",))
    assert done.returncode == 1
    named = [number for number, line in enumerate(done.stderr.splitlines()) if "max_train_stepz" in line]
    assert named == [len(done.stderr.strip().splitlines()) - 2], done.stderr  # a border of the launcher ends it

"""A sweep of real runs: the three objectives, each trained by its script in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from models.pretrained.model_io import load_folder
from tests.training.world import argv

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_three_objectives_train_by_their_scripts_and_stand_in_one_table(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    swept = ["training.text_objective=ar,mdm,bd", "training.max_train_steps=1"]
    command = [sys.executable, str(ROOT / "train_upvla.py"), "--multirun", *argv(world, folder, *swept)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    rows = json.loads((folder / "sweep.json").read_text())
    assert [row["state"] for row in rows] == ["done"] * 3
    for row in rows:
        assert load_folder(row["folder"]).spec.decoding.text_objective == row["overrides"]["training.text_objective"]
        assert row["steps"] == 1
        assert row["metrics"]["total/loss"] > 0
    assert "3 of 3 runs done" in done.stdout

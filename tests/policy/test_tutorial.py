"""The tutorial's first run, exactly as it is written there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("dummy_data/calvin/training", "dummy_data/calvin/validation", "dummy_data/llava", "assets/tiny_magvit")


def first_run() -> str:
    """The shell block of the tutorial."""
    section = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    blocks: list[str] = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 1, "the first run is one block, so that it can be copied and tested as one"
    return blocks[0]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder that looks like the repository, in which commands may write."""
    for name in NEEDED:
        if not (ROOT / name).is_dir():
            pytest.skip(f"{name} is not there; python -m preprocess_data.tiny_assets makes it")
    for path in ROOT.iterdir():
        if not path.name.startswith(".") and path.name not in ("outputs", "results", "debug_data"):
            (tmp_path / path.name).symlink_to(path)
    return tmp_path


def test_the_first_run_of_the_tutorial_works_as_it_is_written(repository: Path) -> None:
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    settings = {**os.environ, "PATH": search, "OMP_NUM_THREADS": "1"}
    command = ["bash", "-euo", "pipefail", "-c", first_run()]
    done = subprocess.run(command, cwd=repository, env=settings, capture_output=True, text=True, timeout=570)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (repository / "outputs/first_run/checkpoint-5/unwrapped_model/model.safetensors").is_file()
    result = json.loads((repository / "results/first_run.json").read_text(encoding="utf-8"))
    assert result["overall"]["samples"] == result["counts"]["annotations"] > 0
    assert result["policy"]["checkpoint"].endswith("outputs/first_run/checkpoint-5/unwrapped_model")
    assert "| first_run |" in done.stdout
    assert "| mean_action |" in done.stdout

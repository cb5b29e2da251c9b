"""``--help`` answers at once: nothing heavy is imported for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from common.files import PROJECT_DIR

ASK = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    assert not stop.code
print("imported:", *sorted({"torch", "transformers"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "script",
    [
        "train_upvla.py",
        "scripts/generate_text.py",
        "scripts/eval_upvla_offline_actions.py",
        "scripts/estimate_memory.py",
    ],
)
def test_help_is_told_without_torch(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(PROJECT_DIR / script)], cwd=PROJECT_DIR, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 10
    assert done.stdout.splitlines()[-1] == "imported:"

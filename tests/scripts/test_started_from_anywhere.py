"""Every script of docs runs by path and by module name, from any folder, and shadows nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_COMMANDS = {"policy_rollout/closed_loop/env_worker.py"}
"""Started by the project itself, or a demonstration without options."""
SCRIPTS = sorted(
    str(file.relative_to(ROOT))
    for file in [
        *ROOT.glob("*.py"),
        *(f for d in ("scripts", "policy_rollout", "preprocess_data") for f in (ROOT / d).glob("*.py")),
    ]
    if '__name__ == "__main__"' in file.read_text(encoding="utf-8") and str(file.relative_to(ROOT)) not in NOT_COMMANDS
)


def helped(command: list[str], cwd: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command, "--help"], cwd=cwd, env=env, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) > 3
    assert "Traceback" not in done.stderr


def test_the_commands_of_the_contract_are_looked_at() -> None:
    named = {"policy_rollout/policy_upvla.py", "policy_rollout/calvin_evaluate_upvla.py", "train_mdm_vla.py"}
    named |= {"scripts/smoke_upvla_minimal.py", "preprocess_data/process_bridge.py", "policy_rollout/serve.py"}
    assert named <= set(SCRIPTS)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs_by_path_and_by_module_from_another_folder(script: str, tmp_path: Path) -> None:
    helped([str(ROOT / script)], tmp_path)
    helped(["-m", script.removesuffix(".py").replace("/", ".")], tmp_path)


def test_the_client_for_ones_own_robot_runs_by_path(tmp_path: Path) -> None:
    helped([str(ROOT / "policy_rollout" / "policy_upvla.py")], tmp_path)


def test_no_module_beside_a_script_has_the_name_of_one_of_the_standard_library() -> None:
    """A script's folder comes first on Python's path: such a module hides Python's own."""
    folders = {file.parent for file in ROOT.rglob("*.py") if ".venv" not in file.parts and file.parent.name != "tests"}
    folders = {
        f for f in folders if any('__name__ == "__main__"' in p.read_text(encoding="utf-8") for p in f.glob("*.py"))
    }
    beside = [p for f in folders for p in f.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()]
    assert not [str(p) for p in beside if p.stem in sys.stdlib_module_names and not p.stem.startswith("__")]


@pytest.mark.parametrize("script", ["train_upvla.py", "scripts/show_mask.py", "preprocess_data/process_calvin.py"])
def test_a_reader_that_has_enough_ends_help_without_a_traceback(script: str) -> None:
    head = f"'{sys.executable}' '{ROOT / script}' --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", head], cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.stderr == ""
    assert done.returncode in (0, 141)


def test_the_names_of_the_original_are_aliases() -> None:
    import training.future_view_predction_w_action_dataset as theirs
    import training.future_view_prediction_w_action_dataset as ours

    assert theirs.DataProvider is ours.DataProvider
    link, data = ROOT / "dummy_data" / "llava_tuning_665k_data", ROOT / "dummy_data" / "llava"
    assert link.resolve() == data
    tracked = subprocess.run(["git", "ls-files", "-s", str(link)], cwd=ROOT, capture_output=True, encoding="utf-8")
    assert tracked.returncode != 0 or tracked.stdout.startswith("120000 "), "a link, not a copy"

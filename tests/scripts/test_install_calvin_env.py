"""scripts/install_calvin_env.sh with a checkout that is there already: nothing is cloned and nothing downloaded."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "scripts" / "install_calvin_env.sh"
FAKE = REPOSITORY / "tests" / "calvin" / "fake"
PYBULLET = """
DIRECT = 2
def connect(*_, **__): return 0
def stepSimulation(*_, **__): ...
def disconnect(*_, **__): ...
def loadPlugin(*_): return -1
"""


def install(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A new environment that sees the packages of this one, and stands-in for those the simulator needs."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    there = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = Path(subprocess.run([python, "-c", there], capture_output=True, text=True, check=True).stdout.strip())
    (site / "this.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    shutil.copytree(FAKE / "gymnasium", site / "gymnasium")
    (site / "pybullet.py").write_text(PYBULLET)
    for module in ("eglRenderer", "cv2", "quaternion", "git"):
        (site / f"{module}.py").touch()
    return python


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Of CALVIN, its submodule calvin_env filled."""
    folder = tmp_path / "a calvin"
    shutil.copytree(FAKE / "calvin_env", folder / "calvin_env" / "calvin_env")
    sentences = folder / "calvin_models" / "conf" / "annotations" / "new_playtable_validation.yaml"
    sentences.parent.mkdir(parents=True)
    sentences.touch()
    return folder


@pytest.mark.parametrize("inner", ["", "calvin_env"])
def test_a_checkout_is_put_where_python_finds_it_and_tried(python: Path, checkout: Path, inner: str) -> None:
    """Twice: what is there already is no obstacle. The second time in the checkout of calvin_env alone."""
    arguments = ["--source", str(checkout / inner), "--python", str(python), "--skip-packages"]
    install(*arguments)
    done = install(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"installed {checkout / 'calvin_env'}; evaluate with: ")
    assert "new_playtable_validation.yaml" in done.stdout
    found = subprocess.run(
        [python, "-c", "import calvin_env; print(calvin_env.__file__)"], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str(checkout / "calvin_env" / "calvin_env" / "__init__.py")


def test_what_is_missing_is_said_in_the_last_line(python: Path, checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    arguments = ["--python", str(python), "--skip-packages"]
    for source, said in ((tmp_path / "nowhere", "no such folder"), (tmp_path / "empty", "play_table_env.py")):
        done = install("--source", str(source), *arguments)
        assert done.returncode == 2
        assert said in done.stderr.splitlines()[-1]
    shutil.rmtree(next((tmp_path / "venv").rglob("gymnasium")))
    done = install("--source", str(checkout), *arguments)
    assert done.returncode == 2
    assert "gymnasium" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("install_calvin_env: calvin_env is installed but does not work")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--sauce"], "--sauce: no such option"), (["--dir"], "--dir needs a value")],
)
def test_a_mistyped_command_line_is_one_line(arguments: list[str], said: str) -> None:
    done = install(*arguments)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert said in done.stderr
    assert "--source DIR" in install("--help").stdout

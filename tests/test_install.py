"""The project is installed from its checkout only, and a script imports the packages of its own checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

import pytest

import common
from scripts.dev.write_requirements import contents

ROOT = Path(__file__).resolve().parents[1]
PRINT_ROOT = "import common, os; print(os.path.dirname(os.path.dirname(common.__file__)))\n"
SPAWN = """
import multiprocessing
import common

def work(n):
    import common
    return n + 1

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(work, [1]) == [2]
"""


builds = pytest.mark.skipif(find_spec("setuptools") is None, reason="pip brings setuptools to a build by itself")


def run(*command: str, cwd: Path, packages: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(packages)}
    return subprocess.run([sys.executable, *command], cwd=cwd, env=env, capture_output=True, encoding="utf-8")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A second checkout with a script."""
    root = tmp_path / "clone"
    (root / "scripts").mkdir(parents=True)
    shutil.copytree(ROOT / "common", root / "common")
    (root / "train_upvla.py").touch()
    (root / "scripts" / "__init__.py").touch()
    (root / "scripts" / "show.py").write_text(PRINT_ROOT, encoding="utf-8")
    return root


def test_the_requirements_files_are_those_of_pyproject() -> None:
    written = {path.name: path.read_text(encoding="utf-8") for path in ROOT.glob("requirements*.txt")}
    assert written == contents(), "run `make requirements`"


@builds
def test_an_editable_install_adds_the_root_and_nothing_else(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    build = "import build_backend; build_backend.build_editable('.')"
    done = run("-c", build, cwd=tmp_path, packages=ROOT / "scripts" / "dev")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (added,) = [name for name in archive.namelist() if ".dist-info/" not in name]
        assert added.endswith(".pth")
        assert archive.read(added).decode().split() == [str(tmp_path)]


@builds
@pytest.mark.parametrize("hook", ["get_requires_for_build_wheel()", "build_wheel('.')", "build_sdist('.')"])
def test_other_builds_are_refused_in_one_line(hook: str, tmp_path: Path) -> None:
    call = f"import build_backend; build_backend.{hook}"
    done = run("-c", call, cwd=tmp_path, packages=ROOT / "scripts" / "dev")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.rstrip().endswith("pip install -e .")
    assert not list(tmp_path.iterdir())


def test_the_installed_checkout_needs_no_pythonpath(tmp_path: Path) -> None:
    # The metadata of the build in the root (on PYTHONPATH) names no checkout; that of the installation does.
    urls = [found.read_text("direct_url.json") or "" for found in distributions(name="blockdiff-vla")]
    if not any(f'"file://{ROOT}"' in url for url in urls):
        pytest.skip("this checkout is not the installed one: pip install -e .")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(ROOT / "scripts" / "show_mask.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_script_refuses_the_packages_of_another_checkout(clone: Path) -> None:
    script = clone / "scripts" / "show.py"
    done = run(str(script), cwd=clone, packages=ROOT)
    assert done.returncode == 2
    assert done.stderr == (
        f"{script} imports the packages of another checkout, {ROOT}: "
        f"run pip install -e {clone}, or set PYTHONPATH={clone}\n"
    )
    done = run(str(script), cwd=ROOT, packages=clone)
    assert (done.stdout, done.stderr) == (f"{clone}\n", "")


def test_other_ways_to_start_python_are_not_refused(clone: Path, tmp_path: Path) -> None:
    """By module, by -c, a user's script outside of any checkout, a linked script, workers that are spawned."""
    for command in (("-m", "scripts.show"), ("-c", PRINT_ROOT)):
        assert run(*command, cwd=clone, packages=ROOT).stdout == f"{clone}\n"
    own = tmp_path / "own.py"
    own.write_text(PRINT_ROOT, encoding="utf-8")
    assert run(str(own), cwd=clone, packages=ROOT).stdout == f"{ROOT}\n"
    own.unlink()
    own.symlink_to(clone / "scripts" / "show.py")
    assert run(str(own), cwd=ROOT, packages=clone).stdout == f"{clone}\n"
    (clone / "scripts" / "spawn.py").write_text(SPAWN, encoding="utf-8")
    done = run(str(clone / "scripts" / "spawn.py"), cwd=ROOT, packages=clone)
    assert (done.returncode, done.stderr) == (0, "")


def test_programs_of_an_environment_that_lies_in_another_checkout_are_not_refused(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = clone / ".venv" / "lib" / "site-packages" / "pytest" / "__main__.py"
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(main), raising=False)
    with pytest.raises(SystemExit):
        common._require_packages_of_main()
    monkeypatch.setattr(sys, "prefix", str(clone / ".venv"))
    common._require_packages_of_main()
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)  # an interactive session
    common._require_packages_of_main()

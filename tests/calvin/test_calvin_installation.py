"""Incomplete installations of calvin_env are refused in one line before a model is loaded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from policy_rollout.benchmarks.base import find_benchmark
from policy_rollout.calvin import __main__ as readiness
from policy_rollout.calvin import installation
from policy_rollout.calvin.egl import Graphics
from policy_rollout.calvin.installation import check_packages, package_commit
from policy_rollout.calvin.trial import try_environment

Data = Callable[[str], Path]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n"
GIT = ["git", "-c", "user.name=Test", "-c", "user.email=test@example.com"]


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    given = {"environment": "calvin", "dataset_path": folder, "renderer": "tiny", "annotations": "own", "device": "cpu"}
    return {**given, **changes}


def git(folder: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = [*GIT, "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()


def commit_all(folder: Path) -> str:
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "x")
    return git(folder, "rev-parse", "HEAD")


# package_commit


def test_the_commit_is_that_of_the_checkout_itself(fake_calvin_env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = package_commit()
    assert unknown.startswith("unknown (code ")
    commit = commit_all(fake_calvin_env)
    assert package_commit() == commit
    elsewhere = fake_calvin_env.parent / f"{fake_calvin_env.name}_other"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    other = commit_all(elsewhere)
    monkeypatch.setenv("GIT_DIR", str(elsewhere / ".git"))  # as in a git hook
    assert package_commit() == commit != other


def test_an_archive_inside_another_repository_has_no_commit(
    fake_calvin_env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outer = tmp_path / "project"
    shutil.copytree(fake_calvin_env, outer / "third_party" / "calvin_env")
    commit_all(outer)
    archive = outer / "third_party" / "calvin_env"
    monkeypatch.setattr(installation, "package_folder", lambda: archive)
    first = package_commit()
    assert first.startswith("unknown (code "), "the enclosing repository's commit"
    (archive / "calvin_env" / "robot" / "robot.py").write_text("changed = True\n")
    assert package_commit() != first, "other code, other name"
    linked = tmp_path / "link"
    linked.symlink_to(archive)
    same = package_commit()
    monkeypatch.setattr(installation, "package_folder", lambda: linked)
    assert package_commit() == same
    inner = commit_all(archive)
    assert package_commit() == inner, "through a symbolic link"


# meshes and other files


@pytest.mark.parametrize(
    "name",
    [
        "calvin_table_D/meshes/base_link.obj",
        "calvin_table_D/textures/wood.png",
        "calvin_table_D/urdf/calvin_table_D.urdf",
        "blocks/block.obj",
        "meshes/link0.obj",
        "panda.urdf",
        "plane/plane.obj",
    ],
)
def test_a_git_lfs_pointer_is_named(fake_calvin_env: Path, data: Data, name: str, capfd: Any) -> None:
    folder, file = data("D"), fake_calvin_env / "data" / name
    try_environment(folder / "validation", Graphics(False))
    file.parent.mkdir(exist_ok=True)
    file.write_text(POINTER)
    for given in ([], [str(folder)]):
        assert readiness.main(given) == 2
        last = capfd.readouterr().err.splitlines()[-1]
        assert str(file) in last
        assert "git lfs pull" in last
    with pytest.raises(ValueError, match=r"Git-LFS pointer.*git lfs pull") as caught:
        find_benchmark(settings(folder))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["meshes/link0.obj", "calvin_table_D/meshes/base_link.obj", "blocks/red.urdf"])
@pytest.mark.parametrize("damage", ["missing", "empty"])
def test_a_missing_or_empty_file_is_named(fake_calvin_env: Path, data: Data, name: str, damage: str) -> None:
    folder, file = data("D"), fake_calvin_env / "data" / name
    file.unlink()
    if damage == "empty":
        file.touch()
    with pytest.raises(ValueError, match=rf"{file.name}.*the checkout of calvin_env is not complete") as caught:
        find_benchmark(settings(folder))
    assert "\n" not in str(caught.value)


def test_a_table_that_is_not_used_may_be_incomplete(fake_calvin_env: Path, data: Data) -> None:
    (fake_calvin_env / "data" / "calvin_table_A" / "meshes" / "base_link.obj").write_text(POINTER)
    find_benchmark(settings(data("D")))


# packages


def without(monkeypatch: pytest.MonkeyPatch, *absent: str) -> None:
    monkeypatch.setattr(installation, "find_spec", lambda name: None if name in absent else find_spec(name))


@pytest.mark.parametrize(
    ("absent", "remedy"),
    [
        (["pybullet"], "pip install pybullet==3.2.7"),
        (["quaternion", "git"], "pip install numpy-quaternion GitPython"),
        (["gymnasium", "gym"], "pip install gymnasium"),
    ],
)
def test_missing_packages_are_named_with_the_command_that_installs_them(
    fake_calvin_env: Path, data: Data, monkeypatch: pytest.MonkeyPatch, absent: list[str], remedy: str
) -> None:
    check_packages()
    without(monkeypatch, *absent)
    with pytest.raises(ValueError, match="not installed") as caught:
        find_benchmark(settings(data("D"), renderer=None))
    assert str(caught.value).endswith(remedy)
    assert "\n" not in str(caught.value)


def test_gym_is_used_if_gymnasium_is_not_installed(fake_calvin_env: Path, data: Data) -> None:
    """CALVIN's own requirements bring gym 0.26."""
    (fake_calvin_env / "gymnasium").rename(fake_calvin_env / "gym")
    try:
        assert find_benchmark(settings(data("D"))).name == "calvin"
    finally:
        (fake_calvin_env / "gym").rename(fake_calvin_env / "gymnasium")


@pytest.mark.parametrize("module", ["robot/robot.py", "scene/play_table_scene.py", "camera/gripper_camera.py"])
def test_a_module_that_only_a_part_of_calvin_env_imports_is_named(
    fake_calvin_env: Path, data: Data, module: str, capfd: Any
) -> None:
    """calvin_env 1431a46 imports rich, which its requirements do not list."""
    (fake_calvin_env / "calvin_env" / module).write_text("import rich_of_nobody.traceback\n")
    folder = data("D")
    remedy = "pip install rich_of_nobody, or bash scripts/install_calvin_env.sh"
    with pytest.raises(ValueError, match=remedy) as caught:
        find_benchmark(settings(folder))
    assert "\n" not in str(caught.value)
    hook = sys.excepthook
    assert readiness.main([]) == 2
    assert "pip install rich_of_nobody" in capfd.readouterr().err.splitlines()[-1]
    assert sys.excepthook is hook


def test_a_process_that_ends_while_it_builds_the_environment_is_one_line(fake_calvin_env: Path, data: Data) -> None:
    module = fake_calvin_env / "calvin_env" / "robot" / "robot.py"
    module.write_text("import os, sys\nos.write(2, b'no driver\\n')\nos._exit(7)\n")
    with pytest.raises(ValueError, match=r"cannot build the environment of .*validation \(exit code 7: ") as caught:
        find_benchmark(settings(data("D")))
    assert "\n" not in str(caught.value)
    module.write_text("raise RuntimeError('a conflict')\n")
    with pytest.raises(ValueError, match=r"exit code 1: RuntimeError: a conflict") as caught:
        find_benchmark(settings(data("A")))
    assert "\n" not in str(caught.value)
    module.write_text("raise AttributeError('module numpy has no attribute bool', name='bool')\n")
    with pytest.raises(ValueError, match=r"no attribute bool\): bash scripts/install_calvin_env.sh$") as caught:
        find_benchmark(settings(data("C")))
    assert "\n" not in str(caught.value)


# the path of the data


@pytest.mark.parametrize("ending", ["validation", "validation/", "training", "validation/.hydra/.."])
def test_a_path_that_ends_in_a_split_is_answered_with_the_folder_above(
    fake_calvin_env: Path, data: Data, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = data("D")
    (folder / "training").mkdir()
    said = f"did you mean dataset_path={folder}?"
    with pytest.raises(FileNotFoundError) as caught:
        find_benchmark(settings(folder, dataset_path=f"{folder}/{ending}"))
    assert str(caught.value).endswith(said)
    assert readiness.main([f"{folder}/{ending}"]) == 2
    assert capsys.readouterr().err.strip().endswith(said)


def test_a_link_to_a_split_is_answered_with_the_folder_of_its_target(
    fake_calvin_env: Path, data: Data, tmp_path: Path
) -> None:
    folder = data("D")
    (tmp_path / "val").symlink_to(folder / "validation")
    with pytest.raises(FileNotFoundError, match="did you mean") as caught:
        find_benchmark(settings(tmp_path / "val"))
    assert str(caught.value).endswith(f"dataset_path={folder}?")

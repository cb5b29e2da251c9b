"""Check the installation of CALVIN: package, commit, dependencies, meshes and data. Imports no simulator."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from policy_rollout.calvin.tasks import TASK_NAMES

REQUIRED = {
    "pybullet": "pybullet==3.2.7",
    "cv2": "opencv-python-headless",
    "quaternion": "numpy-quaternion",
    "git": "GitPython",
    "scipy": "scipy",
    "hydra": "hydra-core==1.3.8",
}
"""Modules that calvin_env imports, and the pip requirement of each. gymnasium or gym is needed too."""
POINTER = b"version https://git-lfs.github.com/spec/"
INCOMPLETE = "the checkout of calvin_env is not complete"
ANNOTATIONS_IN_CALVIN = Path("calvin_models") / "conf" / "annotations" / "new_playtable_validation.yaml"
"""CALVIN's validation instructions, with which no demonstration is annotated, in a checkout of CALVIN."""


def package_folder() -> Path | None:
    """Return the checkout of the package calvin_env, None if it is not installed. Nothing is imported."""
    spec = find_spec("calvin_env")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))).parent


def package_commit() -> str:
    """Return the commit of the calvin_env checkout. Without one: "unknown", and a digest of the package's code."""
    folder = package_folder()
    if folder is None:
        return "unknown"
    # Git looks for a repository in all parent folders too, and in GIT_DIR. Neither is calvin_env's own.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, env=environment)
        lines = done.stdout.splitlines() if done.returncode == 0 else []
    except FileNotFoundError:
        lines = []
    if len(lines) == 2 and Path(lines[0]).resolve() == folder.resolve():
        return lines[1]
    digest = hashlib.sha256()
    for file in sorted((folder / "calvin_env").rglob("*.py")):
        digest.update(f"{file.relative_to(folder).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return f"unknown (code {digest.hexdigest()[:12]})"


def check_packages() -> None:
    """Raise ``ValueError`` if a package that calvin_env imports is not installed, with the command that installs it."""
    missing = {module: package for module, package in REQUIRED.items() if find_spec(module) is None}
    if find_spec("gymnasium") is None and find_spec("gym") is None:
        missing["gymnasium"] = "gymnasium"
    if missing:
        raise ValueError(
            f"calvin_env needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            f"pip install {' '.join(missing.values())}"
        )


def find_split(dataset_path: Path) -> Path:
    """Return the validation folder of CALVIN's data. Raise ``FileNotFoundError`` with a hint if there is none."""
    root = dataset_path.expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"dataset_path={root}: no such folder")
    if (root / "validation").is_dir():
        return root.resolve() / "validation"
    absolute = Path(os.path.abspath(root))  # without symlinks resolved: the parent as it was typed
    above = [folder for folder in (absolute.parent, root.resolve().parent) if (folder / "validation").is_dir()]
    inside = [folder.name for folder in sorted(root.iterdir()) if (folder / "validation").is_dir()]
    if above:
        hint = f"; its parent has one: did you mean dataset_path={above[0]}?"
    else:
        hint = f"; it has {', '.join(inside)}: did you mean one of them?" if inside else ""
    raise FileNotFoundError(f"dataset_path={root} has no folder validation{hint}")


def check_assets(config: Any, file: Path) -> None:
    """Raise ``ValueError`` if a body that the configuration names, or one of its meshes or textures, cannot be read.
    pybullet only prints a warning and builds the body without that mesh. `file`: the configuration's, for messages."""
    package = package_folder()
    data = Path(str(config.scene.get("data_path", "data")))
    folder = data if package is None else package / data  # an absolute path stays as it is
    objects = config.scene.get("objects", {})
    names = [config.robot.get("filename"), "plane/plane.urdf"]
    for kind in ("movable_objects", "fixed_objects"):
        names += [body.get("file") for body in objects.get(kind, {}).values()]
    bodies = [folder / str(name) for name in names if name is not None]
    for body in bodies:
        if not body.is_file():
            raise ValueError(f"{file} names {body}, which does not exist: {INCOMPLETE}")
    for top in sorted({_top_folder(body, folder) for body in bodies}):
        check_files(sorted(top.rglob("*")))
    for body in bodies:
        check_files([body])
        for mesh in _missing_meshes(body, folder):
            raise ValueError(f"{body} names {mesh}, which does not exist: {INCOMPLETE}")


def _top_folder(body: Path, data: Path) -> Path:
    """Return the folder of `data` that holds a body with its meshes and textures."""
    if body.parent == data or data not in body.parents:
        return body.parent / "meshes"
    return data / body.relative_to(data).parts[0]


def check_files(paths: Iterable[Path]) -> None:
    """Raise ``ValueError`` if one of these files is empty or a Git-LFS pointer."""
    files = [path for path in paths if path.is_file() and not path.name.startswith(".")]
    pointers = [path for path in files if _starts_with(path, POINTER)]
    if pointers:
        also = f" (and {len(pointers) - 1} more)" if len(pointers) > 1 else ""
        raise ValueError(
            f"{pointers[0]}{also} is a Git-LFS pointer, not the file itself: run `git lfs pull` in that checkout"
        )
    for path in files:
        if path.stat().st_size == 0:
            raise ValueError(f"{path} is empty: {INCOMPLETE}")


def _starts_with(path: Path, prefix: bytes) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(prefix)) == prefix


def _missing_meshes(urdf: Path, data: Path) -> Iterator[str]:
    """Yield the meshes of a body that are neither in its folder nor in a folder above it, up to `data`."""
    try:
        root = ElementTree.parse(urdf).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{urdf} cannot be read: {error}") from error
    folders = [folder for folder in urdf.parents if folder == data or data in folder.parents]
    for element in root.iter("mesh"):
        name = element.get("filename", "").removeprefix("package://")
        if not any((folder / name).is_file() for folder in folders):
            yield name


def find_annotations() -> Path | None:
    """Return the file in the checkout of CALVIN that has the installed calvin_env; None without one."""
    package = package_folder()
    file = None if package is None else package.parent / ANNOTATIONS_IN_CALVIN
    return file if file is not None and file.is_file() else None


def read_annotations(file: Path) -> dict[str, str]:
    """Return CALVIN's instruction for each of the 34 tasks: the first one listed.

    Raises ``FileNotFoundError`` or ``ValueError`` in one line naming the file.
    """
    import yaml

    if not file.is_file():
        raise FileNotFoundError(f"annotations={file}: no such file; give CALVIN's {ANNOTATIONS_IN_CALVIN}")
    try:
        table = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"annotations={file} cannot be read: {' '.join(str(error).split())}") from error
    instructions: dict[str, str] = {}
    for task in TASK_NAMES:
        listed = table.get(task) if isinstance(table, dict) else None
        instruction = listed[0] if isinstance(listed, list) and listed else listed
        if not isinstance(instruction, str) or not instruction.strip():
            raise ValueError(f"annotations={file} has no instruction for the task {task}")
        instructions[task] = instruction
    return instructions

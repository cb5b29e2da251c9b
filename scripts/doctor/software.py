"""Checks of Python, of the installed packages, and of the checkout that commands import."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

from common.files import PROJECT_DIR
from scripts.doctor.findings import Finding

REQUIRED = "requirements_minimal.txt"
OPTIONAL = {
    "requirements.txt": "DeepSpeed, LoRA, TFRecord checksums, SentencePiece tokenizers",
    "requirements-lerobot.txt": "LeRobot data",
    "requirements-optional.txt": "MP4 videos, 8-bit optimizer states, Slurm sweeps",
}
"""Requirements files, which `make requirements` writes from pyproject.toml, and what their packages are for."""


def check_python() -> Finding:
    """Compare Python's version with those of pyproject.toml."""
    text = (PROJECT_DIR / "pyproject.toml").read_text(encoding="utf-8")
    supported = [int(minor) for minor in re.findall(r"Python :: 3\.(\d+)", text)]
    low, high, here = min(supported), max(supported), sys.version_info
    name = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    facts = {"version": platform.python_version(), "platform": platform.platform()}
    remedy = f"use Python 3.{low} to 3.{high} (make venv PYTHON=python3.{high})"
    if here < (3, low):
        return Finding("python", "error", f"{name} is too old", remedy, facts)
    if here[:2] > (3, high):
        return Finding("python", "warning", f"{name} is newer than the tested versions", remedy, facts)
    return Finding("python", "ok", f"{name} (3.{low} to 3.{high} are supported)", facts=facts)


def check_checkout() -> Iterator[Finding]:
    """Find which checkout is imported, and whether the current folder is another one."""
    state = _git("rev-parse", "--short", "HEAD")
    changed = "" if not state else " with changes" if _git("status", "--porcelain", "-uno") else ""
    text = f"{PROJECT_DIR}, commit {state}{changed}" if state else f"{PROJECT_DIR} (not a git checkout)"
    yield Finding("checkout", "ok", text, facts={"commit": state + changed})
    for folder in (Path.cwd(), *Path.cwd().parents):
        is_checkout = (folder / "train_upvla.py").is_file() and (folder / "common" / "__init__.py").is_file()
        if is_checkout and folder.resolve() != PROJECT_DIR:
            remedy = f"pip install -e {folder}, or set PYTHONPATH={folder}"
            yield Finding("checkout", "warning", f"the current folder is in another checkout, {folder}", remedy)
            return


def check_packages() -> Iterator[Finding]:
    """Compare installed packages with the ranges in the requirements files."""
    if find_spec("packaging") is None:
        remedy = f"pip install -r {REQUIRED}"
        yield Finding("packages", "error", "the package packaging is not installed, as most others", remedy)
        return
    found, absent, wrong = _compare(REQUIRED)
    for name, asked in absent:
        yield Finding("packages", "error", f"{name} is not installed", f'pip install "{asked}"')
    yield from wrong
    if not absent and not wrong:
        shown = ", ".join(f"{name} {found[name]}" for name in ("torch", "transformers", "accelerate", "mujoco"))
        text = f"all {len(found)} of {REQUIRED} are installed in supported versions: {shown}"
        yield Finding("packages", "ok", text, facts=found)
    for file, purpose in OPTIONAL.items():
        found, absent, wrong = _compare(file)
        yield from wrong
        if absent:
            names = ", ".join(name for name, _ in absent)
            yield Finding("packages", "note", f"not installed: {names} ({purpose})", f"pip install -r {file}", found)
        elif not wrong:
            yield Finding("packages", "ok", f"all of {file} are installed ({purpose})", facts=found)
    if (torchvision := _torchvision()) is not None:
        yield torchvision


def _compare(file: str) -> tuple[dict[str, str], list[tuple[str, str]], list[Finding]]:
    """Return (installed versions, (package, requirement) that are absent, findings on other versions) of a file."""
    from packaging.requirements import Requirement
    from packaging.version import Version

    found: dict[str, str] = {}
    absent: list[tuple[str, str]] = []
    wrong: list[Finding] = []
    for line in (PROJECT_DIR / file).read_text(encoding="utf-8").splitlines():
        if not line or line.startswith(("#", "-")):
            continue
        asked = Requirement(line)
        try:
            found[asked.name] = installed = version(asked.name)
        except PackageNotFoundError:
            absent.append((asked.name, line))
            continue
        if asked.specifier.contains(Version(installed).public, prereleases=True):
            continue
        bounds = [Version(s.version) for s in asked.specifier if s.operator in (">=", "==")]
        is_old = any(Version(installed) < bound for bound in bounds)
        what = "is too old" if is_old else "is newer than the tested versions"
        text = f"{asked.name} {installed} {what} ({asked.specifier})"
        wrong.append(Finding("packages", "error" if is_old else "warning", text, f'pip install "{line}"', found))
    return found, absent, wrong


def _torchvision() -> Finding | None:
    """Return a finding if torchvision is installed for another torch, which breaks the import of transformers."""
    try:
        installed, torch = version("torchvision"), version("torch")
    except PackageNotFoundError:
        return None
    pins = re.findall(r"^torch\s*\(?==\s*([\w.]+)", "\n".join(requires("torchvision") or ()), re.MULTILINE)
    builds = [text.partition("+")[2] for text in (installed, torch)]
    remedy = "pip uninstall torchvision (this project does not use it)"
    if (pins and pins[0] != torch.partition("+")[0]) or builds[0] != builds[1]:
        text = f"torchvision {installed} does not belong to torch {torch}: the import of transformers fails"
        return Finding("packages", "error", text, remedy)
    return Finding("packages", "note", f"torchvision {installed} is installed; it has to change with torch", remedy)


def _git(*arguments: str) -> str:
    """Return the output of git in the checkout, empty if there is no git or no repository."""
    if shutil.which("git") is None:
        return ""
    command = ["git", "-C", str(PROJECT_DIR), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""

"""Text is read and written as UTF-8, whatever the locale says.

ruff's PLW1514 sees only files whose type it can infer; the first test sees every call.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.world import build_world

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ("common", "config", "models", "training", "policy_rollout", "preprocess_data", "scripts", "benchmarks")
TEXT_OF = {"read_text", "write_text"}
NOT_FILES = {"Image", "av", "os", "zipfile", "webbrowser"}
"""Whose `open` has nothing to do with text."""


def product_files() -> list[Path]:
    return [*ROOT.glob("*.py"), *(file for package in PRODUCT for file in (ROOT / package).rglob("*.py"))]


def calls_in_the_locales_encoding(tree: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if "encoding" in given or None in given:
            continue
        of_a_path = isinstance(node.func, ast.Attribute) and node.func.attr in TEXT_OF
        if of_a_path or is_text_mode(node) or is_true(given.get("text")) or is_true(given.get("universal_newlines")):
            yield node


def is_text_mode(node: ast.Call) -> bool:
    """`open(path, "w")`, `path.open("w")`: a literal mode without b; `open(path)`: no mode."""
    if isinstance(node.func, ast.Attribute):
        owner = node.func.value
        if node.func.attr != "open" or (isinstance(owner, ast.Name) and owner.id in NOT_FILES):
            return False
        modes = node.args[:1]
    elif isinstance(node.func, ast.Name) and node.func.id == "open":
        modes = node.args[1:2]
        if not modes and not any(keyword.arg == "mode" for keyword in node.keywords):
            return True
    else:
        return False
    modes = [*modes, *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
    literal = [m.value for m in modes if isinstance(m, ast.Constant) and isinstance(m.value, str)]
    return any(set(mode) <= set("rwaxt+") for mode in literal)


def is_true(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def test_every_text_file_and_pipe_names_its_encoding() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{call.lineno}"
        for file in product_files()
        for call in calls_in_the_locales_encoding(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert not found


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("file.write_text(x)", True),
        ("file.write_text(x, encoding='utf-8')", False),
        ("open(file)", True),
        ("open(file, 'rb')", False),
        ("path.open('a')", True),
        ("packed.open(name)", False),
        ("Image.open('a')", False),
        ("run(command, text=True)", True),
        ("run(command, text=True, encoding='utf-8')", False),
    ],
)
def test_the_check_sees_what_it_looks_for(code: str, wrong: bool) -> None:
    assert bool(list(calls_in_the_locales_encoding(ast.parse(code)))) is wrong


@pytest.mark.slow
@pytest.mark.parametrize("locale", ["C", "en_US.ISO-8859-1"])
def test_a_run_with_letters_of_any_script_trains_under_any_locale(locale: str, tmp_path: Path) -> None:
    """`C` without coercion and UTF-8 mode is ASCII; a locale that is not installed falls back to it."""
    installed = subprocess.run(["locale", "-a"], capture_output=True, encoding="utf-8").stdout.lower().replace("-", "")
    if locale.lower().replace("-", "") not in installed.split():
        pytest.skip(f"locale {locale} is not installed")
    world = build_world(tmp_path / "world")
    config = world / "own.yaml"
    text = (
        (world / "tiny.yaml")
        .read_text(encoding="utf-8")
        .replace("Which colour is it?", "Welche Farbe hat\u2019s, 什么颜色?")
    )
    config.write_text(text.replace("name: test", "name: größe"), encoding="utf-8")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "PYTHONIOENCODING"))}
    env |= {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": "1"}

    def train(*argv: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "train_upvla.py"), *argv]
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, encoding="utf-8", errors="replace")

    for given, out in ((config, tmp_path / "out"), (tmp_path / "out" / "config.yaml", tmp_path / "again")):
        more = ["training.max_train_steps=1", "experiment.generate_every=1", "experiment.tracker=tensorboard"]
        done = train(f"config={given}", f"experiment.output_dir={out}", *more)
        assert done.returncode == 0, done.stderr[-2000:]
        written = (out / "config.yaml").read_text(encoding="utf-8")
        assert "什么颜色" in written
        assert "größe" in written
    if locale == "C":
        done = train(f"config={config}", "question=什么颜色")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "set PYTHONUTF8=1" in done.stderr

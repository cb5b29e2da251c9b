"""The documentation names only what is there."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

from config.parsing import keys

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
SOURCES = (
    "config",
    "models",
    "training",
    "policy_rollout",
    "preprocess_data",
    "scripts",
    "benchmarks",
    "tests",
    "accelerate_configs",
)
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def code(page: Path) -> str:
    """Everything in a page that is written as code: between backticks, in fences, or indented."""
    text = page.read_text(encoding="utf-8")
    return "\n".join([*re.findall(r"`([^`]+)`", text), *re.findall(r"^(?: {4}|\t).+$", text, re.MULTILINE)])


@pages
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert not missing


@pages
def test_files_and_names_in_them_are_there(page: Path) -> None:
    missing = []
    for path, name in re.findall(r"((?:\w+/)+\w+\.(?:py|yaml))(?:::([\w.]+))?", code(page)):
        if path.split("/")[0] not in SOURCES:
            continue
        file = ROOT / path
        if not file.is_file():
            missing.append(path)
        elif name:
            text = file.read_text(encoding="utf-8")
            defined = [re.search(rf"(def|class) {part}\b|^{part}\b", text, re.MULTILINE) for part in name.split(".")]
            missing += [] if all(defined) else [f"{path}::{name}"]
    assert not missing


@pages
def test_modules_that_are_started_are_there(page: Path) -> None:
    missing = []
    for module in re.findall(r"python -m ([\w.]+)", code(page)):
        path = ROOT / module.replace(".", "/")
        known = path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
        if module.split(".")[0] in SOURCES and not known:
            missing.append(module)
    assert not missing


@pages
def test_configuration_keys_exist(page: Path) -> None:
    sections = {key.split(".")[0] for key in keys() if "." in key}
    known = {part for key in keys() for part in (key, key.rpartition(".")[0])} | {"model.showo.tuned_model_path"}
    named = re.findall(rf"(?<![\w./])((?:{'|'.join(sections)})(?:\.[a-z]\w*)+)", code(page))
    wrong = [name for name in named if name not in known and not _is_module_or_file(name)]
    assert not wrong


def _is_module_or_file(name: str) -> bool:
    """`training.data`, `model.safetensors` and `training.md` look like keys."""
    path = ROOT / "/".join(name.split(".")[:2])
    return path.is_dir() or path.with_suffix(".py").is_file() or name.endswith((".safetensors", ".yaml", ".md"))


@pages
def test_python_examples_compile_and_import_what_exists(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = import_module(str(node.module))
                for name in node.names:  # a name of the module, or a module below it
                    assert hasattr(module, name.name) or import_module(f"{node.module}.{name.name}")

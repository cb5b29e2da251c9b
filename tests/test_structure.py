"""The structure of the product: imports without cycles, small folders, short files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("common", "config", "models", "training", "policy_rollout", "preprocess_data", "scripts", "benchmarks")
MAX_MODULES, MAX_LINES = 12, 400


@pytest.fixture(scope="module")
def files() -> list[Path]:
    return [file for name in PACKAGES for file in (ROOT / name).rglob("*.py")]


def components(imports: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of a graph (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in imports[node]:
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            start = stack.index(node)
            found.append(stack[start:])
            del stack[start:]

    for node in imports:
        if node not in index:
            visit(node)
    return found


def test_no_modules_import_each_other_in_a_cycle() -> None:
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    imports = {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}
    assert [names for names in components(imports) if len(names) > 1] == []


def test_a_cycle_is_found() -> None:
    assert sorted(map(sorted, components({"a": {"b"}, "b": {"c"}, "c": {"b"}}))) == [["a"], ["b", "c"]]


def test_a_folder_holds_at_most_a_dozen_modules(files: list[Path]) -> None:
    counts = Counter(file.parent.relative_to(ROOT) for file in files if not file.name.startswith("__"))
    assert {str(folder): count for folder, count in counts.items() if count > MAX_MODULES} == {}


def test_a_file_has_at_most_400_lines(files: list[Path]) -> None:
    lengths = {str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}

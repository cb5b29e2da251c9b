"""The documentation site has every page, and is built without a warning."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from common.files import PROJECT_DIR
from scripts.dev.docs_hooks import on_page_markdown

SETTINGS = PROJECT_DIR / "mkdocs.yml"


class Loader(yaml.SafeLoader):
    """Reads mkdocs.yml without the functions that it names."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda loader, suffix, node: suffix)


def pages(entries: list[object]) -> list[str]:
    found = []
    for entry in entries:
        values = entry.values() if isinstance(entry, dict) else [entry]
        for value in values:
            found += pages(value) if isinstance(value, list) else [str(value)]
    return found


def test_every_page_is_in_the_navigation_once() -> None:
    listed = pages(yaml.load(SETTINGS.read_text(encoding="utf-8"), Loader=Loader)["nav"])
    there = {str(file.relative_to(PROJECT_DIR / "docs")) for file in (PROJECT_DIR / "docs").rglob("*.md")}
    assert set(listed) == there
    assert len(listed) == len(there)


def test_the_api_pages_name_modules_that_are_there() -> None:
    for page in (PROJECT_DIR / "docs" / "api").glob("*.md"):
        for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            path = PROJECT_DIR / name.replace(".", "/")
            assert path.with_suffix(".py").is_file() or path.is_dir(), f"{page.name}: {name}"


def test_links_out_of_the_documentation_become_paths() -> None:
    text = "[figures](../benchmarks/results/README.md#serving), [a](b.md), ![x](images/x.png), [`a/b.py`](../a/b.py)"
    expected = "figures (`benchmarks/results/README.md`), [a](b.md), ![x](images/x.png), `a/b.py`"
    assert on_page_markdown(text) == expected


@pytest.mark.slow
@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings")),
    reason="pip install --group docs installs mkdocs",
)
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=PROJECT_DIR, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "UPVLA" in (tmp_path / "api" / "models.html").read_text(encoding="utf-8")

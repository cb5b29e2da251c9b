"""The notebook runs from its first to its last cell, and its committed outputs are small and without errors."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from common.files import PROJECT_DIR

NOTEBOOK = PROJECT_DIR / "docs" / "quickstart.ipynb"
MAX_BYTES = 500_000


@pytest.fixture
def notebook() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return content


def test_the_notebook_was_executed_and_is_small(notebook: dict[str, Any]) -> None:
    assert NOTEBOOK.stat().st_size < MAX_BYTES
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [output["output_type"] for cell in cells for output in cell["outputs"]]
    assert "error" not in kinds
    assert kinds.count("display_data") == 3  # predicted image, rollout, answers


def test_the_notebook_names_no_folder_of_the_machine_that_ran_it() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not [word for word in ("/work/", "/home/", "/root/", "/tmp/") if word in text]


@pytest.mark.slow
@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("nbclient", "nbformat", "ipykernel")),
    reason='pip install -e ".[notebook]" installs nbclient',
)
def test_the_notebook_runs(notebook: dict[str, Any], tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    cells = nbformat.from_dict({**notebook, "nbformat": 4})
    done = NotebookClient(cells, timeout=900, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    texts = [output["text"] for cell in done.cells for output in cell.get("outputs", []) if "text" in output]
    assert any("trained: True" in text for text in texts)
    assert any("8 done" in text for text in texts)

"""The oracle's verdicts against those of calvin_env's own `Tasks`, on invented and on recorded infos.

The vectors lie beside the repository (or in BLOCKDIFF_CALVIN_DIR) and are not part of it.
"""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from policy_rollout.calvin.oracle import TaskOracle

FOLDER = Path(os.environ.get("BLOCKDIFF_CALVIN_DIR", Path(__file__).parents[3] / "shared" / "calvin"))
VECTORS = FOLDER / "oracle_vectors.json.gz"
pytestmark = pytest.mark.skipif(not VECTORS.is_file(), reason=f"no verdicts of calvin_env in {VECTORS}")


@pytest.fixture(scope="module")
def vectors() -> Any:
    with gzip.open(VECTORS, "rt", encoding="utf-8") as file:
        return json.load(file)


def test_invented_infos_are_evaluated_as_calvin_env_evaluates_them(vectors: Any) -> None:
    compare(vectors["random"])


def test_recorded_infos_are_evaluated_as_calvin_env_evaluates_them(vectors: Any) -> None:
    states = vectors["states"]
    compare([(states[i], states[j], tasks) for i, j, tasks in vectors["state_pairs"]])


def compare(cases: list[Any]) -> None:
    assert cases
    oracle, wrong = TaskOracle(), Counter[str]()
    for start, end, tasks in cases:
        wrong.update(oracle.tasks_done(start, end) ^ set(tasks))
    assert not wrong, f"tasks with other verdicts, and in how many of {len(cases)} pairs: {dict(wrong)}"

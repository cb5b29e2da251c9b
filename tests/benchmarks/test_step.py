"""The parts of a step are the step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import step


@pytest.mark.slow  # two processes with a whole run in each
def test_the_parts_of_a_step_add_up_to_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "step.json"
    smaller = ["training.batch_size_pre=1", "training.batch_size_mmu=1"]
    step.main(["--objectives", "bd", "--rounds", "1", "--out", str(out), *smaller])
    record = json.loads(out.read_text())
    found = record["results"]["bd"]
    assert set(found["parts"]) == set(step.PARTS)
    assert sum(found["shares"].values()) == pytest.approx(1, abs=0.1)
    assert found["parts"]["backward"]["median"] > found["parts"]["read the data"]["median"]
    assert found["memory_mb"]["above"] > 0
    assert record["settings"]["overrides"] == smaller
    assert capsys.readouterr().out.splitlines()[-1] == f"figures: {out}"


def test_an_unknown_key_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        step.main(["training.batch_sise=1"])
    assert "training.batch_sise" in capsys.readouterr().err

"""The first command a user types, end to end at its smallest size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts import quickstart


@pytest.mark.slow
def test_quickstart_records_trains_evaluates_and_lists_its_outputs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run here"
    assert quickstart.main(["--steps", "2", "--episodes", "1", "--output", str(folder)]) == 0
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert list(results) == ["shipped model", "trained", "untrained", "mean action", "experts"]
    assert all(row["samples"] > 0 for name, row in results.items() if name != "experts")
    assert results["experts"]["closed_loop_success"] == 1
    assert results["trained"]["mae_all"] != results["untrained"]["mae_all"]
    assert len(list((folder / "pictures").glob("rollout_*.gif"))) == 12  # four episodes, three who play
    assert (folder / "pictures/now_predicted_true.png").is_file()
    report = (folder / "report.html").read_text(encoding="utf-8")
    for heading in ("Numbers", "does", "sees", "expects to see", "says", "Next"):
        assert f"{heading}</h2>" in report
    assert len(report) < 5_000_000
    assert (folder / "processed_training/token_cache").is_dir()
    assert json.loads((folder / "run/config.json").read_text())["blockdiff_vla"]["state"] is not None
    assert capsys.readouterr().err.splitlines()[-1].startswith("next: open ")

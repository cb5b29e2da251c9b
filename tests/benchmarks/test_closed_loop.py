"""The benchmark of the closed loop: six ways to play the same chains."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.closed_loop import PARTS, WAYS, Run, check_records, main
from policy_rollout.closed_loop.interface import ChainRecord


def test_every_way_runs_the_same_chains_and_its_cost_is_recorded(tmp_path: Path) -> None:
    main(["--chains", "2", "--steps", "12", "--rounds", "1", "--out", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())
    assert list(found["results"]) == list(WAYS)
    assert found["settings"]["control_steps"] == 24
    for row in found["results"].values():
        assert set(row["parts"]) == set(PARTS)
        assert all(row["parts"][part] > 0 for part in ("forward", "pictures", "physics", "oracle"))
    assert found["results"]["lazy"]["parts"]["pictures"] < found["results"]["eager"]["parts"]["pictures"] / 3
    assert found["results"]["workers"]["start_of_workers"] > 0


def test_ways_with_other_outcomes_are_not_compared() -> None:
    one = Run(dict.fromkeys(PARTS, 1.0), 1.0, 0.0, 1.0, [ChainRecord(0, ("a",), 0, (9,))])
    other = replace(one, records=[ChainRecord(0, ("a",), 1, (9,))])
    assert check_records({"original": other, "lazy": one, "batched": one}) == 1
    with pytest.raises(SystemExit, match="batched gives other records"):
        check_records({"lazy": one, "batched": other})


def test_two_cores_take_half_of_all_time_or_that_of_the_busiest_process() -> None:
    parts = dict.fromkeys(PARTS, 1.0)
    assert Run(parts, 5.0, 0.0, 9.0, []).two_cores == 5.0, "one process alone"
    assert Run(parts, 3.5, 0.0, 9.0, []).two_cores == 3.5
    assert Run(parts, 1.0, 0.0, 9.0, []).two_cores == 2.5

"""The benchmark of the closed loop: six ways to play the same chains."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.closed_loop import PARTS, WAYS, Played, main, refuse_differences
from policy_rollout.closed_loop.interface import ChainRecord


def test_every_way_plays_the_same_chains_and_says_what_they_cost(tmp_path: Path) -> None:
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
    one = Played(dict.fromkeys(PARTS, 1.0), 1.0, 0.0, 1.0, [ChainRecord(0, ("a",), 0, (9,))])
    other = replace(one, records=[ChainRecord(0, ("a",), 1, (9,))])
    assert refuse_differences({"original": other, "lazy": one, "batched": one}) == 1
    with pytest.raises(SystemExit, match="batched gives other records"):
        refuse_differences({"lazy": one, "batched": other})


def test_two_cores_are_kept_busy_by_no_less_than_half_of_all_and_by_the_process_of_the_policy() -> None:
    parts = dict.fromkeys(PARTS, 1.0)
    assert Played(parts, 5.0, 0.0, 9.0, []).two_cores == 5.0, "one process alone"
    assert Played(parts, 3.5, 0.0, 9.0, []).two_cores == 3.5
    assert Played(parts, 1.0, 0.0, 9.0, []).two_cores == 2.5

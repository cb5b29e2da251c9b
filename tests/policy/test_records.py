"""Records of chains: what several processes write of them, and what is refused."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from policy_rollout import merge
from policy_rollout.closed_loop import records
from policy_rollout.closed_loop.interface import ChainRecord


def written(folder: Path, chains: list[ChainRecord]) -> None:
    for i, record in enumerate(chains):
        records.append(folder, str(i % 2), record)


def test_the_average_is_the_sum_of_the_rates_and_tasks_count_where_they_were_begun(tmp_path: Path) -> None:
    chains = [ChainRecord(i, ("a", "b", "a"), i % 4, (5,) * min(i % 4 + 1, 3)) for i in range(8)]
    results = records.write_results(tmp_path, chains, {"checkpoint": "x"})
    assert results["average_length"]["value"] == pytest.approx(1.5)
    assert sum(rate["value"] for rate in results["success_rates"]) == pytest.approx(1.5)
    assert results["per_task"]["b"]["tried"] == 6
    assert results["per_task"]["b"]["value"] == pytest.approx(4 / 6)
    assert json.loads((tmp_path / "results.json").read_text())["records"][3] == json.loads(
        json.dumps(asdict(chains[3]))
    )


def test_records_of_several_processes_are_one_and_a_cut_line_is_left_out(tmp_path: Path) -> None:
    chains = [ChainRecord(i, ("a",), 1, (2,)) for i in range(5)]
    written(tmp_path, chains)
    with (tmp_path / "records" / "1.jsonl").open("a") as file:
        file.write('{"index": 9, "tas')
    assert records.read(tmp_path) == {record.index: record for record in chains}


def test_records_of_two_checkpoints_do_not_mix(tmp_path: Path) -> None:
    records.claim(tmp_path, {"checkpoint_sha256": "a", "ep_len": 360})
    records.claim(tmp_path, {"checkpoint_sha256": "a", "ep_len": 360})
    with pytest.raises(ValueError, match="checkpoint_sha256=a, now it is b"):
        records.claim(tmp_path, {"checkpoint_sha256": "b", "ep_len": 360})
    assert [file.name for file in tmp_path.iterdir()] == ["settings.json"]


def test_processes_of_one_number_on_two_machines_share_no_file(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 7)  # as in two containers
    link = os.link

    def another_comes_between(mine: Path, file: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        records.claim(tmp_path, {"ep_len": 360})
        link(mine, file)

    monkeypatch.setattr(os, "link", another_comes_between)
    records.claim(tmp_path, {"ep_len": 360})
    assert [file.name for file in tmp_path.iterdir()] == ["settings.json"]


def test_the_setting_that_differs_is_named_however_deep_it_lies(tmp_path: Path) -> None:
    records.claim(tmp_path, {"benchmark": {"name": "desk", "versions": {"mujoco": "3.2"}}})
    with pytest.raises(ValueError, match=r"benchmark\.versions\.mujoco=3\.2, now it is 3\.3"):
        records.claim(tmp_path, {"benchmark": {"name": "desk", "versions": {"mujoco": "3.3"}}})


@pytest.mark.parametrize(
    "damage",
    [
        '{"index": 1, "tas',
        "[3]",
        '{"index": "x", "tasks": [], "completed": 0, "steps": []}',
        '{"index": 1, "tasks": ["a"], "completed": 9, "steps": [2]}',
        '{"index": -1, "tasks": ["a"], "completed": 0, "steps": [2]}',
    ],
)
def test_a_line_that_is_no_record_is_an_error_that_names_it(tmp_path: Path, damage: str) -> None:
    (tmp_path / "records").mkdir()
    whole = json.dumps(asdict(ChainRecord(4, ("a",), 1, (2,))))
    (tmp_path / "records" / "me.jsonl").write_text(f"{whole}\n{damage}\n{whole}\n")
    with pytest.raises(ValueError, match=r"me\.jsonl, line 2 is no record of a chain") as error:
        records.read(tmp_path)
    assert "\n" not in str(error.value)


def test_a_chain_counts_once_and_as_the_lesser_independent_of_the_order(tmp_path: Path) -> None:
    better, worse = ChainRecord(0, ("a", "b"), 2, (3, 4)), ChainRecord(0, ("a", "b"), 1, (3, 9))
    for folder, order in (("one", (better, worse)), ("two", (worse, better))):
        (tmp_path / folder).mkdir()
        for name, record in zip(("x", "y"), order, strict=True):
            records.append(tmp_path / folder, name, record)
        assert records.read(tmp_path / folder) == {0: worse}


def test_merging_twice_is_merging_once(tmp_path: Path) -> None:
    chains = [ChainRecord(i, ("a",), i % 2, (2,)) for i in range(6)]
    for name, part in (("one", chains[:4]), ("two", chains[2:])):
        records.claim(tmp_path / name, {"checkpoint_sha256": "a"})
        written(tmp_path / name, part)
    for _ in range(2):
        both = records.merge([tmp_path / "one", tmp_path / "two"], tmp_path / "both")
        assert both == {record.index: record for record in chains}
    lines = [line for file in (tmp_path / "both" / "records").iterdir() for line in file.read_text().splitlines()]
    assert len(lines) == 6


def test_folders_of_two_checkpoints_are_not_merged(tmp_path: Path) -> None:
    for name in "ab":
        records.claim(tmp_path / name, {"checkpoint_sha256": name})
    with pytest.raises(ValueError, match="checkpoint_sha256=a, now it is b"):
        records.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    assert not (tmp_path / "both").exists()
    with pytest.raises(FileNotFoundError, match=r"no folder of an evaluation"):
        records.merge([tmp_path / "a", tmp_path / "nowhere"], tmp_path / "both")


def test_the_merge_command_reports_missing_chains_or_a_summary(tmp_path: Path, capsys: Any) -> None:
    for name, chains in (("one", (0, 3)), ("two", (1, 3))):
        records.claim(tmp_path / name, {"checkpoint_sha256": "a"})
        written(tmp_path / name, [ChainRecord(i, ("a", "b"), i % 3, (2, 2)) for i in chains])
    merge.main([str(tmp_path / "one"), str(tmp_path / "two"), "--into", str(tmp_path / "both")])
    assert "1 before the last are missing (2)" in capsys.readouterr().out
    assert not (tmp_path / "both" / "results.json").exists()
    written(tmp_path / "two", [ChainRecord(2, ("a", "b"), 2, (2, 2))])
    merge.main([str(tmp_path / "one"), str(tmp_path / "two"), "--into", str(tmp_path / "both")])
    assert json.loads((tmp_path / "both" / "results.json").read_text())["average_length"]["value"] == 3 / 4
    with pytest.raises(SystemExit, match="2"):
        merge.main([str(tmp_path / "nowhere"), "--into", str(tmp_path / "both")])
    assert "nowhere is no folder of an evaluation" in capsys.readouterr().err

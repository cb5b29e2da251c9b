"""`python -m policy_rollout.compare`: two or three evaluations on the same chains."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.statistics import FEWEST_APART, paired_difference, pairs_of, rate_difference, wilson
from policy_rollout import compare
from policy_rollout.reports.results import attempts, names_of, read_results
from tests.policy.results_file import BENCHMARK, drawn, write


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    assert compare.main([str(a) for a in argv]) == 0
    return capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    assert compare.main([str(a) for a in argv]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


def test_the_better_one_is_named_and_the_figures_are_those_of_the_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = drawn(0, 0.5), drawn(1, 0.85)
    write(tmp_path / "ar", one), write(tmp_path / "bd", other)
    data = json.loads(run(capsys, tmp_path / "ar", tmp_path / "bd" / "results.json", "--json"))
    (pair,) = data["pairs"]
    assert pair["average_length"]["value"] == pytest.approx(np.mean(one) - np.mean(other))
    assert pair["success_rates"][2]["value"] == pytest.approx(
        np.mean([d >= 3 for d in one]) - np.mean([d >= 3 for d in other])
    )
    assert pair["average_length"]["clear"]
    assert pair["average_length"]["probability_first_better"] < 0.001
    stored = json.loads((tmp_path / "bd" / "results.json").read_text())
    assert data["sides"][1]["average_length"] == stored["average_length"]
    assert data["sides"][1]["success_rates"] == [
        {key: rate[key] for key in ("value", "low", "high")} for rate in stored["success_rates"]
    ]
    counts = {task: row["second"] for task, row in pair["per_task"].items()}
    assert {task: count["tried"] for task, count in counts.items()} == {
        task: row["tried"] for task, row in stored["per_task"].items()
    }
    last = run(capsys, tmp_path / "ar", tmp_path / "bd").splitlines()[-1]
    assert last.startswith("bd is better than ar by ")


def test_random_differences_are_not_clear(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a", drawn(0, 0.6)), write(tmp_path / "b", drawn(2, 0.6))
    last = run(capsys, tmp_path / "a", tmp_path / "b").splitlines()[-1]
    assert last.startswith("these chains cannot distinguish a from b: ")
    write(tmp_path / "same", drawn(0, 0.6))
    last = run(capsys, tmp_path / "a", tmp_path / "same").splitlines()[-1]
    assert "cannot distinguish a from same: +0.00 [+0.00, +0.00]" in last
    assert "P(a better) = 0.50" in last


def test_a_bootstrap_of_a_few_differing_chains_decides_nothing() -> None:
    """Where all of five differing items point one way the interval leaves zero out; so does a coin, 1 in 16."""
    base = np.zeros((1, FEWEST_APART - 1))
    (pair,) = pairs_of({"a": base + 1, "b": base})
    assert pair.difference.clear
    assert not pair.clear
    assert pair.better is None
    (pair,) = pairs_of({"a": np.ones((1, FEWEST_APART)), "b": np.zeros((1, FEWEST_APART))})
    assert pair.better == "a"


def test_pairing_sees_what_two_separate_intervals_hide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Chains are very unequal; one policy does one task more in every fourth of them."""
    hard = [0, 1, 2, 4] * 10
    write(tmp_path / "a", hard), write(tmp_path / "b", [d + (i % 4 == 3) for i, d in enumerate(hard)])
    data = json.loads(run(capsys, tmp_path / "b", tmp_path / "a", "--json"))
    first, second = (side["average_length"] for side in data["sides"])
    assert second["high"] > first["low"]  # apart they overlap
    assert data["pairs"][0]["answer"].startswith("b is better than a by 0.25 ")


CHANGED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "renderer": ({"benchmark": {**BENCHMARK, "renderer": "gl"}}, ("benchmark.renderer", "raycast", "gl")),
    "steps": ({"ep_len": 100}, ("ep_len", "360", "100")),
    "a setting that one does not know": ({"sentences": "training"}, ("sentences", "None", "training")),
}


@pytest.mark.parametrize("what", CHANGED)
def test_results_of_other_settings_are_compared_only_anyway(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, words = CHANGED[what]
    write(tmp_path / "a", drawn(0, 0.6)), write(tmp_path / "b", drawn(1, 0.6), **changes)
    error = refusal(capsys, tmp_path / "a", tmp_path / "b")
    assert all(word in error for word in (*words, "--anyway"))
    out = run(capsys, tmp_path / "a", tmp_path / "b", "--anyway")
    assert f"Note: {tmp_path / 'b'}" in out
    assert words[0] in out


def test_other_versions_are_reported_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newer = {**BENCHMARK, "versions": {"mujoco": "9.9"}}
    write(tmp_path / "a", drawn(0, 0.6)), write(tmp_path / "b", drawn(1, 0.6), benchmark=newer)
    assert "benchmark.versions.mujoco is 3.2 there and 9.9 here" in run(capsys, tmp_path / "a", tmp_path / "b")


def test_another_checkpoint_is_no_other_setting_and_the_same_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a", drawn(0, 0.6)), write(tmp_path / "b", drawn(1, 0.6), checkpoint_sha256="b" * 64)
    assert "Note" not in run(capsys, tmp_path / "a", tmp_path / "b")
    write(tmp_path / "c", drawn(1, 0.6))
    assert "a and c are the same checkpoint (aaaaaaaaaaaa)" in run(capsys, tmp_path / "a", tmp_path / "c")


def test_other_chains_are_refused_even_anyway_and_common_ones_can_be_requested(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a", drawn(0, 0.6)), write(tmp_path / "b", drawn(1, 0.6, 30))
    error = refusal(capsys, tmp_path / "a", tmp_path / "b", "--anyway")
    assert "30 chains" in error
    assert "chain 30" in error
    assert "--common" in error
    data = json.loads(run(capsys, tmp_path / "a", tmp_path / "b", "--common", "--json"))
    assert data["chains"] == 30
    assert data["sides"][0]["average_length"]["value"] == np.mean(drawn(0, 0.6)[:30])
    content = json.loads((tmp_path / "b" / "results.json").read_text())
    content["records"][7]["tasks"].reverse()
    (tmp_path / "b" / "results.json").write_text(json.dumps(content))
    assert "chain 7 of" in refusal(capsys, tmp_path / "a", tmp_path / "b", "--anyway", "--common")


def test_seeds_of_a_policy_are_one_side_and_need_not_be_as_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(3):
        write(tmp_path / f"a{seed}", drawn(seed, 0.5))
        write(tmp_path / f"b{seed}", drawn(10 + seed, 0.9))
    a, b = (",".join(str(tmp_path / f"{name}{seed}") for seed in range(3)) for name in "ab")
    data = json.loads(run(capsys, f"slow={a}", f"fast={b}", "--json"))
    assert [side["name"] for side in data["sides"]] == ["slow", "fast"]
    mean = np.mean([drawn(seed, 0.5) for seed in range(3)])
    assert data["sides"][0]["average_length"]["value"] == pytest.approx(mean)
    assert data["pairs"][0]["answer"].startswith("fast is better than slow by ")
    two = ",".join(b.split(",")[:2])
    assert "fast is better than slow by " in run(capsys, f"slow={a}", f"fast={two}")
    assert "twice" in refusal(capsys, f"slow={a},{tmp_path / 'a0'}", f"fast={b}")


def test_what_is_no_result_is_reported_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a", drawn(0, 0.6))
    assert "needs two or three" in refusal(capsys, tmp_path / "a")
    assert "nothing/here" in refusal(capsys, tmp_path / "a", "nothing/here")
    (tmp_path / "b" / "records").mkdir(parents=True)
    assert "has not finished" in refusal(capsys, tmp_path / "a", tmp_path / "b")
    for content, word in (
        ("{", "JSON"),
        ("[]", "no result of a closed-loop"),
        ('{"records": []}', "no chain"),
        ('{"records": [{"index": 0}]}', "'tasks' is missing"),
        ('{"records": [{"index": 0, "tasks": ["x"], "completed": 2, "steps": [1]}]}', "chain 0"),
    ):
        (tmp_path / "b" / "results.json").write_text(content)
        assert word in refusal(capsys, tmp_path / "a", tmp_path / "b")


def test_a_document_is_written_in_addition_to_the_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a|x", drawn(0, 0.6)), write(tmp_path / "b", drawn(1, 0.6))
    out = run(capsys, tmp_path / "a|x", tmp_path / "b", "--output", tmp_path / "new" / "it.md")
    text = (tmp_path / "new" / "it.md").read_text()
    assert text in out
    rows = [line for line in text.splitlines() if line.startswith("| a\\|x |")]
    assert len(rows) == 1
    assert rows[0].replace("\\|", "").count("|") == 8
    run(capsys, tmp_path / "a|x", tmp_path / "b", "--output", tmp_path / "it.json")
    assert json.loads((tmp_path / "it.json").read_text())["chains"] == 40


def test_short_names_distinguish_results(tmp_path: Path) -> None:
    files = [tmp_path / "x" / "one" / "results.json", tmp_path / "y" / "one" / "results.json"]
    assert names_of(files) == ["x/one", "y/one"]
    assert names_of([files[0], tmp_path / "two.json"]) == ["one", "two"]
    assert len(set(names_of([files[0], files[0]]))) == 2


def test_a_reader_finds_what_the_writer_wrote(tmp_path: Path) -> None:
    completed = drawn(3, 0.7)
    results = read_results(write(tmp_path / "a", completed))
    assert results.completed().tolist() == completed
    begun = [done for chain in results.chains for _, done, _ in attempts(chain)]
    assert sum(begun) == sum(completed)
    assert len(begun) == sum(min(5, done + 1) for done in completed)
    assert set(results.benchmark_settings) == {
        *(f"benchmark.{name}" for name in ("name", "scene", "renderer", "versions.mujoco")),
        "ep_len",
        "replan_every",
    }


# --- the statistics --------------------------------------------------------------------------------------------------


def test_newcombes_interval_is_the_published_one() -> None:
    """Newcombe 1998, table II, method 10: 56/70 against 48/80, and 10/10 against 0/10."""
    found = rate_difference((56, 70), (48, 80))
    assert (round(found.low, 4), round(found.high, 4)) == (0.0524, 0.3339)
    sure = rate_difference((10, 10), (0, 10))
    assert (round(sure.low, 4), sure.high) == (0.6075, pytest.approx(1.0))


def test_a_single_try_tells_next_to_nothing() -> None:
    found = rate_difference((1, 1), (0, 1))
    assert found.low < 0 < found.high
    assert wilson(1, 1).low < 0.21
    assert np.isnan(rate_difference((0, 0), (3, 4)).point)


def test_as_many_runs_are_paired_and_other_numbers_are_not() -> None:
    rng = np.random.default_rng(0)
    runs = rng.normal(size=(3, 1)) * 2  # runs differ much, alike on both sides
    one = runs + rng.normal(size=(3, 50)) * 0.1
    other = one - 0.3
    assert paired_difference(one, other).clear
    apart = paired_difference(one, other[:2])
    assert apart.interval.point == pytest.approx(one.mean() - other[:2].mean())
    assert apart.interval.high - apart.interval.low > 1


# --- options ---------------------------------------------------------------------------------------------------------


def test_a_margin_calls_close_policies_equivalent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = drawn(0, 0.6, 400)
    write(tmp_path / "a", base)
    write(tmp_path / "b", [max(d - 1, 0) if i % 20 == 0 else min(d + (i % 20 == 10), 5) for i, d in enumerate(base)])
    last = run(capsys, tmp_path / "a", tmp_path / "b", "--margin", "0.2").splitlines()[-1]
    assert last.startswith("a and b are equivalent: ")
    assert "cannot distinguish" in run(capsys, tmp_path / "a", tmp_path / "b").splitlines()[-1]


def test_the_sequential_test_states_when_it_was_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a", drawn(0, 0.3)), write(tmp_path / "b", drawn(1, 0.95)), write(tmp_path / "c", drawn(0, 0.3))
    out = run(capsys, *(tmp_path / name for name in "abc"), "--sequential")
    assert "b is better than a, known after " in out
    assert "a against c: open after 40 chains" in out
    data = json.loads(run(capsys, tmp_path / "a", tmp_path / "b", "--sequential", "--json"))
    assert data["pairs"][0]["sequential"]["decided_at"] < 40


def test_three_policies_are_corrected_for_three_comparisons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, name in enumerate("abc"):
        write(tmp_path / name, drawn(seed, 0.6))
    data = json.loads(run(capsys, *(tmp_path / name for name in "abc"), "--json"))
    for pair in data["pairs"]:
        assert pair["average_length"]["p_value"] <= pair["average_length"]["p_holm"]
        assert all(row["p_holm"] <= 1 for row in pair["per_task"].values())
    text = run(capsys, *(tmp_path / name for name in "abc"))
    assert "different after Holm's correction: none." in text


def test_the_control_arm_shows_what_a_seed_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(2):
        write(tmp_path / f"a{seed}", drawn(seed, 0.5)), write(tmp_path / f"b{seed}", drawn(10 + seed, 0.9))
    sides = [f"{name}={tmp_path / name}0,{tmp_path / name}1" for name in "ab"]
    assert "Control, tasks per chain: another seed changes it by " in run(capsys, *sides)
    assert len(json.loads(run(capsys, *sides, "--json"))["control"]["sizes"]) == 2


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_the_figures_can_be_computed_again_from_the_table_of_records(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a", drawn(0, 0.5)), write(tmp_path / "b", drawn(1, 0.8))
    file = tmp_path / f"records{suffix}"
    data = json.loads(run(capsys, tmp_path / "a", tmp_path / "b", "--json", "--records", file))
    if suffix == ".csv":
        rows = list(csv.DictReader(file.open(encoding="utf-8")))
    else:
        rows = pytest.importorskip("pyarrow.parquet").read_table(file).to_pylist()
    assert {row["format"] for row in rows} == {"closed_loop/1"}
    for side in data["sides"]:
        done = sum(int(row["success"]) for row in rows if row["policy"] == side["name"])
        assert done / data["chains"] == pytest.approx(side["average_length"]["value"])
    task = rows[0]["task"]
    tried = sum(row["task"] == task for row in rows if row["policy"] == "a")
    assert tried == data["pairs"][0]["per_task"][task]["first"]["tried"]


def test_a_table_of_another_kind_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a", drawn(0, 0.5)), write(tmp_path / "b", drawn(1, 0.8))
    error = refusal(capsys, tmp_path / "a", tmp_path / "b", "--records", tmp_path / "x.xlsx")
    assert ".csv or .parquet" in error

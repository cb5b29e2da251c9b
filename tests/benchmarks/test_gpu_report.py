"""The report of a GPU runs end to end, records what fails, and compares what it measures with its targets."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu_report import __main__ as command
from benchmarks.gpu_report import acting, correctness
from benchmarks.gpu_report.case import Case, Context, Skipped, Unequal
from benchmarks.gpu_report.page import page
from benchmarks.gpu_report.runner import Worker, run_cases
from benchmarks.gpu_report.sections import SECTIONS, all_cases
from benchmarks.gpu_report.worker import result_of

ANSWERS = """
import json, sys, time
print(json.dumps({"hardware": {}}), flush=True)
for line in sys.stdin:
    name = line.strip()
    if "dies" in name:
        sys.exit("the device is lost")
    if "hangs" in name:
        time.sleep(600)
    print(json.dumps({"status": "done", "message": "", "seconds": 0.0, "figures": {"mfu": 0.5}}), flush=True)
"""
"""A worker that answers without work."""


def never(context: Context) -> Mapping[str, Any]:
    raise AssertionError("cases run in the worker")


def outcomes(tmp_path: Path, names: list[str], seconds: float = 600.0, limit: float = 600.0) -> dict[str, Any]:
    cases = [Case("training", name, never, limit if "hangs" in name else 600.0) for name in names]
    found: dict[str, Any] = {}

    def record(case: Case | None, outcome: dict[str, Any]) -> None:
        if case is not None:
            found[case.name] = outcome

    run_cases(cases, partial(Worker, [sys.executable, "-c", ANSWERS], tmp_path / "log"), record, seconds)
    return found


def test_a_case_that_fails_or_hangs_is_recorded_and_the_others_run(tmp_path: Path) -> None:
    found = outcomes(tmp_path, ["one", "dies", "two", "hangs", "three"], limit=0.2)
    assert [one["status"] for one in found.values()] == ["done", "failed", "done", "failed", "done"]
    assert "the device is lost (exit code 1" in found["dies"]["message"]
    assert found["hangs"]["message"] == "stopped after its 0 s"


def test_cases_beyond_the_time_of_the_report_are_not_run(tmp_path: Path) -> None:
    found = outcomes(tmp_path, ["one", "two"], seconds=1.0)
    assert [one["status"] for one in found.values()] == ["not run", "not run"]


def test_a_lack_of_memory_a_difference_and_a_skipped_case_are_told_apart() -> None:
    context = Context("tiny", torch.device("cpu"), 1)
    reasons = (torch.OutOfMemoryError("no\n memory"), Unequal("losses differ"), Skipped("needs a GPU"))

    def raising(error: Exception, context: Context) -> Mapping[str, Any]:
        raise error

    found = [result_of(Case("s", "n", partial(raising, reason)), context) for reason in reasons]
    assert [one["status"] for one in found] == ["failed", "failed", "skipped"]
    assert [one["message"] for one in found] == ["out of memory: no memory", "losses differ", "needs a GPU"]


def test_other_losses_gradients_and_actions_are_unequal(monkeypatch: pytest.MonkeyPatch) -> None:
    one = torch.tensor([1.0, 2.0])
    same = correctness.compare((one, [one]), (one, [one]))
    assert same == {"loss": 0.0, "gradient": 0.0}
    with pytest.raises(Unequal, match="losses differ by"):
        correctness.compare((one, []), (one * 1.001, []))
    with pytest.raises(Unequal, match="gradients differ by"):
        correctness.compare((one, [one]), (one, [one * 1.01]))
    with pytest.raises(Unequal, match="losses differ by nan"):
        correctness.compare((one, []), (one * float("nan"), []))


def test_the_page_states_which_targets_are_reached() -> None:
    figures = {"training": {"mfu": 0.46}, acting.LATENCY: {"p50_ms": 55.0, "calls_per_s": 18.0}}
    cases = {
        name: {"section": name, "name": "case", "status": "done", "message": "", "seconds": 1.0, "figures": found}
        for name, found in figures.items()
    }
    text = page({"settings": {"size": "real"}, "worker": {"hardware": {"gpu": "H200"}}, "cases": cases})
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert "46.0%" in rows["45 % MFU in training"]
    assert rows["45 % MFU in training"].rstrip(" |").endswith("yes")
    assert rows["20 policy calls per second at batch 1"].rstrip(" |").endswith("no")
    assert rows["at most 40 ms for a policy call at batch 1"].rstrip(" |").endswith("no")


def test_without_a_gpu_the_real_size_is_refused_in_one_line(tmp_path: Path) -> None:
    out = str(tmp_path / "report.json")
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="no GPU was found; give --device cpu --size tiny"):
            command.main(["--out", out])
    with pytest.raises(SystemExit, match="--size real is meant for a GPU"):
        command.main(["--device", "cpu", "--out", out])
    with pytest.raises(SystemExit, match=r"--resume: .*report\.json does not exist"):
        command.main(["--device", "cpu", "--size", "tiny", "--resume", "--out", out])


def test_the_report_runs_end_to_end_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    options = ["--size", "tiny", "--networks", "Phi-1.5", "--device", "cpu", "--compiler", "eager", "--rounds", "1"]
    options += ["--minutes", "60", "--out", str(out)]
    assert command.main(options) == 0
    record = json.loads(out.read_text(encoding="utf-8"))
    cases = record["cases"]
    assert list(cases) == [case.key for case in all_cases("tiny", ["Phi-1.5"])]
    assert {key for key, one in cases.items() if one["status"] != "done"} == {
        f"correctness: Phi-1.5, {one}, flex_attention" for one in ("ar", "mdm", "bd")
    }
    assert {one["section"] for one in cases.values()} == set(SECTIONS)
    for key, one in cases.items():
        if one["section"] == "training":
            assert one["figures"]["mfu"] > 0, key
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert all(f"## {section.capitalize()}" in text for section in SECTIONS)
    seconds = {key: one["seconds"] for key, one in cases.items()}
    assert command.main([*options, "--resume"]) == 0  # nothing is left to run
    again = json.loads(out.read_text(encoding="utf-8"))["cases"]
    assert {key: one["seconds"] for key, one in again.items()} == seconds
    with pytest.raises(SystemExit, match=r"--resume: .*report\.json has the settings"):
        command.main([*options, "--rounds", "2", "--resume"])

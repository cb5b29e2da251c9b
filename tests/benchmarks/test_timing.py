"""Variants that are compared are measured alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from benchmarks.harness.memory import peak_of
from benchmarks.harness.timing import Lap, Spread, Timings, alternate

CPU = torch.device("cpu")


def test_variants_take_turns_and_the_order_turns_around() -> None:
    calls: list[str] = []
    alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2, device=CPU, warmup=1)
    assert calls == ["a", "b", "a", "b", "b", "a"]


def test_time_of_other_processes_is_not_counted() -> None:
    laps = alternate({"sleeping": lambda: time.sleep(0.05)}, rounds=1, device=CPU, warmup=0).laps["sleeping"]
    assert laps[0].wall > 0.05
    assert laps[0].cpu < 0.02


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    laps = {"slow": [Lap(2, 9), Lap(30, 9), Lap(4, 9)], "fast": [Lap(1, 1), Lap(10, 1), Lap(1, 1)]}
    assert Timings(laps, "cpu").ratio("slow", "fast") == Spread(3.0, 2.5, 3.5, 3)
    assert Timings(laps, "wall").ratio("slow", "fast").median == 9


def holding(settings: Mapping[str, Any], device: torch.device) -> Callable[[], None]:
    """Work that holds so many megabytes for a moment; as many again were held and freed before it."""
    size = (settings["mb"], 1 << 20)
    torch.ones(size, dtype=torch.uint8)

    def hold() -> None:
        torch.ones(size, dtype=torch.uint8)

    return hold


def test_peak_memory_is_that_of_the_work_alone() -> None:
    peak = peak_of("tests.benchmarks.test_timing:holding", {"mb": 300, "device": "cpu", "threads": 1})
    assert peak.above == pytest.approx(300, abs=60)
    assert peak.before > 50, "a process with torch in it"


def test_work_that_fails_is_reported_with_its_reason() -> None:
    with pytest.raises(SystemExit, match="KeyError"):
        peak_of("tests.benchmarks.test_timing:holding", {"device": "cpu", "threads": 1})

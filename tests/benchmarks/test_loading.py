"""A model is loaded into its weights' own size of memory, in every format, and processes share the file's pages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import loading

LOADED = 1.05
"""Own memory at the peak of loading, as a multiple of the weights."""
OTHER_MB, PAGES_MB = 4.0, 8.0
"""Objects of Python, and pages of libraries that a process reads for the first time while it maps the file."""


def check(found: dict[str, loading.Measured], own_floor: float) -> None:
    assert [*found] == ["bin", "safetensors", "sharded", "bf16"]
    for kind, one in found.items():
        assert 0.95 * one.weights < one.own_peak < LOADED * one.weights + own_floor, kind
        assert one.files == pytest.approx(one.weights / (2 if kind == "bf16" else 1), rel=0.01), kind
        assert min(one.mapped) > 0.95 * one.files, kind
        assert sum(one.share) < one.files + len(one.share) * PAGES_MB, kind
        assert max(one.share) < one.files / loading.PROCESSES + PAGES_MB, kind


def test_loading_takes_the_weights_once_and_processes_share_the_files(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    found = loading.main(["--gb", "0.05", "--out", str(tmp_path / "loading.json")])
    torch.set_num_threads(threads)
    check(found, OTHER_MB)
    written = json.loads((tmp_path / "loading.json").read_text(encoding="utf-8"))
    assert written["ratios"]["bin"]["own_ratio"] == found["bin"].own_ratio


@pytest.mark.slow
def test_loading_half_a_gigabyte_takes_at_most_1_05_times_the_weights(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    found = loading.main(["--gb", "0.5", "--out", str(tmp_path / "loading.json")])
    torch.set_num_threads(threads)
    check(found, 0.0)
    assert all(one.largest_share < 0.28 for kind, one in found.items() if kind != "bf16")

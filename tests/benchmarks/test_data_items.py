"""The benchmark of robot samples: all ways give the same samples, and the fast ones are fast."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import data_items


def run(tmp_path: Path, *words: str) -> dict[str, dict[str, dict[str, float]]]:
    out = tmp_path / "out.json"
    data_items.main([*words, "--out", str(out), "--folder", str(tmp_path)])
    ways: dict[str, dict[str, dict[str, float]]] = json.loads(out.read_text())["ways"]
    return ways


@pytest.mark.parametrize("views", ["1", "2"])
def test_every_way_gives_the_same_samples_and_is_measured(tmp_path: Path, views: str) -> None:
    words = ["--frames", "70", "--batch", "4", "--resolution", "64", "--rounds", "1", "--views", views]
    ways = run(tmp_path, *words)
    assert ways[data_items.NAIVE]["times_faster"]["median"] == 1
    assert ways[data_items.GATHERED]["times_faster"]["median"] > 20
    conversations = json.loads((tmp_path / "out.json").read_text())["conversations"]
    assert set(conversations["ms_an_item"]) == {data_items.NAIVE, data_items.OURS}
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_way_that_gives_other_images_stops_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_items, "normalise", lambda pixels: pixels.float())
    with pytest.raises(AssertionError, match="frames as recorded"):
        run(tmp_path, "--frames", "8", "--batch", "4", "--resolution", "64", "--rounds", "1")


@pytest.mark.slow
def test_samples_come_three_times_faster_from_pixels_and_fifty_times_from_codes(tmp_path: Path) -> None:
    ways = run(tmp_path, "--frames", "128", "--rounds", "3")
    assert ways[data_items.FILES]["times_faster"]["median"] > 2.5
    assert ways[data_items.GATHERED]["times_faster"]["median"] > 50

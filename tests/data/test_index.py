"""The binary index beside dataset_info.json: fresh or made again, constant in cost, never a wrong number."""

from __future__ import annotations

import gc
import json
import logging
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.index import main as benchmark
from benchmarks.index import make_split, measure
from tests.data.builders import edit_index, processed_split
from training.data import episode_index
from training.data.episode_index import BINARY_NAME, INDEX_NAME, build_index, read_index
from training.data.formats import column_file
from training.data.formats.column_file import BLOCK, Column, IndexFile
from training.future_view_prediction_w_action_dataset import DataProvider


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return processed_split(tmp_path / "split", [5, 1, 12])


def test_the_index_says_what_the_json_says(root: Path) -> None:
    from_json = read_index(root)
    assert not (root / BINARY_NAME).exists()  # a small json is read as it is
    build_index(root)
    mapped = read_index(root)
    assert (from_json.file.path.name, mapped.file.path.name) == (INDEX_NAME, BINARY_NAME)
    for name in ("starts", "episode_of", "actions", "instruction_of", "task_of"):
        one, other = np.asarray(getattr(from_json, name)), np.asarray(getattr(mapped, name))
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert [mapped.frames[i] for i in range(18)] == [from_json.frames[i] for i in range(18)]
    assert mapped.instruction(2) == "do thing 2"
    assert mapped.task(2) is None


def test_a_large_json_gets_its_index_by_itself_and_only_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episode_index, "MIN_INDEXED", 100)
    read_index(root)
    made = (root / BINARY_NAME).stat().st_mtime_ns
    monkeypatch.setattr(episode_index, "gather", None)  # making it again would fail
    assert len(read_index(root)) == 18
    assert (root / BINARY_NAME).stat().st_mtime_ns == made


def test_an_index_of_another_json_is_made_again_and_a_copied_one_is_not(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(episode_index, "MIN_INDEXED", 100)
    read_index(root)
    edit_index(root, lambda episodes: episodes[:2])  # other size
    assert len(read_index(root)) == 6
    text = (root / INDEX_NAME).read_text()
    (root / INDEX_NAME).write_text(text.replace("thing 1", "thing 7"))  # the same size, another time
    assert read_index(root).instruction(1) == "do thing 7"
    copy = root.with_name("copy")
    shutil.copytree(root, copy)
    os.utime(copy / INDEX_NAME, ns=(1, 1))
    monkeypatch.setattr(episode_index, "gather", None)
    assert read_index(copy).instruction(1) == "do thing 7"


def test_an_index_of_another_version_is_made_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episode_index, "MIN_INDEXED", 100)
    with monkeypatch.context() as patch:
        patch.setattr(column_file, "VERSION", 99)
        build_index(root)
    assert len(read_index(root)) == 18
    assert len(IndexFile(root / BINARY_NAME).column("actions")) == 18


def test_where_nothing_can_be_written_the_index_is_made_in_memory_and_that_is_said(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(episode_index, "MIN_INDEXED", 100)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with caplog.at_level(logging.WARNING):
        assert len(read_index(root)) == 18
    assert f"{root} cannot be written; its index is made in memory" in caplog.text
    assert not (root / BINARY_NAME).exists()


def test_a_json_that_is_wrong_leaves_no_index_behind(root: Path) -> None:
    edit_index(root, lambda episodes: episodes[1].update(instruction=3))
    with pytest.raises(ValueError, match=r"dataset_info\.json: episode 1"):
        build_index(root)
    assert [path.name for path in root.iterdir() if "index" in path.name or "tmp" in path.name] == []


def test_a_flipped_bit_anywhere_is_an_error_where_it_is_read_and_nowhere_a_wrong_number(root: Path) -> None:
    build_index(root)
    whole = (root / BINARY_NAME).read_bytes()
    right = np.asarray(read_index(root).actions)
    for place in range(0, len(whole), 37):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        (root / BINARY_NAME).unlink()
        (root / BINARY_NAME).write_bytes(damaged)
        with pytest.raises(ValueError, match=r"dataset_info\.index cannot be used .*delete it|of version"):
            np.testing.assert_array_equal(IndexFile(root / BINARY_NAME).column("actions")[:], right)
    (root / BINARY_NAME).write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"dataset_info\.index cannot be used \(it is cut off"):
        read_index(root)


def test_columns_are_read_like_arrays(root: Path) -> None:
    build_index(root)
    column: Column[np.float32] = read_index(root).actions
    array = np.asarray(column)
    for rows in (3, -1, slice(2, 9), slice(None), slice(10, 2, -2), np.array([4, 4, 1]), np.arange(18) % 3 == 0):
        np.testing.assert_array_equal(column[rows], array[rows])
    with pytest.raises(IndexError):
        column[18]
    with pytest.raises(ValueError, match="read-only"):
        column[0][0] = 1.0


def test_a_provider_survives_pickling_as_spawned_workers_need_it(root: Path) -> None:
    in_memory = DataProvider(root, act_step=3, resolution=16, num_view=1)
    build_index(root)
    mapped = DataProvider(root, act_step=3, resolution=16, num_view=1)
    assert len(pickle.dumps(mapped)) < 3000  # the path, not the content
    for provider in (in_memory, mapped):
        again = pickle.loads(pickle.dumps(provider))
        assert (again[7].actions == provider[7].actions).all()
        assert again[7].instruction == provider[7].instruction


def touched(provider: DataProvider) -> int:
    return sum(provider.data.file._seen)


def test_opening_and_a_sample_touch_as_little_at_the_end_of_a_large_split_as_at_its_start(tmp_path: Path) -> None:
    """Counted in blocks, because a clock on a busy machine says little; benchmarks/index.py has the times."""
    make_split(tmp_path, 100_000, from_json=False, progress=False)
    root = tmp_path / "split"
    blocks = -(-(root / BINARY_NAME).stat().st_size // BLOCK)
    assert blocks > 400
    counts = []
    for index in (7, 50_000, 99_990):
        provider = DataProvider(root, act_step=10, resolution=8, num_view=1)
        assert touched(provider) <= 6  # the first and the last frame's names
        provider.chunk(index)
        provider.data.instruction(int(provider.data.episode_of[index]))
        counts.append(touched(provider))
    assert max(counts) <= 14
    assert max(counts) - min(counts) <= 6  # at the edges, blocks that opening has touched are touched again


def test_an_index_made_from_json_or_at_once_is_the_same(tmp_path: Path) -> None:
    for name, from_json in (("a", True), ("b", False)):
        (tmp_path / name).mkdir()
        make_split(tmp_path / name, 500, from_json=from_json, progress=False)
    one, other = (read_index(tmp_path / name / "split") for name in "ab")
    np.testing.assert_array_equal(one.actions[:], other.actions[:])
    assert [one.frames[i] for i in range(500)] == [other.frames[i] for i in range(500)]


@pytest.mark.slow
def test_the_benchmark_says_what_it_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--frames",
        "3000",
        "--rounds",
        "1",
        "--workers",
        "1",
        "--samples",
        "50",
        "--out",
        str(tmp_path / "x.json"),
    ]
    assert benchmark(options) == 0
    record = json.loads((tmp_path / "x.json").read_text())
    assert record["frames"] == 3000
    assert record["open_seconds"]["median"] > 0
    assert "3,000 frames" in capsys.readouterr().out


@pytest.mark.slow
def test_five_million_frames_open_in_seconds_and_cost_a_worker_next_to_nothing(tmp_path: Path) -> None:
    make_split(tmp_path, 5_000_000, from_json=False, progress=False)
    gc.collect()
    gc.freeze()  # or else a worker's first collection copies every page of the tests that ran before
    (opened,) = measure(tmp_path / "split", rounds=1, workers=2, samples=20_000)
    gc.unfreeze()
    assert opened.seconds < 5
    assert opened.private_kb < 20_000
    for worker in opened.workers:
        assert worker.private_after_kb - worker.private_before_kb < 20_000
        assert worker.microseconds_at_end < 5 * worker.microseconds_at_start

"""Splits inside the zip they were downloaded as."""

from __future__ import annotations

import os
import zipfile
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.builders import raw_split
from training.data.calvin import CalvinSplit, splits_in
from training.data.formats import zip_reader
from training.data.formats.zip_reader import Archive


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    split = raw_split(tmp_path / "task_D_D" / "training", range(10, 16), [(10, 14), (12, 15)])
    raw_split(tmp_path / "task_D_D" / "validation", range(3), [(0, 2)])
    np.save(split / "ep_start_end_ids.npy", np.array([[10, 15]]))
    return split


def zipped(folder: Path, target: Path, method: int = zipfile.ZIP_STORED, **settings: Any) -> Path:
    with zipfile.ZipFile(target, "w", method, **settings) as packed:
        for path in sorted(folder.rglob("*")):
            packed.write(path, path.relative_to(folder.parent))
    return target


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_split_in_a_zip_is_the_split(raw: Path, tmp_path: Path, method: int) -> None:
    packed = zipped(raw.parent, tmp_path / "task_D_D.zip", method)
    assert splits_in(packed) == ["task_D_D/training", "task_D_D/validation"]
    there, here = CalvinSplit(packed / "task_D_D" / "training"), CalvinSplit(raw)
    assert there.frame_ids.tolist() == here.frame_ids.tolist()
    assert there.annotations == here.annotations
    assert there.ranges.tolist() == here.ranges.tolist()
    assert zip_reader.is_file(there.frame_path(12))
    assert not zip_reader.is_file(there.frame_path(16))
    for key in ("rgb_static", "rel_actions"):
        np.testing.assert_array_equal(there.frame(12, [key])[key], here.frame(12, [key])[key])
    with pytest.raises(FileNotFoundError, match=r"task_D_D\.zip/task_D_D/training/episode_0000099\.npz does not exist"):
        there.frame(99, ["actions"])
    with pytest.raises(ValueError, match=r"did you mean .*task_D_D\.zip/task_D_D/training or "):
        _ = CalvinSplit(packed).frame_ids


def test_an_archive_of_so_many_files_that_only_zip64_counts_them_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "many.zip"
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)  # as if five were 65536
    with zipfile.ZipFile(path, "w") as packed:
        for number in range(5):
            packed.writestr(f"a/{number}.txt", str(number))
    whole = bytearray(path.read_bytes())
    whole[-14:-10] = b"\xff" * 4  # the two counts of the old directory's end, which then say: look at the other one
    whole[-10:-2] = b"\xff" * 8  # and its size and place
    path.write_bytes(whole)
    assert len(Archive(path)) == 5
    assert Archive(path).read("a/4.txt") == b"4"


def test_an_archive_behind_other_bytes_is_read(tmp_path: Path) -> None:
    few = tmp_path / "few.zip"
    with zipfile.ZipFile(few, "w") as packed:
        packed.writestr("a/b.txt", "content")
    behind = tmp_path / "behind.zip"
    behind.write_bytes(b"a program that unpacks itself" + few.read_bytes())
    assert Archive(behind).read("a/b.txt") == b"content"
    with zipfile.ZipFile(behind) as reference:
        assert reference.read("a/b.txt") == b"content"


def test_numbers_beyond_32_bits_are_read_from_the_zip64_fields(tmp_path: Path) -> None:
    path = tmp_path / "long.zip"
    with zipfile.ZipFile(path, "w") as packed, packed.open("x", "w", force_zip64=True) as member:
        member.write(b"content")
    assert Archive(path).read("x") == b"content"
    extra = b"\1\0\x18\0" + (5_000_000_000).to_bytes(8, "little") * 3
    most = 0xFFFFFFFF
    assert zip_reader._long_numbers(extra, most, most, most) == (5_000_000_000,) * 3
    assert zip_reader._long_numbers(extra, 7, most, 8) == (7, 5_000_000_000, 8)


def test_folders_are_listed_without_what_is_in_them(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as packed:
        for name in ("a/b/c.txt", "a/b.txt", "a-b/d.txt", "a/z.txt", "top.txt", "a/b/d.txt"):
            packed.writestr(name, name)
        packed.mkdir("empty")
    assert sorted(zip_reader.names(path)) == ["a", "a-b", "top.txt"]
    assert sorted(zip_reader.names(path / "a")) == ["b", "b.txt", "z.txt"]
    assert sorted(zip_reader.names(path / "a" / "b")) == ["c.txt", "d.txt"]
    assert zip_reader.is_folder(path / "a" / "b")
    assert not zip_reader.is_folder(path / "a" / "b.txt")
    assert zip_reader.is_file(path / "a" / "b.txt")
    assert zip_reader.size(path / "a" / "b.txt") == len("a/b.txt")


def test_a_folder_that_is_called_like_a_zip_is_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "not.zip" / "really"
    folder.mkdir(parents=True)
    (folder / "x.txt").write_text("x")
    assert zip_reader.inside(folder / "x.txt") is None
    assert zip_reader.open_binary(folder / "x.txt").read() == b"x"


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_ways_to_pack_are_named(tmp_path: Path, method: int) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", method) as packed:
        packed.writestr("a.txt", "content")
    with pytest.raises(ValueError, match=r"x\.zip/a\.txt is packed with (bzip2|lzma); unpack"):
        Archive(path).read("a.txt")


def test_an_archive_that_is_still_coming_down_is_refused_and_read_when_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("a.txt", "content")
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=r"x\.zip cannot be read as a zip archive"):
        zip_reader.is_file(path / "a.txt")
    path.write_bytes(whole)
    os.utime(path, ns=(1, 1))
    assert zip_reader.is_file(path / "a.txt")


def _sums(path: Path, results: Any) -> None:
    results.put([int.from_bytes(zip_reader.open_binary(path / f"{n}").read(), "big") for n in range(200)])


def test_forked_workers_read_at_the_same_time_from_one_open_archive(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as packed:
        for number in range(200):
            packed.writestr(str(number), number.to_bytes(4, "big") * 1)
    assert zip_reader.is_file(path / "0")  # opened before the fork, as a data set is
    fork = get_context("fork")
    results = fork.SimpleQueue()
    workers = [fork.Process(target=_sums, args=(path, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert [results.get() for _ in workers] == [list(range(200))] * 3
    for worker in workers:
        worker.join()

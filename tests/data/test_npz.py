"""Arrays read without NumPy's detours are NumPy's arrays; what is not plain is left to NumPy."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.builders import frame_arrays
from training.data.formats.npz import QuickNpz
from training.data.readers import read_npz


def quickly(path: Path, keys: list[str]) -> dict[str, Any] | None:
    with path.open("rb") as file:
        quick = QuickNpz.of(file)
        return None if quick is None else quick.arrays(keys)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_those_that_numpy_reads(tmp_path: Path, save: Any) -> None:
    arrays = {**frame_arrays(3, static=200), "nothing": np.zeros((0, 3), np.int16), "one": np.array(5.0)}
    save(tmp_path / "f.npz", **arrays)
    found = quickly(tmp_path / "f.npz", list(arrays))
    assert found is not None
    with np.load(tmp_path / "f.npz") as expected:
        for name in arrays:
            np.testing.assert_array_equal(found[name], expected[name])
            assert found[name].dtype == expected[name].dtype
            assert found[name].flags.writeable


def test_a_frame_is_read_without_zipfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "f.npz", **frame_arrays(3))
    monkeypatch.setattr(zipfile, "ZipFile", lambda *given, **named: pytest.fail("the slow way"))
    assert list(read_npz(tmp_path / "f.npz", ("rgb_gripper", "actions"))) == ["rgb_gripper", "actions"]


@pytest.mark.parametrize(
    "content",
    [
        {"a": np.asfortranarray(np.arange(6).reshape(2, 3))},
        {"a" * 300: np.zeros(3), "a": np.ones(2)},  # still plain
        {"a": np.ones(2), **{f"x{number:0100d}": np.zeros(1) for number in range(60)}},  # a long directory
    ],
)
def test_unusual_files_are_read_all_the_same(tmp_path: Path, content: dict[str, Any]) -> None:
    np.savez(tmp_path / "f.npz", **content)
    np.testing.assert_array_equal(read_npz(tmp_path / "f.npz", ("a",))["a"], content["a"])


def test_no_flipped_bit_gives_another_array(tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    np.savez_compressed(path, a=np.arange(9), b=np.arange(4.0))
    whole = path.read_bytes()
    unequal = refused = 0
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with path.open("rb") as file:
            quick = QuickNpz.of(file)
            found = quick.arrays(["a"]) if quick is not None and "a" in quick.names else None
        refused += found is None
        unequal += found is not None and not np.array_equal(found["a"], np.arange(9))
    assert unequal == 0
    assert refused > 100

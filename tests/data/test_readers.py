"""Damaged files of every kind give one sentence that names the file."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.builders import annotation_content, opened_files, write_frame
from training.data import readers
from training.data.readers import iterate_json_list, read_image, read_npy, read_npz, read_pickled_npy

records = st.lists(
    st.dictionaries(st.text(max_size=5), st.text(max_size=30) | st.lists(st.integers(), max_size=4), max_size=3),
    max_size=6,
)
same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)


@same_folder
@given(content=records, chunk=st.integers(1, 40), indent=st.sampled_from([None, 1]), ascii_only=st.booleans())
def test_a_json_list_is_read_the_same_however_small_the_window_on_it(
    tmp_path: Path, content: list[dict[str, Any]], chunk: int, indent: int | None, ascii_only: bool
) -> None:
    path = tmp_path / "records.json"
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "CHUNK", chunk)
        assert list(iterate_json_list(path)) == content


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[1]", "[{}", "[{},", "[{},]", "[{} {}]", "[{}] x", '[{"a": }]', '[{"a": "b]', "[null]", "[" * 2000],
)
def test_what_is_not_a_json_list_of_objects_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "records.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"records\.json"):
        list(iterate_json_list(path))


def test_json_that_is_not_text_or_nested_without_end_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    path.write_bytes(b'[{"a": "\xff\xfe"}]')
    with pytest.raises(ValueError, match=r"records\.json is not UTF-8"):
        list(iterate_json_list(path))
    path.write_text('[{"a": ' + "[" * 200_000)
    with pytest.raises(ValueError, match=r"records\.json"):
        list(iterate_json_list(path))
    with pytest.raises(FileNotFoundError, match=r"missing\.json"):
        list(iterate_json_list(tmp_path / "missing.json"))


def test_a_frame_is_opened_once_and_only_the_wanted_arrays_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_frame(tmp_path / "f.npz", 3)
    with opened_files(monkeypatch) as names:
        arrays = read_npz(tmp_path / "f.npz", ("rgb_gripper", "actions"))
    assert list(arrays) == ["rgb_gripper", "actions"]
    assert names == ["f.npz"]


def test_a_missing_array_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", actions=np.zeros(7))
    with pytest.raises(ValueError, match=r"f\.npz lacks 'rgb_static'; it has actions"):
        read_npz(tmp_path / "f.npz", ("rgb_static", "actions"))
    with pytest.raises(FileNotFoundError, match=r"g\.npz does not exist"):
        read_npz(tmp_path / "g.npz", ("actions",))


def test_objects_inside_a_frame_are_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", rgb_static=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match=r"f\.npz cannot be read"):
        read_npz(tmp_path / "f.npz", ("rgb_static",))


def test_damaged_frames_images_and_arrays_give_the_whole_content_or_one_named_error(tmp_path: Path) -> None:
    """Every cut and 300 flipped bits of each kind of file; never another exception, and silence only if it is whole."""
    rng = np.random.default_rng(0)
    write_frame(tmp_path / "good.npz", 1)
    Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8)).save(tmp_path / "good.png")
    np.save(tmp_path / "good.npy", np.arange(12).reshape(6, 2))
    readers = {".npz": lambda path: read_npz(path, ("rgb_static", "actions")), ".png": read_image, ".npy": read_npy}
    refusals = []
    for suffix, reader in readers.items():
        whole = (tmp_path / f"good{suffix}").read_bytes()
        cuts = [whole[:length] for length in np.linspace(0, len(whole) - 1, 40).astype(int)]
        flipped = []
        for _ in range(300):
            damaged = bytearray(whole)
            damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
            flipped.append(bytes(damaged))
        for damaged in [*cuts, *flipped]:
            path = tmp_path / f"bad{suffix}"
            path.write_bytes(damaged)
            try:
                reader(path)
            except ValueError as error:
                refusals.append((path.name, str(error)))
    assert len(refusals) > 300
    assert all(name in sentence and "\n" not in sentence for name, sentence in refusals)


class Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


def test_annotations_are_read_without_running_what_a_pickle_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "ann.npy", annotation_content([(0, 3)]), allow_pickle=True)
    assert read_pickled_npy(tmp_path / "ann.npy")["info"]["indx"] == [(0, 3)]
    for hostile in (Bomb(), {"language": Bomb()}):
        np.save(tmp_path / "bomb.npy", np.array(hostile, dtype=object), allow_pickle=True)
        with pytest.raises(ValueError, match=r"bomb\.npy .* asks for pathlib"):
            read_pickled_npy(tmp_path / "bomb.npy")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("protocol", range(2, 6))
def test_annotations_of_every_pickle_protocol_are_read(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "ann.npy"
    content = annotation_content([(0, 3), (2, 9)]) | {"bytes": b"\xff\x00", "number": np.float32(2.5)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"shape": (), "fortran_order": False, "descr": "|O"})
        pickle.dump(np.array(content, dtype=object), file, protocol=protocol)
    read = read_pickled_npy(path)
    assert read["language"]["emb"].shape == (2, 1, 384)
    assert read["bytes"] == b"\xff\x00"
    assert read["number"] == 2.5


def test_damaged_annotations_are_refused_by_name(tmp_path: Path) -> None:
    good = tmp_path / "ann.npy"
    np.save(good, annotation_content([(0, 3)]), allow_pickle=True)
    whole = good.read_bytes()
    rng = np.random.default_rng(1)
    refusals = []
    for trial in range(200):
        damaged = bytearray(whole[: rng.integers(len(whole))] if trial % 2 else whole)
        if damaged:
            damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
        (tmp_path / "bad.npy").write_bytes(bytes(damaged))
        try:
            read_pickled_npy(tmp_path / "bad.npy")
        except ValueError as error:
            refusals.append(str(error))
    assert len(refusals) > 90
    assert all("bad.npy" in sentence and "\n" not in sentence for sentence in refusals)
    np.save(tmp_path / "plain.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"plain\.npy .*not a pickled object"):
        read_pickled_npy(tmp_path / "plain.npy")
    with pytest.raises(FileNotFoundError, match=r"none\.npy"):
        read_pickled_npy(tmp_path / "none.npy")

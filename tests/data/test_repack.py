"""Packed splits: frames in shards that everybody reads as if they were files."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.processing.image import fit
from preprocess_data import process_calvin, repack
from tests.data.builders import frame_arrays, opened_files, raw_split, write_frame
from training.data.calvin import CalvinSplit
from training.data.formats import packed_frames, shards, zip_reader
from training.data.formats.shards import ShardWriter
from training.future_view_prediction_w_action_dataset import DataProvider

WINDOWS = [(0, 5), (3, 8), (10, 11)]


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "LEAST_ROWS", 4)


@pytest.fixture
def split(tmp_path: Path) -> Path:
    path = raw_split(tmp_path / "calvin" / "validation", range(14), WINDOWS, more=np.zeros(3))
    np.save(path / "ep_start_end_ids.npy", np.array([[0, 13]]))
    return path


def make(source: Path, folder: Path, *words: str) -> int:
    return repack.main(["--source-split-dir", str(source), "--output-dir", str(folder), *words])


@pytest.mark.parametrize("zipped", [False, True])
def test_a_packed_split_is_read_like_the_one_it_was_made_of(split: Path, tmp_path: Path, zipped: bool) -> None:
    source = split
    if zipped:
        with zipfile.ZipFile(tmp_path / "calvin.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(split.rglob("*")):
                archive.write(file, file.relative_to(tmp_path))
        source = tmp_path / "calvin.zip"
    folder = tmp_path / "packed"
    assert make(source, folder) == 0
    folder = folder / "validation" if zipped else folder  # a zip may hold several splits
    ours = CalvinSplit(folder)
    assert not list(folder.glob("*.npz"))
    assert ours.frame_ids.tolist() == list(range(14))
    assert ours.annotations == CalvinSplit(split).annotations
    assert ours.ranges.tolist() == [[0, 13]]
    assert zip_reader.is_file(ours.frame_path(13))
    assert not zip_reader.is_file(ours.frame_path(14))
    for number in (0, 7, 13):
        arrays = ours.frame(number, repack.KEYS)
        for key, expected in frame_arrays(number).items():
            np.testing.assert_array_equal(arrays[key], expected)
            assert arrays[key].dtype == expected.dtype
    with pytest.raises(ValueError, match=r"episode_0000003\.npz lacks 'more'; it has actions, rel_actions"):
        ours.frame(3, ("more",))
    with pytest.raises(FileNotFoundError, match=r"episode_0000014\.npz does not exist"):
        ours.frame(14, ("actions",))
    if not zipped:
        assert repack.main(["--verify", str(folder), "--source-split-dir", str(split)]) == 0


@pytest.mark.parametrize("copied", [False, True])
def test_training_reads_the_same_samples_from_it_and_opens_no_file(
    split: Path, tmp_path: Path, copied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make(split, tmp_path / "packed") == 0
    providers = []
    for name, source in (("from_files", split), ("from_pack", tmp_path / "packed")):
        words = ["--source-split-dir", str(source), "--output-dir", str(tmp_path / name), "--workers", "1"]
        assert process_calvin.main([*words, *(["--copy-frames"] if copied else [])]) == 0
        providers.append(DataProvider(tmp_path / name, act_step=3, resolution=16, num_view=2))
    shutil.rmtree(split)  # the other's frames
    if copied:
        shutil.rmtree(tmp_path / "packed")
        assert len(list((tmp_path / "from_pack" / "frames").glob("*.npz"))) == 11
    assert len(providers[1]) == 14
    with opened_files(monkeypatch) as names:
        samples = [providers[1][index] for index in range(14)]
    if not copied:
        assert names == ["rows_00001.shard", "rows_00002.shard"]  # the first was opened before; each once
    for number, sample in zip([*range(6), *range(3, 9), 10, 11], samples, strict=True):
        for view, camera in enumerate(("rgb_static", "rgb_gripper")):
            np.testing.assert_array_equal(sample.views[view].numpy(), fit(frame_arrays(number)[camera], 16))
        assert sample.actions[0].tolist() == frame_arrays(number)["rel_actions"].astype(np.float32).tolist()


def test_images_may_be_brought_to_their_size_once(split: Path, tmp_path: Path) -> None:
    assert make(split, tmp_path / "packed", "--resolution", "16", "--annotated") == 0
    ours = CalvinSplit(tmp_path / "packed")
    assert ours.frame_ids.tolist() == [*range(9), 10, 11]
    for camera in ("rgb_static", "rgb_gripper"):
        picture = ours.frame(4, (camera,))[camera]
        assert picture.shape == (16, 16, 3)
        np.testing.assert_array_equal(fit(picture, 16), fit(frame_arrays(4)[camera], 16))
    assert repack.main(["--verify", str(tmp_path / "packed"), "--source-split-dir", str(split)]) == 0


def test_killed_it_is_not_there_and_then_goes_on(split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, written = ShardWriter.close, []

    def dies(writer: ShardWriter, made: Any) -> None:
        if written:
            raise KeyboardInterrupt
        original(writer, made)
        written.append(writer.shard)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "close", dies)
        with pytest.raises(KeyboardInterrupt):
            make(split, tmp_path / "packed")
    with pytest.raises(ValueError, match=r"holds no episode_\*\.npz"):
        CalvinSplit(tmp_path / "packed").frame_ids  # noqa: B018
    assert repack.main(["--verify", str(tmp_path / "packed")]) == 2
    written.clear()
    monkeypatch.setattr(ShardWriter, "close", lambda w, made: written.append(w.shard) or original(w, made))
    assert make(split, tmp_path / "packed") == 0
    assert written == [1, 2, 3]
    assert repack.main(["--verify", str(tmp_path / "packed"), "--source-split-dir", str(split)]) == 0


def test_damage_and_other_numbers_are_found(split: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "packed"
    assert make(split, folder) == 0
    write_frame(split / "episode_0000005.npz", 6)
    assert repack.main(["--verify", str(folder), "--source-split-dir", str(split)]) == 1
    assert "episode_0000005.npz: rgb_static and rgb_gripper and" in capsys.readouterr().err
    shard = folder / "rows_00002.shard"
    content = bytearray(shard.read_bytes())
    content[3000] ^= 1
    shard.write_bytes(content)
    packed_frames._open.clear()
    assert repack.main(["--verify", str(folder)]) == 2
    assert "rows_00002.shard" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rgb_static": np.zeros((8, 8, 3), np.uint8)}, r"episode_0000007\.npz: rgb_static is uint8 \[8, 8, 3\]"),
        ({"actions": np.zeros(7, np.float32)}, r"episode_0000007\.npz: actions is float32 \[7\]"),
    ],
)
def test_a_frame_unlike_the_others_is_named(
    split: Path, tmp_path: Path, change: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_frame(split / "episode_0000007.npz", 7, **change)
    assert make(split, tmp_path / "packed") == 2
    import re

    assert re.search(message, capsys.readouterr().err)


def test_it_says_what_it_will_take_and_stops_where_there_is_no_room(
    split: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make(split, tmp_path / "packed") == 0
    assert "14 frames of 2.3 kB, 0.00 GB" in capsys.readouterr().out
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10})())
    assert make(split, tmp_path / "other") == 2
    assert "are needed, 0.00 GB are free; try --annotated" in capsys.readouterr().err
    assert make(split, split) == 2
    assert "frames lie there as files already" in capsys.readouterr().err

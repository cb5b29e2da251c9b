"""The token cache: every distinct frame once, whole or not at all, and nobody's but its own."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models.processing.image import fit, normalise
from models.processing.image_file import READING
from models.vision.magvitv2 import load_magvit
from preprocess_data import tokenize_images
from tests.data.builders import edit_index, forget, frame_arrays, opened_files, processed_split, raw_split, write_frame
from tests.training.world import write_magvit
from training.data.batch import collate_robot
from training.data.caches.token_cache import CacheKey, TokenCache, find, processed_digest, raw_digest, reading_version
from training.data.calvin import CalvinSplit
from training.data.episode_index import read_index
from training.data.formats import shards
from training.data.formats.shards import ShardWriter
from training.future_view_prediction_w_action_dataset import DataProvider

LENGTHS = [5, 1, 12]
WINDOWS = [(0, 5), (3, 8), (10, 11)]


@pytest.fixture(scope="module")
def magvit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("networks") / "magvit"
    write_magvit(folder)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return processed_split(tmp_path / "split", LENGTHS)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "LEAST_ROWS", 4)


def make(data: Path, magvit: Path, *words: str) -> int:
    return tokenize_images.main(
        ["--data", str(data), "--tokenizer", str(magvit), "--resolution", "32", "--device", "cpu", *words]
    )


def cache_of(root: Path, magvit: Path, views: int = 2, caches: Path | None = None) -> TokenCache:
    digest = processed_digest(read_index(root, images=False))
    wanted = CacheKey(digest, load_magvit(magvit).weights_hash, 32, views)
    return find([caches or root / "token_cache"], wanted, "MAKE", root)


def encoded(magvit: Path, number: int) -> np.ndarray:
    """int16 [V, n] of a frame of the builders', by itself."""
    arrays = frame_arrays(number)
    pictures = np.stack([fit(arrays[camera], 32) for camera in ("rgb_static", "rgb_gripper")])
    codes: np.ndarray = load_magvit(magvit).encode(normalise(torch.from_numpy(pictures))).numpy()
    return codes


def test_the_cache_holds_the_codes_of_every_frame_and_opens_no_image(
    root: Path, magvit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make(root, magvit) == 0
    for picture in root.glob("*.npz"):
        picture.unlink()
    provider = DataProvider(root, act_step=3, resolution=32, num_view=2, tokens=cache_of(root, magvit))
    with opened_files(monkeypatch) as names:
        samples = [provider[index] for index in range(len(provider))]
    assert not [name for name in names if name.endswith(".npz")]
    for number, sample in enumerate(samples):
        np.testing.assert_array_equal(sample.views.numpy(), encoded(magvit, number))
    np.testing.assert_array_equal(samples[6].future_views.numpy(), encoded(magvit, 9))
    assert samples[0].views.dtype == torch.int16


def test_a_batch_is_gathered_as_its_samples_would_be_collated(root: Path, magvit: Path) -> None:
    assert make(root, magvit) == 0
    provider = DataProvider(root, act_step=3, resolution=32, num_view=1, tokens=cache_of(root, magvit, views=1))
    indices = [17, 3, 5, 4, 0, 17, 16, 15, 2]  # ends of episodes, one of a single frame, the same twice
    gathered, collated = provider.batch(indices), collate_robot([provider[index] for index in indices])
    assert gathered.views.shape == (9, 1, 4)
    assert gathered.instructions == collated.instructions
    for name in ("views", "future_views", "actions", "action_is_pad", "indices"):
        ours, theirs = getattr(gathered, name), getattr(collated, name)
        assert torch.equal(ours, theirs), name
        assert ours.dtype == theirs.dtype


def test_a_frame_that_windows_share_is_encoded_once(root: Path, magvit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overlapping(episodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [*episodes, {**episodes[2], "instruction": "the same again"}]

    edit_index(root, overlapping)
    read: list[int] = []
    original = DataProvider.views
    monkeypatch.setattr(DataProvider, "views", lambda self, frame: read.append(frame) or original(self, frame))
    assert make(root, magvit) == 0
    cache = cache_of(root, magvit)
    assert cache.plan.rows == 18
    assert sorted(set(read)) == list(range(18))
    # Opening a data set looks at its first frame.
    assert len([frame for frame in read if frame]) == 17
    np.testing.assert_array_equal(cache.codes(np.asarray([18, 29]), 2), cache.codes(np.asarray([6, 17]), 2))


def test_killed_in_the_middle_it_goes_on_with_the_shards_it_has(
    root: Path, magvit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, written = ShardWriter.close, []

    def dies(writer: ShardWriter, made: Any) -> None:
        if len(written) == 2:
            (writer.folder / f"rows_{writer.shard:05d}.shard.abc.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        original(writer, made)
        written.append(writer.shard)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "close", dies)
        with pytest.raises(KeyboardInterrupt):
            make(root, magvit)
    with pytest.raises(ValueError, match=r"not finished.*MAKE"):
        cache_of(root, magvit)
    written.clear()
    monkeypatch.setattr(ShardWriter, "close", lambda w, made: written.append(w.shard) or original(w, made))
    assert make(root, magvit) == 0
    assert written == [2, 3, 4]
    cache = cache_of(root, magvit)
    assert not list(cache.folder.glob("*.tmp"))
    for number in range(18):
        np.testing.assert_array_equal(cache.codes(np.asarray([number]), 2)[0], encoded(magvit, number))
    assert make(root, magvit) == 0
    assert written == [2, 3, 4]  # nothing was left to do


def test_ranks_share_the_shards_and_the_last_one_closes_the_cache(
    root: Path, magvit: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make(root, magvit, "--rank", "1", "--world", "2") == 0
    assert "3 of 5 shards (of other ranks) are missing" in capsys.readouterr().out
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert make(root, magvit) == 0
    assert "18 frames x 2 views" in capsys.readouterr().out
    assert cache_of(root, magvit).plan.shards == 5


@pytest.mark.slow
def test_who_comes_second_to_a_shard_does_not_fail_when_the_first_has_closed_the_cache(
    root: Path, magvit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make(root, magvit) == 0
    cache = cache_of(root, magvit)
    late = ShardWriter(cache.folder, cache.plan, 0)
    late.add({"codes": cache.rows.gather("codes", np.arange(4))})
    sync = os.fsync

    def closed_meanwhile(file: int) -> None:
        sync(file)
        (cache.folder / shards.WHOLE).unlink()
        assert shards.finish(cache.folder, cache.plan) == 0

    monkeypatch.setattr(os, "fsync", closed_meanwhile)
    late.close({})
    np.testing.assert_array_equal(cache_of(root, magvit).codes(np.asarray([0]), 2)[0], encoded(magvit, 0))


def test_a_full_disk_is_one_line_that_names_the_file(
    root: Path, magvit: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert make(root, magvit) == 2
    assert "rows_00000.shard cannot be written (No space left on device); mend that" in capsys.readouterr().err
    assert not list(root.rglob("*.tmp"))
    assert make(root, magvit) == 0


def test_two_processes_write_the_same_codes_as_one(root: Path, magvit: Path, tmp_path: Path) -> None:
    for name, count in (("one", "1"), ("two", "2")):
        assert make(root, magvit, "--output", str(tmp_path / name), "--processes", count) == 0
    one, two = (cache_of(root, magvit, caches=tmp_path / name) for name in ("one", "two"))
    np.testing.assert_array_equal(one.codes(np.arange(18), 2), two.codes(np.arange(18), 2))


def test_codes_do_not_depend_on_how_many_frames_were_encoded_at_once(
    root: Path, magvit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make(root, magvit, "--batch-size", "7") == 0
    assert make(root, magvit, "--check", "--batch-size", "3", "--most-flips", "0.02") == 0
    assert "of 144 codes" in capsys.readouterr().out
    made = json.loads((cache_of(root, magvit).folder / "whole.json").read_text())["made"]
    assert made == [{"device": "cpu", "dtype": "float32", "tf32": False, "batch_size": 7, "torch": torch.__version__}]


def test_the_check_counts_codes_that_come_out_otherwise(
    root: Path, magvit: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make(root, magvit, "--check") == 2
    assert "not there or not finished" in capsys.readouterr().err
    assert make(root, magvit) == 0
    original = tokenize_images.encode

    def one_flips(model: Any, pictures: torch.Tensor, device: str) -> np.ndarray:
        codes = original(model, pictures, device)
        codes[0, 0, 0] ^= 1
        return codes

    monkeypatch.setattr(tokenize_images, "encode", one_flips)
    assert make(root, magvit, "--check", "--batch-size", "18") == 1
    assert ": 1 of 144 codes (6.94e-03) of 18 frames came out otherwise" in capsys.readouterr().out


def test_a_cache_of_something_else_is_refused_in_one_line_with_the_command(
    root: Path, magvit: Path, tmp_path: Path
) -> None:
    assert make(root, magvit) == 0
    digest, weights = processed_digest(read_index(root)), load_magvit(magvit).weights_hash
    place = [root / "token_cache"]
    assert find(place, CacheKey(digest, weights, 32, 2), "MAKE", root).views == 2
    for wanted, why in (
        (CacheKey("other", weights, 32, 2), "made of other data"),
        (CacheKey(digest, "other", 32, 2), r"by a tokenizer of other weights \(magvit\)"),
        (CacheKey(digest, weights, 64, 2), "of images of 32 pixels .* not 64"),
        (CacheKey(digest, weights, 32, 3), "of 2 view, not 3"),
    ):
        with pytest.raises(ValueError, match=rf"^[^\n]*{why}[^\n]*Make it: MAKE$"):
            find(place, wanted, "MAKE", root)
    with pytest.raises(ValueError, match="it is empty"):
        find([tmp_path / "split" / "nothing"], CacheKey(digest, weights, 32, 2), "MAKE", root)


def test_a_cache_whose_codes_were_made_with_tf32_is_refused(root: Path, magvit: Path) -> None:
    assert make(root, magvit) == 0
    whole = cache_of(root, magvit).folder / "whole.json"
    record = json.loads(whole.read_text())
    record["made"].append({**record["made"][0], "tf32": True})
    whole.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"made with TF32, in which codes differ.*Make it: "):
        cache_of(root, magvit)


def test_images_that_were_replaced_are_noticed(root: Path, magvit: Path) -> None:
    assert make(root, magvit) == 0
    write_frame(root / "frame_0.npz", 0, more=np.zeros(9))
    with pytest.raises(ValueError, match=r"made of other images than those there now.*frame_0\.npz"):
        cache_of(root, magvit)


def test_a_copy_whose_images_were_replaced_by_some_of_the_same_size_is_noticed(
    root: Path, magvit: Path, tmp_path: Path
) -> None:
    assert make(root, magvit) == 0
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    other = bytearray((copy / "frame_0.npz").read_bytes())
    other[100] ^= 1
    (copy / "frame_0.npz").write_bytes(other)
    with pytest.raises(ValueError, match=r"made of other images than those there now.*copy/frame_0\.npz"):
        cache_of(copy, magvit)
    assert cache_of(root, magvit).plan.rows == 18


def test_a_moved_copy_of_the_data_keeps_its_cache(root: Path, magvit: Path, tmp_path: Path) -> None:
    assert make(root, magvit) == 0
    shutil.copytree(root, tmp_path / "elsewhere" / "split")
    shutil.rmtree(root)
    assert cache_of(tmp_path / "elsewhere" / "split", magvit).plan.rows == 18


def test_a_damaged_shard_is_an_error_that_names_it(root: Path, magvit: Path) -> None:
    assert make(root, magvit) == 0
    folder = cache_of(root, magvit).folder
    shard = folder / "rows_00001.shard"
    content = bytearray(shard.read_bytes())
    content[100] ^= 4
    shard.write_bytes(content)
    cache = cache_of(root, magvit)
    cache.codes(np.asarray([0, 17]), 2)
    with pytest.raises(ValueError, match=r"rows_00001\.shard .* does not match its checksum"):
        cache.codes(np.asarray([0, 5]), 2)
    shard.write_bytes(content[:-9])
    with pytest.raises(ValueError, match=r"rows_00001\.shard .*cut off"):
        cache_of(root, magvit).codes(np.asarray([5]), 2)
    shutil.copy(folder / "rows_00000.shard", shard)
    with pytest.raises(ValueError, match=r"rows_00001\.shard holds shard 0"):
        cache_of(root, magvit).codes(np.asarray([5]), 2)
    shard.unlink()
    with pytest.raises(ValueError, match=r"rows_00001\.shard cannot be read"):
        cache_of(root, magvit).codes(np.asarray([5]), 2)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_raw_split_gives_codes_and_actions_of_its_windows(tmp_path: Path, magvit: Path, zipped: bool) -> None:
    split = raw_split(tmp_path / "calvin" / "validation", range(14), WINDOWS)
    if zipped:
        with zipfile.ZipFile(tmp_path / "calvin.zip", "w") as packed:
            for file in sorted(split.rglob("*")):
                packed.write(file, file.relative_to(tmp_path))
        shutil.rmtree(tmp_path / "calvin")
        split = tmp_path / "calvin.zip" / "calvin" / "validation"
    assert make(split, magvit, "--output", str(tmp_path / "caches")) == 0
    wanted = CacheKey(raw_digest(CalvinSplit(split)), load_magvit(magvit).weights_hash, 32, 2)
    cache = find([tmp_path / "caches"], wanted, "MAKE", split)
    assert cache.plan.rows == 11  # 0..8, 10, 11
    for number in (0, 8, 11):
        np.testing.assert_array_equal(cache.raw("codes", number), encoded(magvit, number))
        for name in ("rel_actions", "actions"):
            np.testing.assert_array_equal(cache.raw(name, number), frame_arrays(number)[name])
    with pytest.raises(ValueError, match=r"no frame 9.*--all-frames"):
        cache.raw("codes", 9)


def test_one_camera_is_taken_where_there_is_no_second(tmp_path: Path, magvit: Path) -> None:
    root = processed_split(tmp_path / "panda", [3], suffix=".png")
    assert make(root, magvit) == 0
    assert cache_of(root, magvit, views=1).views == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--resolution", "40"), "--resolution 40: must be a multiple of 16"),
        (("--batch-size", "0"), "--batch-size must be at least 1, is 0"),
        (("--rank", "2", "--world", "2"), "a rank is at least 0 and less than the world"),
        (("--rank", "0"), "--rank and --world go together"),
        (("--data", "/nowhere"), "/nowhere is neither a processed split"),
        (("seed=3",), "settings of a run need --config"),
    ],
)
def test_a_wrong_option_is_one_line(
    root: Path, magvit: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make(root, magvit, *words) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_a_cache_of_image_files_that_were_read_otherwise_is_refused_and_one_of_arrays_is_not(
    root: Path, magvit: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    records = json.loads((root / "dataset_info.json").read_text())
    for record in records:
        for frame in record["frames"]:
            name = Path(frame["dir"]).with_suffix(".png").name
            Image.fromarray(np.load(root / frame["dir"])["rgb_static"]).save(images / name)
            frame["dir"] = name
            frame.pop("gripper_dir", None)
    (images / "dataset_info.json").write_text(json.dumps(records))
    for data in (root, images):
        assert make(data, magvit, "--views", "1") == 0
        index = read_index(data)
        weights = load_magvit(magvit).weights_hash
        wanted = CacheKey(processed_digest(index), weights, 32, 1, reading_version(index))
        assert find([data / "token_cache"], wanted, "MAKE", data)
        assert forget(data / "token_cache", "reading") == (READING if data is images else None)
        if data is root:
            assert find([data / "token_cache"], wanted, "MAKE", data)
            continue
        with pytest.raises(ValueError, match="image files as an earlier version read them"):
            find([data / "token_cache"], wanted, "MAKE", data)

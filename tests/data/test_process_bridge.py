"""BridgeData, raw and RLDS -> processed split, as users type it; and what reads TFRecord files."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from preprocess_data import process_bridge
from preprocess_data.formats.bridge import find_raw, read_raw
from preprocess_data.formats.tfrecord import masked_crc, parse_example, records
from preprocess_data.jobs import convert
from preprocess_data.jobs.convert import Units
from scripts import inspect_data
from tests.data.bridge_files import (
    example,
    image,
    open_x_episode,
    raw_trajectory,
    rlds_episode,
    rlds_files,
    states_of,
)
from training.data import dataset_spec
from training.data.dataset_spec import read_contract
from training.data.episode_index import read_index
from training.future_view_prediction_w_action_dataset import DataProvider

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    top = tmp_path / "raw"
    for number in (0, 1, 10, 2):
        raw_trajectory(top / "toykitchen" / "traj_group0" / f"traj{number}", number, 4 + number % 3)
    return top


@pytest.fixture
def rlds(tmp_path: Path) -> Path:
    contents = [example(rlds_episode(seed)) for seed in range(5)]
    return rlds_files(tmp_path / "bridge_dataset" / "1.0.0", [contents[:3], contents[3:]])


def process(source: Path, output: Path, *options: str) -> int:
    return process_bridge.main(["--source", str(source), "--output-dir", str(output), "--workers", "1", *options])


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("process_bridge")]
    assert len(said) == 1
    return said[0]


def test_raw_folders_become_episodes_with_actions_from_their_states(raw: Path, tmp_path: Path) -> None:
    assert process(raw, tmp_path / "out") == 0
    index = read_index(tmp_path / "out")
    assert np.diff(index.starts).tolist() == [4, 5, 6, 5]  # traj10 comes after traj2
    assert index.instruction(0) == "put the pot on the stove"
    states = states_of(1, 5)
    actions = index.actions[4:9]
    difference = np.diff(states[:, :6], axis=0)
    difference = np.angle(np.exp(1j * difference)) * np.r_[0, 0, 0, 1, 1, 1] + difference * np.r_[1, 1, 1, 0, 0, 0]
    np.testing.assert_allclose(actions[:-1, :6], difference / np.repeat([0.05, 0.25], 3), atol=1e-5)
    assert (actions[-1, :6] == 0).all()
    assert actions[:, 6].tolist() == [-1, 1, -1, 1, 1]  # commanded 0 1 0 1, the last one held
    assert np.abs(states[1:, 5] - states[:-1, 5]).max() > 6  # an angle wraps here, and the action does not leap


def test_the_contract_says_what_a_bridge_action_means(raw: Path, tmp_path: Path) -> None:
    assert process(raw, tmp_path / "out", "--position-unit", "0.01", "--second-camera", "1") == 0
    contract = read_contract(tmp_path / "out")
    assert contract.action["position_m_per_unit"] == 0.01
    assert contract.action["rotation_rad_per_unit"] == 0.25
    assert (contract.action["frame"], contract.action["rate_hz"]) == ("robot_base", 5)
    assert contract.cameras == {"rgb_static": (24, 32), "rgb_gripper": (24, 32)}
    assert contract.statistics is not None
    assert contract.statistics.max[0] <= 1


def test_one_camera_is_both_views_and_a_second_one_is_another(raw: Path, tmp_path: Path) -> None:
    for views in (1, 2):
        assert process(raw, tmp_path / "one") == 0
        provider = DataProvider(tmp_path / "one", 3, 16, views)
        samples = [provider[i] for i in range(len(provider))]
        assert samples[0].views.shape == (views, 3, 16, 16)
    assert all((sample.views[0] == sample.views[1]).all() for sample in samples)
    declared = read_contract(tmp_path / "one").cameras  # a model that looks through two cameras may learn from it
    assert declared == {"rgb_static": (24, 32), "rgb_gripper": (24, 32)}
    assert process(raw, tmp_path / "two", "--second-camera", "1") == 0
    sample = DataProvider(tmp_path / "two", 3, 16, 2)[0]
    assert (sample.views[0] != sample.views[1]).any()


def test_rlds_files_give_the_same_as_the_raw_folders_they_were_made_from(rlds: Path, tmp_path: Path) -> None:
    assert process(rlds.parent, tmp_path / "out") == 0
    raw_trajectory(tmp_path / "raw" / "traj_group0" / "traj0", 3, words="open the drawer")
    assert process(tmp_path / "raw", tmp_path / "raw_out") == 0
    packed, plain = read_index(tmp_path / "out"), read_index(tmp_path / "raw_out")
    assert np.diff(packed.starts).tolist() == [4] * 5
    np.testing.assert_allclose(packed.actions[12:15], plain.actions[:3], atol=1e-4)
    assert packed.frame_path(12).read_bytes() == plain.frame_path(0).read_bytes() == image(300)
    assert packed.instruction(3) == "open the drawer"
    shutil.move(tmp_path / "out", tmp_path / "moved")
    assert len(DataProvider(tmp_path / "moved", 3, 16, 2)) == 20


def test_open_x_names_its_fields_otherwise(tmp_path: Path) -> None:
    root = rlds_files(tmp_path / "bridge", [[example(open_x_episode(0))]], "bridge")
    assert process(root, tmp_path / "out") == 0
    index = read_index(tmp_path / "out")
    assert (index.instruction(0), index.actions[:][:, 6].tolist()) == ("open the drawer", [-1, 1, -1, 1])


def test_an_episode_without_words_or_camera_is_left_out_and_told(
    raw: Path, rlds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (raw / "toykitchen" / "traj_group0" / "traj1" / "lang.txt").unlink()
    assert process(raw, tmp_path / "out") == 0
    said = capsys.readouterr()
    assert "traj1 has no instruction" in said.err
    assert "3 episodes, 15 frames, 1 different instructions; 1 episodes left out" in said.out
    assert process(raw, tmp_path / "out", "--default-instruction", "do something") == 0
    assert read_index(tmp_path / "out").instruction(1) == "do something"
    assert process(rlds, tmp_path / "second", "--second-camera", "1") == 0
    assert read_index(tmp_path / "second").episodes == 2
    assert "record 0 was not recorded by camera 1" in capsys.readouterr().err


def test_a_bad_trajectory_stops_or_is_left_out_and_the_next_run_goes_on(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_bridge, "FOLDERS", 1)
    missing = raw / "toykitchen" / "traj_group0" / "traj10" / "images0" / "im_2.jpg"
    content = missing.read_bytes()
    missing.unlink()
    assert process(raw, tmp_path / "out") == 2
    assert "traj10/images0/im_2.jpg does not exist" in one_error(capsys)
    assert not (tmp_path / "out" / "dataset_info.json").exists()
    assert process(raw, tmp_path / "skipped", "--skip-bad") == 0
    assert read_index(tmp_path / "skipped").episodes == 3
    missing.write_bytes(content)
    read: list[str] = []
    monkeypatch.setattr(process_bridge, "read_raw", lambda f, c: read.append(f.name) or read_raw(f, c))  # type: ignore[func-returns-value]
    assert process(raw, tmp_path / "out") == 0
    assert read == ["traj10"]
    assert read_index(tmp_path / "out").episodes == 4
    assert not (tmp_path / "out" / ".parts").exists()


def test_workers_and_copies_change_nothing(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_bridge, "FOLDERS", 2)
    assert process(raw, tmp_path / "one") == 0
    assert process_bridge.main(
        ["--source", str(raw), "--output-dir", str(tmp_path / "two"), "--workers", "2", "--copy-frames"]
    ) == 0  # fmt: skip
    before = DataProvider(tmp_path / "one", 3, 16, 1)[7]
    shutil.rmtree(raw)
    after = DataProvider((tmp_path / "two").rename(tmp_path / "alone"), 3, 16, 1)[7]
    assert (before.views == after.views).all()
    assert (before.actions == after.actions).all()


def test_large_steps_are_clipped_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw_trajectory(tmp_path / "raw" / "traj0", 0, 5)
    assert process(tmp_path / "raw", tmp_path / "out", "--rotation-unit", "0.0001") == 0
    assert "4 actions (80.0%) were clipped" in capsys.readouterr().out
    assert np.abs(read_index(tmp_path / "out").actions[:]).max() == 1
    with pytest.raises(ValueError, match="--position-unit must be a positive number"):
        Units(0.0, 1.0, 0.5)


class Foreign:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        import os

        return os.system, ("echo run",)


def test_foreign_code_in_a_pickle_is_not_run(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (raw / "toykitchen" / "traj_group0" / "traj0" / "obs_dict.pkl").write_bytes(pickle.dumps(Foreign()))
    assert process(raw, tmp_path / "out") == 2
    assert "obs_dict.pkl cannot be read as pickled numbers" in one_error(capsys)


def test_verify_lists_what_is_wrong_in_sources_and_results(
    raw: Path, rlds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert process(raw, tmp_path / "out") == 0
    for path in (raw, rlds, tmp_path / "out"):
        assert process_bridge.main(["--verify", str(path), "--workers", "1"]) == 0
        assert "no problem found" in capsys.readouterr().out
    first = raw / "toykitchen" / "traj_group0" / "traj0"
    (first / "images0" / "im_1.jpg").write_bytes(image(1)[:300])
    (first.parent / "traj1" / "policy_out.pkl").write_bytes(pickle.dumps([{"actions": np.zeros(6)}]))
    shard = next(rlds.glob("*.tfrecord-00001*"))
    shard.write_bytes(shard.read_bytes()[:-7])
    report = tmp_path / "problems.json"
    assert process_bridge.main(["--verify", str(raw), "--report", str(report)]) == 1
    told = {(problem["kind"], Path(problem["file"]).name) for problem in json.loads(report.read_text())}
    assert told == {("damaged image", "im_1.jpg"), ("damaged trajectory", "policy_out.pkl")}
    assert process_bridge.main(["--verify", str(rlds), "--report", str(report)]) == 1
    assert "tfrecord-00001-of-00002: record 1 is cut off" in capsys.readouterr().out


def test_a_lost_episode_or_file_is_noticed(rlds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = next(rlds.glob("*.tfrecord-00001*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[: 16 + int.from_bytes(whole[:8], "little")])
    assert process(rlds, tmp_path / "out") == 2
    assert "holds 1 episodes, but dataset_info.json counts 2" in one_error(capsys)
    shard.unlink()
    assert process(rlds, tmp_path / "out") == 2
    assert "tfrecord-00001-of-00002 does not exist" in one_error(capsys)
    assert process(rlds, rlds) == 2
    assert "holds a data set of another format" in one_error(capsys)


def test_what_is_no_bridge_data_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert process(tmp_path / "empty", tmp_path / "out") == 2
    assert "holds neither obs_dict.pkl" in one_error(capsys)
    assert process(tmp_path / "nothing", tmp_path / "out") == 2
    assert "is not a folder" in one_error(capsys)


def test_an_output_that_cannot_be_written_is_told_before_anything_is_read(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert process(raw, tmp_path / "file") == 2
    assert f"--output-dir {tmp_path / 'file'}: the folder cannot be made (File exists)" in one_error(capsys)


def test_both_layouts_can_be_looked_at(
    raw: Path, rlds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, words in ((raw, "put the pot on the stove"), (rlds, "open the drawer")):
        assert inspect_data.main([str(path), "--out", str(tmp_path / "page.html")]) == 0
        assert words in (tmp_path / "page.html").read_text()
    assert "BridgeData, RLDS files" in capsys.readouterr().out


def test_raw_folders_as_deep_as_bridgedatas_own_are_found_from_their_top(tmp_path: Path) -> None:
    top = tmp_path / "bridge_data_v2"
    raw_trajectory(top / "kitchen" / "stack_blocks" / "19" / "2023-01-05" / "raw" / "traj_group0" / "traj0", 1)
    assert inspect_data.main([str(top), "--text"]) == 0
    assert process_bridge.main(["--summary", str(top)]) == 0


def test_a_trajectory_without_the_camera_does_not_keep_the_others_from_being_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw_trajectory(tmp_path / "raw" / "traj_group0" / "traj0", 1, cameras=(1,))
    raw_trajectory(tmp_path / "raw" / "traj_group0" / "traj1", 2, words="close the lid")
    assert inspect_data.main([str(tmp_path / "raw"), "--text"]) == 0
    assert "close the lid" in capsys.readouterr().out


def test_a_processed_split_is_played_at_its_own_rate(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert process(raw, tmp_path / "out") == 0
    assert inspect_data.main([str(tmp_path / "out"), "--text"]) == 0
    assert "at 5 Hz" in capsys.readouterr().out


def test_trajectories_of_equal_numbers_come_in_one_order_on_every_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("alpha", "beta"):
        raw_trajectory(tmp_path / name / "traj_group0" / "traj0", 1)
    walked = list(os.walk(tmp_path))
    expected = [tmp_path / name / "traj_group0" / "traj0" for name in ("alpha", "beta")]
    for order in (walked, walked[::-1]):
        monkeypatch.setattr(os, "walk", lambda root, order=order: iter(order))
        assert find_raw(tmp_path) == expected


def test_a_run_killed_at_the_end_does_not_leave_data_that_would_be_taken_for_calvins(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "MIN_INDEXED", 0)
    monkeypatch.setattr(convert, "build_index", killed)
    with pytest.raises(KeyboardInterrupt):
        process(raw, tmp_path / "out")
    assert read_contract(tmp_path / "out").action["kind"] == "relative_to_measured"
    monkeypatch.setattr(dataset_spec, "write_contract", killed)
    with pytest.raises(KeyboardInterrupt):
        process(raw, tmp_path / "other")
    assert not (tmp_path / "other" / "dataset_info.json").exists()


def test_the_documented_command_works_from_any_folder(raw: Path, tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, str(REPOSITORY / "preprocess_data/process_bridge.py"), "--help"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "position-unit" in made.stdout


# ---------------------------------------------------------------------------------------------------- TFRecord files
@pytest.mark.parametrize("size", [0, 1, 63, 64, 127, 128, 129, 1000, 70001])
def test_checksums_are_those_that_tensorboard_computes(size: int) -> None:
    content = np.random.default_rng(size).bytes(size)
    assert masked_crc(content) == masked_crc32c(content)


def test_an_example_reads_as_protobuf_wrote_it() -> None:
    values = {
        "floats": np.array([0.5, -1e30, 3.0], dtype=np.float32),
        "integers": [0, -1, 2**63 - 1, -(2**63), 300],
        "texts": ["ünd".encode(), b"", b"\x00" * 300],
        "ünd/none": [],
    }
    found = parse_example(example(values), "x")
    np.testing.assert_array_equal(found["floats"], values["floats"])
    assert np.asarray(found["integers"]).tolist() == values["integers"]
    assert found["texts"] == values["texts"]
    assert len(found["ünd/none"]) == 0


def test_every_flipped_byte_of_a_record_file_is_noticed(tmp_path: Path) -> None:
    root = rlds_files(tmp_path / "x", [[b"content", b"more"]])
    path = next(root.glob("*.tfrecord-*"))
    whole = path.read_bytes()
    assert list(records(path)) == [b"content", b"more"]
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="tfrecord-00000-of-00001: record"):
            list(records(path))
    assert io.BytesIO(whole).read(8) == (7).to_bytes(8, "little")

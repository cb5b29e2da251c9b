"""What the expert wanted, from a raw frame to the label of a sample: chosen by one key, refused where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from policy_rollout.benchmarks.processed import ProcessedSplit
from preprocess_data import process_calvin, repack
from tests.data.builders import edit_index, frame_arrays, processed_split, raw_split, write_frame
from training.data.calvin import CalvinSplit
from training.data.checks.split import check_processed
from training.data.dataset_spec import Statistics, action_scale, read_contract, write_contract
from training.data.episode_index import build_index, read_index
from training.future_view_prediction_w_action_dataset import DataProvider


def wanted(number: int) -> np.ndarray:
    """What the expert wants in frame ``number``."""
    action: np.ndarray = np.linspace(-1, 1, 7) * (number % 5) / 5
    action[6] = -1.0
    return action


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    split = raw_split(tmp_path / "raw", range(12), [(0, 5), (4, 11)])
    for number in range(12):
        write_frame(split / f"episode_{number:07d}.npz", number, expert_actions=wanted(number))
    np.save(split / "ep_start_end_ids.npy", [[0, 11]])
    return split


def processed(raw: Path, tmp_path: Path) -> Path:
    command = ["--source-split-dir", str(raw), "--output-dir", str(tmp_path / "processed")]
    assert process_calvin.main(command) == 0
    return tmp_path / "processed"


def test_the_key_chooses_the_label_and_nothing_else(raw: Path, tmp_path: Path) -> None:
    root = processed(raw, tmp_path)
    motion, expert = (
        DataProvider(root, act_step=3, resolution=16, num_view=2, action_key=key)
        for key in ("rel_actions", "expert_actions")
    )
    for index, number in ((0, 0), (7, 5)):
        ours, theirs = expert[index], motion[index]
        expected = np.stack([wanted(number + at) for at in range(3)])
        np.testing.assert_array_equal(ours.actions.numpy(), expected.astype(np.float32))
        np.testing.assert_array_equal(theirs.actions[0].numpy(), frame_arrays(number)["rel_actions"].astype("f4"))
        np.testing.assert_array_equal(ours.views.numpy(), theirs.views.numpy())
        np.testing.assert_array_equal(ours.action_is_pad.numpy(), theirs.action_is_pad.numpy())


def test_a_binary_index_and_a_packed_split_have_the_column_too(raw: Path, tmp_path: Path) -> None:
    root = processed(raw, tmp_path)
    before = np.asarray(read_index(root, action_key="expert_actions").actions[:])
    build_index(root)
    np.testing.assert_array_equal(read_index(root, action_key="expert_actions").actions[:], before)
    command = ["--source-split-dir", str(raw), "--output-dir", str(tmp_path / "packed")]
    assert repack.main(command) == 0
    frame = CalvinSplit(tmp_path / "packed").frame(3, ["expert_actions"])
    np.testing.assert_array_equal(frame["expert_actions"], wanted(3))
    assert (processed(tmp_path / "packed", tmp_path / "from_packed") / "dataset_info.json").is_file()
    again = read_index(tmp_path / "from_packed" / "processed", action_key="expert_actions").actions[:]
    np.testing.assert_array_equal(again, before)


def test_statistics_and_checks_are_those_of_the_chosen_actions(raw: Path, tmp_path: Path) -> None:
    root = processed(raw, tmp_path)
    index = read_index(root, action_key="expert_actions")
    contract = read_contract(root).labelled("expert_actions")
    scale = action_scale(contract, "min_max", root, "expert_actions")
    assert scale == Statistics.of(index.actions[:]).scale("min_max")
    assert scale != action_scale(read_contract(root), "min_max", root)
    assert not [f for f in check_processed(index, contract).findings if f.kind in ("statistics", "other recording")]


def test_offline_evaluation_reads_both(raw: Path, tmp_path: Path) -> None:
    split = ProcessedSplit(processed(raw, tmp_path))
    assert split.action_keys == ("rel_actions", "expert_actions")
    np.testing.assert_array_equal(split.frame(2, ["expert_actions"])["expert_actions"], wanted(2).astype("f4"))


def test_data_without_them_are_refused_in_one_line(tmp_path: Path) -> None:
    root = processed_split(tmp_path / "plain", [3])
    with pytest.raises(
        ValueError, match=r"dataset\.action_key=expert_actions: .*no 'expert_action'; .*rel_actions"
    ) as e:
        DataProvider(root, act_step=2, resolution=16, num_view=1, action_key="expert_actions")
    assert "\n" not in str(e.value)
    assert ProcessedSplit(root).action_keys == ("rel_actions",)


def test_all_frames_have_one_of_the_right_size_or_none(tmp_path: Path) -> None:
    root = processed_split(tmp_path / "some", [3])

    def give(size: int, frames: slice) -> None:
        def change(episodes: list) -> None:
            for frame in episodes[0]["frames"]:
                frame.pop("expert_action", None)
            for frame in episodes[0]["frames"][frames]:
                frame["expert_action"] = [0.5] * size

        edit_index(root, change)

    give(7, slice(0, 2))
    with pytest.raises(ValueError, match=r"frame 2 needs a 'expert_action' of 7 numbers"):
        read_index(root)
    give(6, slice(None))
    assert read_index(root).expert_actions is not None
    with pytest.raises(ValueError, match=r"'expert_action' has 6 numbers, 'rel_action' 7"):
        read_index(root, action_key="expert_actions")


def test_a_frame_with_an_impossible_expert_action_is_named(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_frame(raw / "episode_0000007.npz", 7, expert_actions=wanted(7) + 3)
    command = ["--source-split-dir", str(raw), "--output-dir", str(tmp_path / "out")]
    assert process_calvin.main(command) == 2
    assert "episode_0000007.npz: expert_actions" in capsys.readouterr().err


def test_a_contract_may_declare_that_only_they_are_labels(raw: Path, tmp_path: Path) -> None:
    root = processed(raw, tmp_path)
    write_contract(root, {}, action_key="expert_actions")
    assert read_contract(root).action_key == "expert_actions"
    with pytest.raises(ValueError, match=r"only expert_actions are labels .*; set dataset\.action_key=expert_actions"):
        read_contract(root).labelled("rel_actions")
    (root / "dataset_contract.json").write_text('{"format": 1, "action_key": "actions"}')
    with pytest.raises(ValueError, match="action_key must be one of rel_actions, expert_actions, found 'actions'"):
        read_contract(root)


def test_a_split_in_which_some_frames_have_them_is_not_packed(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for without, message in ((0, "episode_0000001.npz has expert_actions, and the first"), (7, "lacks 'expert_act")):
        for number in range(12):
            more = {} if number == without else {"expert_actions": wanted(number)}
            write_frame(raw / f"episode_{number:07d}.npz", number, **more)
        command = ["--source-split-dir", str(raw), "--output-dir", str(tmp_path / f"packed{without}")]
        assert repack.main([*command, "--processes", "1"]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("built", [False, True])
def test_a_chunk_of_an_expert_is_the_label_of_its_frame(tmp_path: Path, built: bool) -> None:
    root = processed_split(tmp_path / "chunks", [3])

    def give(size: int) -> None:
        def change(episodes: list) -> None:
            for number, frame in enumerate(episodes[0]["frames"]):
                frame["expert_chunk"] = [0.5 + number / 8 - at / 64 for at in range(size)]

        edit_index(root, change)

    give(28)
    if built:
        build_index(root)
    sample = DataProvider(root, act_step=3, resolution=16, num_view=1)[2]  # the last frame of the episode
    expected = 0.75 - np.arange(21).reshape(3, 7) / 64
    np.testing.assert_array_equal(sample.actions.numpy(), expected.astype("f4"))
    assert not sample.action_is_pad.any()
    with pytest.raises(ValueError, match=r"act_step is 5, but .* holds chunks of 4 actions"):
        DataProvider(root, act_step=5, resolution=16, num_view=1)
    give(27)
    with pytest.raises(ValueError, match="'expert_chunk' has 27 numbers, which are no whole actions of 7"):
        DataProvider(root, act_step=3, resolution=16, num_view=1)

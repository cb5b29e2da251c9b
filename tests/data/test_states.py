"""The robot's state from raw frames through processed splits and caches to batches, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from preprocess_data import process_calvin, repack
from tests.data.builders import edit_index, frame_arrays, processed_split, raw_split, write_frame
from training.data import episode_index
from training.data.batch import collate_robot
from training.data.checks.split import check_processed
from training.data.dataset_spec import CONTRACT_NAME, read_contract, state_convention
from training.data.episode_index import BINARY_NAME, build_index, read_index
from training.future_view_prediction_w_action_dataset import DataProvider

WINDOWS = [(10, 14), (20, 25)]
FRAMES = [*range(10, 15), *range(20, 26)]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return raw_split(tmp_path / "task" / "training", FRAMES, WINDOWS)


def process(source: Path, output: Path, *more: str) -> int:
    return process_calvin.main(["--source-split-dir", str(source), "--output-dir", str(output), *more])


def give_states(root: Path, size: int = 15) -> Path:
    """Add a state to every frame, its own in each number."""

    def add(episodes: list[dict[str, Any]]) -> None:
        number = 0
        for episode in episodes:
            for frame in episode["frames"]:
                frame["state"] = [number + 0.25 * place for place in range(size)]
                number += 1

    edit_index(root, add)
    return root


def recorded(frames: list[int] = FRAMES) -> np.ndarray:
    return np.stack([frame_arrays(frame)["robot_obs"] for frame in frames]).astype(np.float32)


# --- processed splits ------------------------------------------------------------------------------------------------
def test_a_processed_split_has_the_states_of_its_frames_and_declares_them(raw: Path, tmp_path: Path) -> None:
    assert process(raw, tmp_path / "out") == 0
    index = read_index(tmp_path / "out")
    np.testing.assert_array_equal(index.states, recorded())
    contract = read_contract(tmp_path / "out")
    assert contract.state == {
        "dim": 15,
        "groups": {"position": [0, 1, 2], "rotation": [3, 4, 5], "gripper": [14]},
        "rotation": "euler_xyz",
    }
    convention = state_convention(contract, tmp_path / "out")
    np.testing.assert_allclose(convention.mean, recorded()[:, :3].mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(convention.std, recorded()[:, :3].std(axis=0), rtol=1e-5)


def test_a_packed_split_gives_the_same_states(raw: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    assert repack.main(["--source-split-dir", str(raw), "--output-dir", str(packed)]) == 0
    assert process(packed, tmp_path / "of_packed") == 0
    assert process(raw, tmp_path / "of_files") == 0
    ours, theirs = read_index(tmp_path / "of_packed"), read_index(tmp_path / "of_files")
    np.testing.assert_array_equal(ours.states, theirs.states)
    texts = [(tmp_path / name / CONTRACT_NAME).read_text() for name in ("of_packed", "of_files")]
    assert texts[0] == texts[1]


def test_frames_without_a_state_make_a_split_without_one(tmp_path: Path) -> None:
    raw = raw_split(tmp_path / "task" / "training", FRAMES, WINDOWS, without=["robot_obs"])
    assert process(raw, tmp_path / "out") == 0
    assert read_index(tmp_path / "out").states is None
    assert "state" not in (tmp_path / "out" / CONTRACT_NAME).read_text()
    assert "state" not in (tmp_path / "out" / "dataset_info.json").read_text()


@pytest.mark.parametrize(
    ("robot_obs", "words"),
    [
        (None, " has no robot_obs, and other frames have one"),
        (np.full(15, np.nan), ": robot_obs holds a number that is not finite"),
    ],
)
def test_one_frame_without_a_state_is_named(
    raw: Path, tmp_path: Path, robot_obs: Any, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = raw / "episode_0000012.npz"
    if robot_obs is None:
        write_frame(bad, 12, without=["robot_obs"])
    else:
        write_frame(bad, 12, robot_obs=robot_obs)
    assert process(raw, tmp_path / "out") == 2
    assert f"{bad}{words}" in capsys.readouterr().err
    assert process(raw, tmp_path / "out", "--skip-bad") == 0
    np.testing.assert_array_equal(read_index(tmp_path / "out").states, recorded(FRAMES[5:]))


# --- index -----------------------------------------------------------------------------------------------------------
def test_states_are_a_column_of_the_index(tmp_path: Path) -> None:
    root = give_states(processed_split(tmp_path / "split", [3, 4]), size=8)
    expected = np.arange(7)[:, None] + 0.25 * np.arange(8)[None]
    for index in (read_index(root), read_index(root) if build_index(root) else None):
        assert index is not None
        assert index.states is not None
        np.testing.assert_array_equal(index.states, expected)
        np.testing.assert_array_equal(index.states[2:4], expected[2:4])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda frames: frames[1].pop("state"), r"episode 1, frame 1 needs a 'state' of 8 numbers"),
        (lambda frames: frames[0]["state"].pop(), r"episode 1, frame 0: state must be 8 numbers"),
        (
            lambda frames: frames[2].update(state=[float("nan")] * 8),
            r"episode 1, frame 2: state holds a number that is",
        ),
        (lambda frames: frames[2].update(state="far"), r"episode 1, frame 2: state must be 8 numbers, is 'far'"),
    ],
)
def test_a_wrong_state_is_named(tmp_path: Path, change: Any, words: str) -> None:
    root = give_states(processed_split(tmp_path / "split", [3, 4]), size=8)
    edit_index(root, lambda episodes: change(episodes[1]["frames"]) and None)
    with pytest.raises(ValueError, match=words):
        read_index(root)


def test_a_state_in_some_frames_only_is_an_error(tmp_path: Path) -> None:
    root = processed_split(tmp_path / "split", [3, 4])
    edit_index(root, lambda episodes: episodes[1]["frames"][2].update(state=[0.0] * 8))
    with pytest.raises(ValueError, match=r"episode 1 must have 'state' in no frame, as the first frame of the split"):
        read_index(root)


def test_an_index_of_an_older_version_is_made_again_only_if_the_frames_have_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare, seen = processed_split(tmp_path / "bare", [3, 4]), give_states(processed_split(tmp_path / "seen", [3, 4]))
    with monkeypatch.context() as older:
        older.setattr(episode_index, "OPTIONAL", {})
        older.setattr(episode_index, "optional_columns", lambda record: {})
        for root in (bare, seen):
            build_index(root)
    assert read_index(bare).file.path.name == BINARY_NAME
    assert read_index(bare).states is None
    assert read_index(seen).states is not None


# --- samples ---------------------------------------------------------------------------------------------------------
class Codes:
    """In place of a token cache: each frame's number is its code."""

    def codes(self, frames: np.ndarray, views: int) -> np.ndarray:
        return np.repeat(np.asarray(frames, np.int16)[:, None, None], views, axis=1)


def test_a_sample_has_its_frames_state_with_or_without_a_token_cache(tmp_path: Path) -> None:
    root = give_states(processed_split(tmp_path / "split", [3, 4]))
    pixels = DataProvider(root, act_step=2, resolution=16, num_view=1)
    coded = DataProvider(root, act_step=2, resolution=16, num_view=1, tokens=Codes())  # type: ignore[arg-type]
    order = [5, 0, 3, 3]
    expected = torch.tensor(order)[:, None] + 0.25 * torch.arange(15.0)[None]
    single, whole = collate_robot([pixels[index] for index in order]), coded.batch(order)
    for batch in (single, collate_robot([coded[index] for index in order]), whole):
        assert batch.states is not None
        assert batch.states.dtype == torch.float32
        assert torch.equal(batch.states, expected)


def test_samples_of_data_without_states_have_none(tmp_path: Path) -> None:
    root = processed_split(tmp_path / "split", [3, 4])
    pixels = DataProvider(root, act_step=2, resolution=16, num_view=1)
    coded = DataProvider(root, act_step=2, resolution=16, num_view=1, tokens=Codes())  # type: ignore[arg-type]
    assert pixels[2].state is None
    assert collate_robot([pixels[0], pixels[1]]).states is None
    assert coded.batch([0, 1]).states is None


# --- contract --------------------------------------------------------------------------------------------------------
def declare(root: Path, state: Any) -> Path:
    (root / CONTRACT_NAME).write_text(json.dumps({"format": 1, "state": state}))
    return root


def test_fifteen_undeclared_numbers_are_calvins_and_their_statistics_are_computed(tmp_path: Path) -> None:
    root = give_states(processed_split(tmp_path / "split", [3, 4]))
    convention = state_convention(read_contract(root), root)
    assert (convention.position, convention.rotation, convention.gripper) == ((0, 1, 2), (3, 4, 5), (14,))
    assert convention.mean == (3.0, 3.25, 3.5)
    assert convention.std == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ([1], r"state must have dim and groups, and may have rotation and statistics"),
        ({"dim": 15}, r"state must have dim and groups"),
        ({"dim": 15, "groups": {"position": [15]}}, r"state\.groups must hold different indices from 0 to 14"),
        ({"dim": 15, "groups": {"fingers": [1]}}, r"unknown state\.groups\.fingers"),
        ({"dim": 0, "groups": {}}, r"state\.dim must be an integer of at least 1"),
        ({"dim": 15, "groups": {}, "rotation": 3}, r"state\.rotation must be a text, found 3"),
        ({"dim": 15, "groups": {}, "statistics": {}}, r"state\.statistics must have frames, min"),
    ],
)
def test_a_wrong_declaration_is_one_line(tmp_path: Path, state: Any, words: str) -> None:
    root = declare(give_states(processed_split(tmp_path / "split", [2])), state)
    with pytest.raises(ValueError, match=words):
        read_contract(root)


def test_states_that_are_missing_undeclared_or_of_another_size_are_refused(tmp_path: Path) -> None:
    root = processed_split(tmp_path / "split", [2])
    with pytest.raises(ValueError, match=r"have no 'state'; convert the data again .* or set model\.vla\.propr"):
        state_convention(read_contract(root), root)
    give_states(root, size=8)
    with pytest.raises(ValueError, match=r"does not declare the 8 numbers of a state"):
        state_convention(read_contract(root), root)
    declare(root, {"dim": 9, "groups": {"position": [0]}})
    with pytest.raises(ValueError, match=r"state\.dim is 9, but the states of dataset_info\.json have 8 numbers"):
        state_convention(read_contract(root), root)
    declare(root, {"dim": 8, "groups": {"position": [0]}})
    assert state_convention(read_contract(root), root).features == 1


def test_statistics_of_other_states_are_found(raw: Path, tmp_path: Path) -> None:
    root = tmp_path / "out"
    process(raw, root)
    contract = read_contract(root)
    assert not check_processed(read_index(root), contract).findings
    edit_index(root, lambda episodes: episodes[0]["frames"][1]["state"].__setitem__(2, 0.5))
    (finding,) = check_processed(read_index(root), contract).findings
    assert finding.gross
    assert "state.statistics are those of other states (11 frames)" in finding.what
    assert not check_processed(read_index(root), contract, states=False).findings
    assert process_calvin.main(["--verify", str(root)]) == 1

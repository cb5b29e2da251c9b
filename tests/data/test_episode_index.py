"""The index of a processed split: arithmetic, paths, and every way in which the file can be wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.builders import edit_index, processed_split
from training.data.action_chunks import action_chunk
from training.data.episode_index import Episode, Frame, read_index, write_index
from training.data.formats.strings import Strings


@given(length=st.integers(1, 30), act_step=st.integers(1, 12), data=st.data())
def test_a_chunk_holds_the_actions_up_to_the_future_frame_and_then_stands_still(
    length: int, act_step: int, data: st.DataObject
) -> None:
    now = data.draw(st.integers(0, length - 1))
    episode = np.arange(1, length * 7 + 1, dtype=np.float32).reshape(length, 7)
    future, actions, is_pad = action_chunk(episode, now, act_step)
    assert future == min(now + act_step, length - 1)
    used = episode[now:future].tolist() if future > now else [episode[now].tolist()]
    still = [0.0] * 6 + [used[-1][6]]
    assert actions.tolist() == used + [still] * (act_step - len(used))
    assert is_pad.tolist() == [False] * len(used) + [True] * (act_step - len(used))
    assert actions.dtype == np.float32


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_every_frame_is_found_in_its_episode(tmp_path_factory: pytest.TempPathFactory, lengths: list[int]) -> None:
    root = tmp_path_factory.mktemp("split")
    number = iter(range(1000))
    episodes = [
        Episode(
            instruction=f"sentence {episode % 3}",
            task=None if episode % 2 else f"task {episode}",
            frames=[Frame(f"{n}.npz", [float(n)] * 7, [0.0] * 7) for n in (next(number) for _ in range(length))],
        )
        for episode, length in enumerate(lengths)
    ]
    (root / "0.npz").touch()
    (root / f"{sum(lengths) - 1}.npz").touch()
    assert write_index(root, episodes) == sum(lengths)
    index = read_index(root)
    assert (len(index), index.episodes) == (sum(lengths), len(lengths))
    frame = 0
    for episode, expected in enumerate(episodes):
        assert index.starts[episode] == frame
        assert index.instruction(episode) == expected.instruction
        assert index.task(episode) == expected.task
        for written in expected.frames:
            assert index.episode_of[frame] == episode
            assert index.frame_path(frame) == root / written.dir
            assert index.actions[frame].tolist() == list(written.rel_action)
            frame += 1
    assert len(index.texts) <= len(lengths) + 3  # sentences are kept once


@given(st.lists(st.text()))
def test_texts_come_back_from_the_table(texts: list[str]) -> None:
    table = Strings()
    for text in texts:
        table.append(text)
    assert [table[i] for i in range(len(table))] == texts
    with pytest.raises(IndexError):
        table[len(texts)]


def test_the_index_of_a_long_data_set_is_compact_and_reading_it_needs_no_more(tmp_path: Path) -> None:
    frame = {"dir": "../raw/episode_0000000.npz", "rel_action": [0.125] * 7, "abs_action": [0.5] * 7}
    with (tmp_path / "dataset_info.json").open("w") as file:
        episode = json.dumps({"instruction": "open the drawer", "frames": [frame] * 100})
        file.write("[" + ",".join([episode] * 200) + "]")
    (tmp_path / "raw").mkdir()
    root = tmp_path / "processed"
    root.mkdir()
    (tmp_path / "dataset_info.json").rename(root / "dataset_info.json")
    (tmp_path / "raw" / "episode_0000000.npz").touch()
    index = read_index(root)
    assert len(index) == 20_000
    arrays = index.starts.nbytes + index.episode_of.nbytes + index.actions.nbytes
    assert arrays / len(index) < 36
    assert len(index.texts) == 1


def test_what_was_written_is_what_float32_training_reads(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).uniform(-1, 1, 7)
    (tmp_path / "a.npz").touch()
    write_index(tmp_path, [Episode("x", None, [Frame("a.npz", numbers.tolist(), numbers.tolist())])])
    np.testing.assert_array_equal(read_index(tmp_path).actions[0], numbers.astype(np.float32))


def test_a_failing_writer_leaves_the_old_index(tmp_path: Path) -> None:
    (tmp_path / "a.npz").touch()
    write_index(tmp_path, [Episode("old", None, [Frame("a.npz", [0.0] * 7, [0.0] * 7)])])

    def interrupted() -> Any:
        yield Episode("new", None, [Frame("a.npz", [0.0] * 7, [0.0] * 7)])
        raise ValueError("damaged frame")

    with pytest.raises(ValueError, match="damaged frame"):
        write_index(tmp_path, interrupted())
    assert read_index(tmp_path).instruction(0) == "old"


def test_relative_paths_count_from_the_folder_or_its_parent_or_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = processed_split(tmp_path / "data" / "split", [2])
    assert read_index(root).base == root

    def prefix(with_: str) -> Callable[[Any], None]:
        def change(episodes: Any) -> None:
            for frame in episodes[0]["frames"]:
                frame["dir"] = with_ + Path(frame["dir"]).name

        return change

    edit_index(root, prefix("split/"))
    assert read_index(root).base == root.parent
    edit_index(root, prefix("data/split/"))
    with pytest.raises(FileNotFoundError, match=r"first frame that .*dataset_info\.json names"):
        read_index(root)
    monkeypatch.chdir(tmp_path)
    assert read_index(root).base == tmp_path
    edit_index(root, prefix(f"{root}/"))
    monkeypatch.chdir("/")
    assert read_index(root).frame_path(1) == root / "frame_1.npz"


def episode_change(**changes: Any) -> Callable[[Any], None]:
    return lambda episodes: episodes[1].update(changes)


def frame_change(**changes: Any) -> Callable[[Any], None]:
    return lambda episodes: episodes[1]["frames"][2].update(changes)


def without(key: str) -> Callable[[Any], None]:
    def change(episodes: Any) -> None:
        del episodes[1]["frames"][2][key]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda episodes: [{}], "episode 0 needs a text under 'instruction'"),
        (episode_change(instruction=3), "episode 1 needs a text under 'instruction', found 3"),
        (episode_change(frames=[]), "episode 1 needs a list of at least one frame"),
        (episode_change(frames={"a": 1}), "episode 1 needs a list"),
        (episode_change(frames=["a.npz"]), "episode 1, frame 0 needs a 'rel_action'"),
        (frame_change(rel_action=[1, 2, 3]), r"episode 1, frame 2: rel_action must be 7 numbers, is \[1, 2, 3\]"),
        (frame_change(rel_action="abc"), "episode 1, frame 2: rel_action must be 7 numbers"),
        (frame_change(rel_action=[None] * 7), "episode 1, frame 2: rel_action"),
        (frame_change(rel_action=[[1.0]] * 7), "episode 1, frame 2: rel_action must be 7 numbers"),
        (frame_change(rel_action=[math.nan] * 7), "episode 1, frame 2: rel_action holds a number that is not finite"),
        (frame_change(dir=7), "episode 1, frame 2 needs a text under 'dir', found 7"),
        (frame_change(gripper_dir="x.png"), "episode 1 must have gripper_dir in every frame"),
        (without("rel_action"), "episode 1, frame 2 needs a 'rel_action'"),
        (without("dir"), "episode 1, frame 2 needs a text under 'dir'"),
    ],
)
def test_a_wrong_index_is_refused_with_the_place_of_the_fault(
    tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    root = processed_split(tmp_path / "split", [2, 4])
    edit_index(root, change)
    with pytest.raises(ValueError, match=rf"dataset_info\.json: {message}"):
        read_index(root)


def test_an_empty_index_a_missing_one_and_missing_end_frames_are_refused(tmp_path: Path) -> None:
    root = processed_split(tmp_path / "split", [2, 4])
    (root / "frame_5.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"frame_5\.npz, the last frame"):
        read_index(root)
    (root / "dataset_info.json").write_text("[]")
    with pytest.raises(ValueError, match="lists no episode"):
        read_index(root)
    (root / "dataset_info.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"process_calvin\.py"):
        read_index(root)


@pytest.mark.parametrize("key", ["instruction", "task"])
def test_half_an_emoji_in_an_episode_is_one_sentence_with_file_and_episode(tmp_path: Path, key: str) -> None:
    processed_split(tmp_path / "split", [2, 3])
    edit_index(tmp_path / "split", lambda episodes: episodes[1].update({key: "push \ud83e it"}))
    with pytest.raises(ValueError, match=rf"dataset_info\.json: episode 1, '{key}'.*half of a surrogate pair"):
        read_index(tmp_path / "split")


def test_half_an_emoji_is_not_written(tmp_path: Path) -> None:
    frame = Frame("a.png", [0.0] * 7, [0.0] * 7)
    with pytest.raises(ValueError, match=r"episode 0, 'instruction'.*half of a surrogate pair"):
        write_index(tmp_path, [Episode("push \ud83e it", None, [frame])])
    assert not (tmp_path / "dataset_info.json").exists()

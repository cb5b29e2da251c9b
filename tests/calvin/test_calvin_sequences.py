"""Chains: the official generator at a small scale, its cache, and chains of our own."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from policy_rollout.calvin import sequences
from policy_rollout.calvin.initial_states import INITIAL_STATES, hash_input, initial_seed, initial_state
from policy_rollout.calvin.sequences import Chain, chains_from, desk_sequences, get_sequences, official_sequences
from policy_rollout.calvin.symbolic import CATEGORIES, feasible_tasks, thaw
from policy_rollout.calvin.tasks import TASK_NAMES
from tests.calvin.rules import apply_task


def drawn_one_by_one(seed, draws):
    """The slow original: every draw made by numpy's `choice` and judged by hand."""
    random = np.random.RandomState(seed)
    for _ in range(draws):
        yield tuple(TASK_NAMES[i] for i in random.choice(len(TASK_NAMES), size=5, replace=False))


def is_valid(state, tasks):
    if len({CATEGORIES[task] for task in tasks}) < len(tasks):
        return False
    for task in tasks:
        if task not in feasible_tasks(state, [task]):
            return False
        state = apply_task(state, task)
    return True


@pytest.mark.parametrize("seed", [0, 101])
def test_bulk_draws_are_the_draws_of_the_original(seed):
    swaps = sequences._swaps(np.random.RandomState(seed))[:, :1000]
    ours = np.stack([sequences._drawn(swaps, place) for place in range(5)], axis=1)
    assert [tuple(TASK_NAMES[i] for i in row) for row in ours] == list(drawn_one_by_one(seed, 1000))


def test_accepted_chains_are_the_first_valid_draws():
    seed = 160  # a state that finds four chains within 4000 draws
    state = thaw(INITIAL_STATES[seed])
    expected = [tasks for tasks in drawn_one_by_one(seed, 4000) if is_valid(state, tasks)]
    assert len(expected) == 4
    assert chains_from(seed, len(expected)) == expected


def test_the_192_initial_states_keep_the_door_sides_free_of_pairs():
    assert len(INITIAL_STATES) == len(set(INITIAL_STATES)) == 192
    assert INITIAL_STATES[0] == (0, 0, "right", "closed", "table", "table", "slider_right", 0)


def test_an_initial_state_is_seeded_by_the_printed_values():
    condition = thaw((1, 1, "left", "open", "slider_left", "table", "slider_right", 0))
    assert hash_input(condition) == "dict_values([1, 1, 'left', 'open', 'slider_left', 'table', 'slider_right', 0])"
    assert initial_seed(condition) == 2138410836
    shuffled = dict(sorted(condition.items()))
    np.testing.assert_array_equal(initial_state(shuffled)[1], initial_state(condition)[1])
    with pytest.raises(ValueError, match="red_block is 'drawer'"):
        initial_state({**condition, "red_block": "drawer"})


def test_more_than_the_official_thousand_is_refused():
    for n in (0, 1001):
        with pytest.raises(ValueError, match="1 to 1000"):
            official_sequences(n)


def test_the_cache_is_used_only_when_it_holds_exactly_the_official_chains(tmp_path, monkeypatch):
    chains = [Chain(thaw(INITIAL_STATES[i]), chains_from(i, 1)[0]) for i in (0, 5)]
    monkeypatch.setattr(sequences, "OFFICIAL_SHA256", sequences.sequences_sha256(chains))
    calls = []
    monkeypatch.setattr(sequences, "get_sequences", lambda n: calls.append(n) or chains)
    monkeypatch.setenv("BLOCKDIFF_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "cache" / "calvin_sequences_1000.json"

    assert official_sequences(2) == chains
    assert official_sequences(1) == chains[:1]
    assert calls == [1000]
    stored = json.loads(path.read_text())
    stored[1][1][0] = "dance"
    for broken in (json.dumps(stored), "[1, 2]", "{"):
        path.write_text(broken)
        assert official_sequences(2) == chains
    assert calls == [1000] * 4
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_cache_that_cannot_be_written_is_only_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sequences, "OFFICIAL_SHA256", sequences.sequences_sha256([]))
    monkeypatch.setattr(sequences, "get_sequences", lambda n: [])
    (tmp_path / "file").write_text("")
    assert official_sequences(1, cache_dir=tmp_path / "file") == []
    assert "cannot keep the official chains" in caplog.text


def test_a_changed_random_stream_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sequences, "get_sequences", lambda n: [])
    with pytest.raises(RuntimeError, match="not CALVIN's"):
        official_sequences(1, cache_dir=tmp_path)


def test_the_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("BLOCKDIFF_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert sequences.default_cache_dir() == tmp_path / "blockdiff-vla"


OFFERED = tuple(task for task in TASK_NAMES if "stack" not in task and not task.startswith("rotate"))


def test_desk_chains_are_valid_and_use_only_the_offered_tasks():
    chains = desk_sequences(200, OFFERED, seed=3)
    assert all(len(chain.tasks) == 5 and is_valid(chain.state, chain.tasks) for chain in chains)
    assert {task for chain in chains for task in chain.tasks} <= set(OFFERED)
    assert len({chain.tasks for chain in chains}) > 190


def test_desk_chains_are_reproducible_prefixes_that_a_seed_changes():
    chains = desk_sequences(50, OFFERED, seed=3)
    assert desk_sequences(20, reversed(OFFERED), seed=3) == chains[:20]
    assert desk_sequences(50, OFFERED, seed=4) != chains
    assert chains[0].tasks == (  # the same in every process and on every Python
        "push_pink_block_left", "lift_pink_block_table", "place_in_drawer", "turn_off_lightbulb",
        "lift_blue_block_slider",
    )  # fmt: skip


def test_desk_chains_start_everywhere_equally_often():
    starts = Counter(tuple(chain.state.values()) for chain in desk_sequences(384, seed=1))
    assert set(starts.values()) == {2}
    assert len(starts) == 192


def test_desk_chains_of_a_state_are_drawn_uniformly():
    tasks = ("open_drawer", "turn_on_led", "move_slider_left")
    chains = desk_sequences(9600, tasks, seed=0, length=2)
    of_one_state = Counter(
        c.tasks for c in chains if (c.state["led"], c.state["drawer"], c.state["slider"]) == (0, "closed", "right")
    )
    assert len(of_one_state) == 6
    assert min(of_one_state.values()) > 0.8 * max(of_one_state.values())


def test_desk_chains_that_cannot_exist_are_refused():
    with pytest.raises(ValueError, match="no chain of 5 tasks can be made of: open_drawer, close_drawer"):
        desk_sequences(1, ["open_drawer", "close_drawer"])
    with pytest.raises(ValueError, match="unknown task 'dance'"):
        desk_sequences(1, ["dance"])


def test_the_original_list_of_another_length_is_not_a_prefix(monkeypatch):
    monkeypatch.setattr(sequences, "INITIAL_STATES", INITIAL_STATES[:4])
    few, more = get_sequences(4), get_sequences(8)
    assert len(few) == 4
    assert few != more[:4]

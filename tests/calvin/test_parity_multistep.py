"""Chains, initial states and tasks against the original's own numbers and the real simulator's recording."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml

from policy_rollout.calvin.initial_states import INITIAL_STATES, hash_input, initial_seed, initial_state
from policy_rollout.calvin.oracle import TaskOracle
from policy_rollout.calvin.scene_state import symbolic_state
from policy_rollout.calvin.sequences import official_sequences, success_rates
from policy_rollout.calvin.symbolic import thaw
from policy_rollout.calvin.tasks import CALVIN_TASKS
from tests.calvin.info_world import BASE, BLOCK_UIDS, DRAWER, PLANK, ROBOT, TABLE, changed, new_info, standing_on
from tests.calvin.official_generator import chains_from, get_sequences, sequences_sha256
from tests.parity.where import parity_dir

pytestmark = pytest.mark.parity
VARIABLE = "BLOCKDIFF_CALVIN_DIR"


def calvin_dir():
    """Where the real simulator's recording and lists lie; skips the test where they do not."""
    path = Path(os.environ.get(VARIABLE) or Path(__file__).resolve().parents[3] / "shared" / "calvin").expanduser()
    if not path.is_dir():
        pytest.skip(f"no CALVIN data: set {VARIABLE} (looked for {path})")
    return path


@pytest.fixture(scope="module")
def multistep():
    return json.loads((parity_dir() / "multistep.json").read_text())


@pytest.fixture(scope="module")
def official():
    chains = json.loads((calvin_dir() / "eval_sequences_1000.json").read_text())
    return [(state, tuple(tasks)) for state, tasks in chains]


@pytest.fixture
def mini():
    return calvin_dir() / "mini_D_D"


def test_a_list_of_another_length_equals_the_originals(multistep):
    ours = get_sequences(multistep["small_num_sequences"])
    assert [[state, list(tasks)] for state, tasks in ours] == multistep["small"]


def test_the_official_list_holds_exactly_our_chains_of_some_states(official):
    for seed in range(0, 192, 24):
        state = thaw(INITIAL_STATES[seed])
        expected = [tasks for start, tasks in official if start == state]
        assert len(expected) in (5, 6)
        assert sorted(chains_from(seed, len(expected))) == sorted(expected)


def test_all_thousand_chains_equal_the_originals(multistep, official):
    ours = official_sequences()
    assert [tuple(chain) for chain in ours] == official
    assert sequences_sha256(ours) == multistep["sha256_all_1000"]
    first = multistep["offset"]
    listed = [[state, list(tasks)] for state, tasks in ours[first : first + len(multistep["sequences"])]]
    assert listed == multistep["sequences"]


@pytest.mark.slow
def test_the_generator_draws_the_thousand_chains(official):
    assert [tuple(chain) for chain in get_sequences()] == official


def test_the_official_files_agree_with_each_other(multistep, official):
    assert sequences_sha256(official) == multistep["sha256_all_1000"]


def test_initial_conditions_equal_the_originals(multistep):
    for row in multistep["initial_conditions"]:
        assert hash_input(row["state"]) == row["hash_input"]
        assert initial_seed(row["state"]) == row["seed"]
        robot_obs, scene_obs = initial_state(row["state"])
        np.testing.assert_array_equal(robot_obs, row["robot_obs"])
        np.testing.assert_array_equal(scene_obs, row["scene_obs"])


def test_all_192_initial_states_equal_the_real_ones():
    data = np.load(calvin_dir() / "initial_states_192.npz")
    rows = dict(zip(data["keys"].tolist(), data["scene_obs"], strict=True))
    assert len(rows) == len(INITIAL_STATES)
    for state in INITIAL_STATES:
        robot_obs, scene_obs = initial_state(thaw(state))
        np.testing.assert_array_equal(scene_obs, rows[hash_input(thaw(state))])
        np.testing.assert_array_equal(robot_obs, data["robot_obs"])


def test_success_rates_equal_the_originals_counts(multistep):
    example = multistep["count_success_example"]
    assert success_rates(example["results"]) == pytest.approx(example["expected"], abs=0)


@pytest.mark.parametrize("split", ["training", "validation"])
def test_the_task_table_is_the_real_simulators(mini, split):
    path = mini / split / ".hydra" / "merged_config.yaml"
    real = yaml.safe_load(path.read_text())["tasks"]["tasks"]
    plain = {task: [list(a) if isinstance(a, tuple) else a for a in row] for task, row in CALVIN_TASKS.items()}
    assert plain == real
    assert list(plain) == list(real)  # the order is part of it
    TaskOracle(real)


def info_from(episode):
    """An info dictionary rebuilt from a recorded frame: contacts follow from where the blocks are."""
    scene, robot = episode["scene_obs"], episode["robot_obs"]
    info = changed(new_info(), base__slide=scene[0], base__drawer=scene[1], lightbulb=scene[4], led=scene[5])
    state = symbolic_state(scene, robot)
    on = {"table": (TABLE, BASE), "drawer": (TABLE, DRAWER), "grasped": (ROBOT, 10)}
    on |= {"slider_left": (TABLE, PLANK), "slider_right": (TABLE, PLANK)}
    for i, (block, key) in enumerate(zip(BLOCK_UIDS, ("red_block", "blue_block", "pink_block"), strict=True)):
        info = standing_on(info, block, on[state[key]])
        info = changed(info, block, current_pos=tuple(scene[6 + 6 * i : 9 + 6 * i]))
    return info


@pytest.mark.parametrize("split", ["training", "validation"])
def test_recorded_language_windows_accomplish_their_task(mini, split):
    annotations = np.load(mini / split / "lang_annotations" / "auto_lang_ann.npy", allow_pickle=True).item()
    oracle = TaskOracle()
    windows = list(zip(annotations["language"]["task"], annotations["info"]["indx"], strict=True))
    assert windows
    for task, (first, last) in windows:
        start, end = (info_from(np.load(mini / split / f"episode_{i:07d}.npz")) for i in (first, last))
        assert oracle.tasks_done(start, end) == {task}
        assert oracle.tasks_done(start, start) == set()

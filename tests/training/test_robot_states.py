"""Data of several robots with their states: converted, trained with ``pose``, acted with in this process and served."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config.loading import ConfigError
from policy_rollout import policy_upvla
from policy_rollout.policies.interface import Observation, StateLayout, state_read_by
from policy_rollout.policies.upvla import UPVLAPolicy
from policy_rollout.robot.remote import RemotePolicy
from tests.data import test_lerobot, test_process_bridge
from tests.data.bridge_files import raw_trajectory
from tests.data.builders import raw_split
from tests.serving.served import serving
from tests.training.runs import Outcome
from training.data.episode_index import read_index

Start = Callable[..., Outcome]
DATA = "dataset__params__train_pre_shards_path_or_url"
ARM = StateLayout(7, (0, 1, 2), (3, 4, 5), (6,))
EIGHT = StateLayout(8, (0, 1, 2), (3, 4, 5), (7,))
CALVIN = StateLayout(15, (0, 1, 2), (3, 4, 5), (14,))


def bridge(folder: Path) -> Path:
    for number in range(2):
        raw_trajectory(folder / "raw" / f"traj{number}", number, 9)
    assert test_process_bridge.process(folder / "raw", folder / "data") == 0
    return folder / "data"


def lerobot(folder: Path) -> Path:
    groups = ("--state-groups", "position=0,1,2", "rotation=3,4,5", "gripper=7")
    assert test_lerobot.process(test_lerobot.v21(folder / "v21", (8, 7)), folder / "data", *groups) == 0
    return folder / "data"


def exported(folder: Path) -> Path:
    raw = raw_split(folder / "raw", range(20), [(0, 9), (5, 19)])
    assert test_lerobot.export(raw, folder / "lerobot", "--pictures", "png") == 0
    assert test_lerobot.process(folder / "lerobot", folder / "data") == 0
    return folder / "data"


def settings(data: Path, **more: Any) -> dict[str, Any]:
    return {
        DATA: data,
        "dataset__und_type": "null",
        "model__vla__proprioception": "pose",
        "training__max_train_steps": 2,
        **more,
    }


def policy_of(outcome: Outcome) -> UPVLAPolicy:
    return UPVLAPolicy.from_config(outcome.folder / "config.yaml", "cpu", outcome.folder)


def seen(state: Any, size: tuple[int, int]) -> Observation:
    return Observation(np.zeros((*size, 3), np.uint8), "open the drawer", robot_obs=state)


@pytest.mark.parametrize(("make", "layout"), [(bridge, ARM), (lerobot, EIGHT), (exported, CALVIN)])
def test_a_policy_of_each_format_acts_by_the_state_and_the_same_when_served(
    run: Start, tmp_path: Path, make: Callable[[Path], Path], layout: StateLayout
) -> None:
    data = make(tmp_path / "source")
    outcome = run(**settings(data, optimizer__params__learning_rate=0.05))
    policy = policy_of(outcome)
    assert state_read_by(policy) == layout
    states = read_index(data).states
    assert states is not None
    looks = [seen(np.array(states[row]), policy.spec.data.cameras["rgb_static"]) for row in (0, 5)]
    chunks = policy.act(looks)
    assert np.abs(chunks[0] - chunks[1]).max() > 1e-6, "another state, another action"
    with serving(policy) as served:
        remote = RemotePolicy(served.url())
        assert remote.state == layout
        for look, chunk in zip(looks, chunks, strict=True):
            np.testing.assert_allclose(remote.act([look])[0], chunk, atol=1e-6)
        with pytest.raises(ValueError, match="robot_obs is missing"):
            remote.act([seen(None, policy.spec.data.cameras["rgb_static"])])
        remote.close()
    with pytest.raises(ValueError, match=rf"robot_obs of {layout.dim} finite numbers"):
        policy.act([seen(np.zeros(layout.dim + 1), policy.spec.data.cameras["rgb_static"])])


def test_numbers_that_no_group_names_are_not_read(run: Start, tmp_path: Path) -> None:
    policy = policy_of(run(**settings(lerobot(tmp_path / "source"))))
    state, size = np.arange(8) / 8, policy.spec.data.cameras["rgb_static"]
    other = state.copy()
    other[6] = 99
    np.testing.assert_array_equal(policy.act([seen(state, size)]), policy.act([seen(other, size)]))


def test_states_that_are_missing_or_not_declared_are_refused_before_training(run: Start, tmp_path: Path) -> None:
    source = test_lerobot.v21(tmp_path / "v21")
    for name, option, words in (("none", "none", "'state'"), ("undeclared", "observation.state", "state.groups")):
        assert test_lerobot.process(source, tmp_path / name, "--state-key", option) == 0
        with pytest.raises((ValueError, ConfigError)) as caught:
            run(name, **settings(tmp_path / name))
        assert words in str(caught.value)
        assert "model.vla.proprioception" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_recording_is_replayed_with_its_state(run: Start, tmp_path: Path) -> None:
    outcome = run(**settings(exported(tmp_path / "source")))
    policy = policy_of(outcome)
    with serving(policy) as served:
        logs = []
        for name in ("first.jsonl", "second.jsonl"):
            command = ["--server", served.url(), "--steps", "3", "--synchronous", "--max-plan-age-ms", "60000"]
            recorded = ["--recorded", str(tmp_path / "source" / "raw"), "--output", str(tmp_path / name)]
            assert policy_upvla.main([*command, *recorded]) == 0
            logs.append([json.loads(line) for line in (tmp_path / name).read_text().splitlines()])
    assert len(logs[0]) == 3
    assert all("target" in line and "measured" in line for line in logs[0])

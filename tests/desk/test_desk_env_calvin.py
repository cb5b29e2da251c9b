"""The desk against the real simulator: its official initial states and a recording made with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy_rollout.desk import SCENES, DeskEnv

CALVIN = Path(os.environ.get("BLOCKDIFF_CALVIN_DIR", Path(__file__).resolve().parents[3] / "shared" / "calvin"))
pytestmark = pytest.mark.skipif(not CALVIN.is_dir(), reason=f"no real CALVIN files at {CALVIN} (BLOCKDIFF_CALVIN_DIR)")


@pytest.mark.parametrize("scene", SCENES)
def test_every_official_initial_state_rests_on_the_desk(scene: str):
    states = np.load(CALVIN / "initial_states_192.npz")
    env = DeskEnv(scene)
    for scene_obs in states["scene_obs"]:
        obs = env.reset(states["robot_obs"], scene_obs)
        np.testing.assert_allclose(obs["scene_obs"], scene_obs, atol=1e-12)
        np.testing.assert_allclose(obs["robot_obs"][:7], states["robot_obs"][:7], atol=1e-12)
        for block in env.get_info()["scene_info"]["movable_objects"].values():
            inside = block["current_pos"][1] > 0
            assert {(c[2], c[4]) for c in block["contacts"]} == {(5, 6 if inside else -1)}
        for _ in range(4):
            obs, *_ = env.step(np.array([0.0, 0, 0, 0, 0, 0, 1]))
        assert np.abs(obs["scene_obs"] - scene_obs).max() < 1e-3


def recording(split: Path, i: int) -> Any:
    return np.load(split / f"episode_{i:07d}.npz")


def replayed() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, float]]:
    """task -> (first state, last state in the recording, last state on the desk, largest distance of the hands)."""
    split = CALVIN / "mini_D_D" / "training"
    said = np.load(split / "lang_annotations" / "auto_lang_ann.npy", allow_pickle=True).item()
    env, out = DeskEnv("D"), {}
    for task, (first, last) in zip(said["language"]["task"], said["info"]["indx"], strict=True):
        start = recording(split, first)
        obs = env.reset(start["robot_obs"], start["scene_obs"])
        apart = 0.0
        for i in range(first, last):
            obs, *_ = env.step({"type": "cartesian_abs", "action": recording(split, i)["actions"]})
            apart = max(apart, float(np.abs(obs["robot_obs"][:3] - recording(split, i + 1)["robot_obs"][:3]).max()))
        out[task] = start["scene_obs"], recording(split, last)["scene_obs"], obs["scene_obs"], apart
    return out


def test_actions_recorded_in_the_real_simulator_do_the_same_things_here():
    runs = replayed()
    assert set(runs) >= {"close_drawer", "open_drawer", "move_slider_left", "lift_red_block_table", "turn_on_led"}
    for task, (start, real, here, apart) in runs.items():
        assert apart < 0.01, f"{task}: the hand follows the recorded one"
        for joint, threshold in ((0, 0.15), (1, 0.12)):
            if abs(real[joint] - start[joint]) > threshold:
                assert here[joint] - start[joint] == pytest.approx(real[joint] - start[joint], abs=0.03), task
        np.testing.assert_array_equal(here[4:6], real[4:6], err_msg=task)
        np.testing.assert_allclose(
            here[6:].reshape(3, 6)[:, :3], real[6:].reshape(3, 6)[:, :3], atol=0.015, err_msg=task
        )

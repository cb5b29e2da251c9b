"""Blocks in the cabinet, on one another, and in rough hands."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from policy_rollout.desk import BLOCKS, SCENES, DeskEnv
from policy_rollout.desk import layout as L

Vector = npt.NDArray[np.float64]


def state(slide: float, **blocks: tuple[float, float, float, float]) -> Vector:
    """A scene_obs with the drawer shut and the blocks that are not named out of the way: x, y, z, yaw."""
    out = np.zeros(24)
    out[0] = slide
    for i, name in enumerate(BLOCKS):
        x, y, z, yaw = blocks.get(name, (0.2 + 0.09 * i, -0.06, 0.46, 1.57))
        out[6 + 6 * i : 12 + 6 * i] = [x, y, z, 0, 0, yaw]
    return out


def go(env: DeskEnv, pos: Vector, yaw: float, grip: float, n: int = 20) -> dict[str, Any]:
    """Absolute commands in steps of at most 2 cm; the last info."""
    info = env.get_info()
    for _ in range(n):
        here = env.get_obs(False)["robot_obs"][:3]
        target = here + np.clip(pos - here, -0.02, 0.02)
        info = env.step({"type": "cartesian_abs", "action": np.array([*target, np.pi, 0, yaw, grip])})[3]
    return info


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("side", ["slider_left", "slider_right"])
def test_a_hand_that_comes_straight_down_gets_a_block_out_of_the_cabinet(scene: str, side: str) -> None:
    env = DeskEnv(scene)
    low, high = env.layout.compartments[side]
    name = max(BLOCKS, key=lambda block: env.layout.blocks[block][0])  # the big one
    for x in (low[0], high[0]):
        spot = np.array([x, (low[1] + high[1]) / 2, 0.457])
        slide = 0.28 if side == "slider_right" else 0.0
        env.reset(scene_obs=state(slide, **{name: (spot[0], spot[1], 0.461, 1.5)}))
        out = spot + np.array([0, -0.06, 0.12])
        go(env, spot + np.array([0, -0.12, 0.2]), 1.5, 1)
        for pos, grip, n in ((out, 1, 10), (spot, 1, 10), (spot, -1, 8), (out, -1, 12)):
            info = go(env, pos, 1.5, grip, n)
        block = info["scene_info"]["movable_objects"][name]
        assert block["current_pos"][2] > 0.54
        assert {c[2] for c in block["contacts"]} == {info["robot_info"]["uid"]}


@pytest.mark.parametrize("scene", SCENES)
def test_a_block_stays_on_the_block_it_was_put_on(scene: str) -> None:
    env = DeskEnv(scene)
    env.reset(scene_obs=state(0, block_red=(0.02, -0.1, 0.46, 1.5), block_blue=(0.15, -0.1, 0.46, 1.5)))
    blue, red = np.array([0.15, -0.1, 0.457]), np.array([0.02, -0.1, 0.457])
    lift, step_up = np.array([0, 0, 0.1]), np.array([0, 0, L.BLOCK_HEIGHT])
    go(env, blue + lift, 1.5, 1, 25)
    for pos, grip, n in ((blue, 1, 10), (blue, -1, 8), (blue + lift, -1, 10), (red + lift, -1, 15)):
        go(env, pos, 1.5, grip, n)
    for pos, grip, n in ((red + step_up, -1, 10), (red + step_up, 1, 8), (red + lift, 1, 30)):
        info = go(env, pos, 1.5, grip, n)
    objects = info["scene_info"]["movable_objects"]
    assert {c[2] for c in objects["block_blue"]["contacts"]} == {objects["block_red"]["uid"]}
    np.testing.assert_allclose(objects["block_blue"]["current_pos"], [0.02, -0.1, 0.50], atol=5e-3)
    assert np.abs(objects["block_blue"]["current_lin_vel"]).max() < 1e-3


@pytest.mark.parametrize("scene", SCENES)
def test_rough_actions_break_nothing(scene: str) -> None:
    env = DeskEnv(scene)
    rng = np.random.default_rng(4)
    obs = env.reset(seed=4)
    grip, goal, turn = 1.0, np.zeros(3), np.zeros(3)
    for i in range(400):
        if i % 10 == 0:
            goal, turn = rng.uniform((-0.35, -0.4, 0.36), (0.35, 0.12, 0.6)), rng.uniform(-0.6, 0.6, 3)
            grip = rng.choice([-1.0, 1.0])
        move = np.clip((goal - obs["robot_obs"][:3]) / 0.02, -1, 1)
        obs, *_ = env.step(np.array([*move, *turn, grip]))
        scene_obs = obs["scene_obs"]
        assert np.isfinite(scene_obs).all()
        for value, (low, high) in zip(
            scene_obs[:4], (L.SLIDE_RANGE, L.DRAWER_RANGE, L.BUTTON_RANGE, L.SWITCH_RANGE), strict=True
        ):
            assert low - 0.012 < value < high + 0.012
        assert scene_obs[[8, 14, 20]].min() > 0.01, "no block falls through the floor"

"""Random desk scenes as frames with their state: what the image tokenizer learns from, and what questions ask about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from policy_rollout.desk import SCENES, DeskEnv
from policy_rollout.desk.layout import WORKSPACE

DRAWER_RANGE_M, SLIDER_RANGE_M, SWITCH_ON_RAD = 0.22, 0.28, 0.088


@dataclass(frozen=True)
class Scene:
    """`scene_obs` (24,) and `robot_obs` (15,) as CALVIN's, and the frames of both cameras (uint8 HWC)."""

    scene_obs: np.ndarray
    robot_obs: np.ndarray
    static: np.ndarray
    gripper: np.ndarray


def random_scenes(count: int, seed: int, scenes: tuple[str, ...] = tuple(SCENES)) -> Iterator[Scene]:
    """`count` scenes: doors, lights, blocks and hand anywhere; the same ones for the same seed."""
    environments = {name: DeskEnv(scene=name) for name in dict.fromkeys(scenes)}
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        env = environments[scenes[index % len(scenes)]]
        obs = env.reset(seed=int(rng.integers(1 << 31)))
        scene, robot = np.array(obs["scene_obs"]), np.array(obs["robot_obs"])
        scene[0] = rng.choice([0.0, SLIDER_RANGE_M, rng.uniform(0, SLIDER_RANGE_M)])
        scene[1] = rng.choice([0.0, DRAWER_RANGE_M, rng.uniform(0, DRAWER_RANGE_M)])
        bulb, led = rng.integers(0, 2, size=2)
        scene[3:6] = SWITCH_ON_RAD * bulb, bulb, led
        low, high = (np.array(corner) for corner in WORKSPACE)
        robot[:3] = rng.uniform([low[0], low[1], 0.46], [high[0], -0.02, high[2]])
        robot[5] += rng.uniform(-1.5, 1.5)
        robot[6] = rng.choice([0.0, 0.04, 0.08])
        obs = env.reset(robot, scene, render=True)
        frames = obs["rgb_obs"]
        yield Scene(np.array(obs["scene_obs"]), np.array(obs["robot_obs"]), frames["rgb_static"], frames["rgb_gripper"])
    for env in environments.values():
        env.close()

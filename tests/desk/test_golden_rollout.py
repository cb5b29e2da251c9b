"""Fixed actions on the desk lead to fixed states, contacts and verdicts.

If this test fails because of an intended change to the desk: increase ``DESK_VERSION`` of
``policy_rollout/benchmarks/desk.py`` (records of different versions do not mix), run this file as a script and copy its
output into ``GOLDEN``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pprint import pprint
from typing import Any

import numpy as np
import pytest

from policy_rollout.benchmarks.desk import DESK_VERSION
from policy_rollout.calvin.initial_states import initial_state
from policy_rollout.calvin.instructions import HELD_OUT, TRAINING
from policy_rollout.calvin.oracle import VERSION, TaskOracle
from policy_rollout.desk import DeskEnv
from policy_rollout.desk import layout as L

STATE = {
    "led": 0, "lightbulb": 1, "slider": "right", "drawer": "closed", "grasped": 0,
    "red_block": "table", "blue_block": "slider_left", "pink_block": "table",
}  # fmt: skip
OPEN, CLOSED = 1.0, -1.0
TOLERANCE = 2e-3
"""Metres. Physics differ in the last digits between machines and MuJoCo builds."""

INSTRUCTIONS = "f81ecb47b1a2fbeb"
"""First digits of the SHA-256 of all instructions."""

GOLDEN: dict[str, list[dict[str, Any]]] = {
    "B": [
        {
            "stage": "button",
            "hand": [0.34, -0.12, 0.56, 0.0],
            "scene": [0.0, 0.0, -0.0, 0.088, 1.0, 1.0],
            "blocks": [[0.05, -0.12, 0.46], [-0.2409, 0.0924, 0.461], [0.23, -0.12, 0.46]],
            "contacts": {"block_red": [(5, -1)], "block_blue": [(5, 6)], "block_pink": [(5, -1)]},
            "done": ["turn_on_led"],
        },
        {
            "stage": "drawer",
            "hand": [0.17, -0.452, 0.56, 0.08],
            "scene": [0.0, 0.22, -0.0, 0.088, 1.0, 1.0],
            "blocks": [[0.05, -0.12, 0.46], [-0.2409, 0.0924, 0.461], [0.23, -0.12, 0.46]],
            "contacts": {"block_red": [(5, -1)], "block_blue": [(5, 6)], "block_pink": [(5, -1)]},
            "done": ["open_drawer", "turn_on_led"],
        },
        {
            "stage": "lift",
            "hand": [0.05, -0.12, 0.5798, 0.0397],
            "scene": [0.0, 0.22, -0.0, 0.088, 1.0, 1.0],
            "blocks": [[0.0502, -0.12, 0.5756], [-0.2409, 0.0924, 0.461], [0.23, -0.12, 0.46]],
            "contacts": {"block_red": [(0, 9), (0, 11)], "block_blue": [(5, 6)], "block_pink": [(5, -1)]},
            "done": ["lift_red_block_table", "open_drawer", "turn_on_led"],
        },
        {
            "stage": "random",
            "hand": [0.1392, -0.0655, 0.6073, 0.0396],
            "scene": [0.0, 0.22, -0.0, 0.088, 1.0, 1.0],
            "blocks": [[0.1393, -0.071, 0.6021], [-0.2409, 0.0924, 0.461], [0.23, -0.12, 0.46]],
            "contacts": {"block_red": [(0, 9), (0, 11)], "block_blue": [(5, 6)], "block_pink": [(5, -1)]},
            "done": ["lift_red_block_table", "open_drawer", "turn_on_led"],
        },
    ],
    "D": [
        {
            "stage": "button",
            "hand": [-0.12, -0.12, 0.56, 0.0],
            "scene": [0.0, 0.0, -0.0, 0.088, 1.0, 1.0],
            "blocks": [[0.05, -0.12, 0.46], [-0.2409, 0.0924, 0.461], [0.23, -0.12, 0.46]],
            "contacts": {"block_red": [(5, -1)], "block_blue": [(5, 6)], "block_pink": [(5, -1)]},
            "done": ["turn_on_led"],
        },
        {
            "stage": "drawer",
            "hand": [0.18, -0.452, 0.56, 0.08],
            "scene": [0.0, 0.22, -0.0, 0.088, 1.0, 1.0],
            "blocks": [[0.05, -0.12, 0.46], [-0.2409, 0.0924, 0.461], [0.23, -0.12, 0.46]],
            "contacts": {"block_red": [(5, -1)], "block_blue": [(5, 6)], "block_pink": [(5, -1)]},
            "done": ["open_drawer", "turn_on_led"],
        },
        {
            "stage": "lift",
            "hand": [0.05, -0.12, 0.5798, 0.0397],
            "scene": [0.0, 0.22, -0.0, 0.088, 1.0, 1.0],
            "blocks": [[0.0502, -0.12, 0.5755], [-0.2409, 0.0924, 0.461], [0.23, -0.12, 0.46]],
            "contacts": {"block_red": [(0, 9), (0, 11)], "block_blue": [(5, 6)], "block_pink": [(5, -1)]},
            "done": ["lift_red_block_table", "open_drawer", "turn_on_led"],
        },
        {
            "stage": "random",
            "hand": [0.1392, -0.0655, 0.6073, 0.0396],
            "scene": [0.0, 0.22, -0.0, 0.088, 1.0, 1.0],
            "blocks": [[0.1393, -0.0708, 0.6022], [-0.2409, 0.0924, 0.461], [0.23, -0.12, 0.46]],
            "contacts": {"block_red": [(0, 9), (0, 11)], "block_blue": [(5, 6)], "block_pink": [(5, -1)]},
            "done": ["lift_red_block_table", "open_drawer", "turn_on_led"],
        },
    ],
}


def actions(env: DeskEnv, red: np.ndarray) -> Iterator[tuple[str, Any]]:
    """Yield (stage, action): press the button, open the drawer, lift the red block, then random relative actions."""

    def go(stage: str, x: float, y: float, z: float, gripper: float, steps: int) -> Iterator[tuple[str, Any]]:
        pose = np.array([x, y, z, *L.HOME_EULER, gripper])
        for _ in range(steps):
            yield stage, {"type": "cartesian_abs", "action": pose}

    button, bar = env.layout.button, env.layout.drawer_handle_at(0.0)
    yield from go("button", button[0], button[1], 0.53, CLOSED, 30)
    yield from go("button", button[0], button[1], 0.46, CLOSED, 15)
    yield from go("button", button[0], button[1], 0.56, CLOSED, 15)
    yield from go("drawer", bar[0], bar[1] + 0.026, 0.56, CLOSED, 25)
    yield from go("drawer", bar[0], bar[1] + 0.026, bar[2] - 0.004, CLOSED, 25)
    yield from go("drawer", bar[0], bar[1] - 0.2, bar[2] - 0.004, CLOSED, 30)
    yield from go("drawer", bar[0], bar[1] - 0.2, 0.56, OPEN, 25)
    yield from go("lift", red[0], red[1], 0.56, OPEN, 40)
    yield from go("lift", red[0], red[1], red[2] + 0.003, OPEN, 20)
    yield from go("lift", red[0], red[1], red[2] + 0.003, CLOSED, 10)
    yield from go("lift", red[0], red[1], 0.58, CLOSED, 20)
    rng = np.random.default_rng(0)
    for _ in range(40):
        yield "random", np.append(rng.uniform(-1, 1, 6), CLOSED)


def rollout(scene: str) -> list[dict[str, Any]]:
    """Return what the desk is like at the end of every stage."""
    env, oracle = DeskEnv(scene), TaskOracle()
    obs = env.reset(*initial_state(STATE))
    start = env.get_info()
    found: dict[str, dict[str, Any]] = {}
    for stage, action in actions(env, obs["scene_obs"][6:9]):
        obs, _, _, info = env.step(action)
        blocks = info["scene_info"]["movable_objects"]
        found[stage] = {
            "stage": stage,
            "hand": obs["robot_obs"][[0, 1, 2, 6]].round(4).tolist(),
            "scene": obs["scene_obs"][:6].round(4).tolist(),
            "blocks": [obs["scene_obs"][i : i + 3].round(4).tolist() for i in (6, 12, 18)],
            "contacts": {name: sorted({(c[2], c[4]) for c in block["contacts"]}) for name, block in blocks.items()},
            "done": sorted(oracle.tasks_done(start, info)),
        }
    env.close()
    return list(found.values())


@pytest.mark.parametrize("scene", ["B", "D"])
def test_fixed_actions_lead_to_fixed_states_contacts_and_verdicts(scene: str) -> None:
    for found, expected in zip(rollout(scene), GOLDEN[scene], strict=True):
        stage = expected["stage"]
        for key in ("hand", "scene", "blocks"):
            np.testing.assert_allclose(found[key], expected[key], atol=TOLERANCE, err_msg=f"{stage}: {key}")
        assert (found["contacts"], found["done"]) == (expected["contacts"], expected["done"]), stage


def test_instructions_are_those_of_this_version() -> None:
    content = json.dumps([TRAINING, HELD_OUT], sort_keys=True).encode()
    assert hashlib.sha256(content).hexdigest()[:16] == INSTRUCTIONS


def test_the_golden_rollouts_are_of_this_version() -> None:
    assert (DESK_VERSION, VERSION) == (2, 2)


if __name__ == "__main__":
    pprint({scene: rollout(scene) for scene in ("B", "D")}, width=118, sort_dicts=False)

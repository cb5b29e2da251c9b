"""vla-eval's LIBERO and SimplerEnv, all but the simulators, run by its own orchestrator against the server."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy_rollout.policies.action_units import converted
from policy_rollout.policies.interface import ActionConvention, Observation, StateLayout
from policy_rollout.serving.benchmarks import BENCHMARKS, find_benchmark
from tests.serving.served import EchoPolicy, Served, T, serving
from tests.serving.simulators import INSTRUCTION, LIBERO, SIMPLER, STEPS, evaluate, stub_libero, stub_simpler

pytest.importorskip("vla_eval", reason="make venv-dev brings vla-eval")

TRAINED_ON_LIBERO = ActionConvention("relative_to_measured", "world", 0.05, 0.5, "axis_angle", rate_hz=10)
TRAINED_ON_BRIDGE = ActionConvention("relative_to_measured", "robot_base", 0.05, 0.25, "euler_xyz", rate_hz=5)
BOTH = ("rgb_static", "rgb_gripper")
STATE = StateLayout(8, (0, 1, 2, 6, 7), (3, 4, 5), angles="axis_angle")
ACTION = np.float32([0.5, -1.0, 0.25, 0.2, 0.4, -0.8, 0.9])
LIBERO_PARAMS = {"suite": "libero_spatial", "seed": 7, "num_steps_wait": 2}


class SteadyPolicy(EchoPolicy):
    """Returns one action always; remembers what it saw."""

    def __init__(self, convention: ActionConvention, action: Any = ACTION, **more: Any) -> None:
        super().__init__(convention=convention, **more)
        self.action = action
        self.image_rotation = 0
        self.state: StateLayout | None = None
        self.seen: list[Observation] = []

    def act(self, observations: Sequence[Observation]) -> np.ndarray:
        self.seen += observations
        return np.tile(self.action, (len(observations), T, 1))


def libero_policy(**changes: Any) -> SteadyPolicy:
    policy = SteadyPolicy(replace(TRAINED_ON_LIBERO, **changes), cameras=BOTH)
    policy.image_rotation, policy.state = 180, STATE
    return policy


def mismatches(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("Spec mismatch")]


def test_libero_executes_a_model_that_was_trained_on_its_data(monkeypatch, tmp_path, caplog):
    noted = stub_libero(monkeypatch, wait=2)
    caplog.set_level(logging.INFO)
    policy = libero_policy()
    with serving(policy) as served:
        result = evaluate(served.url("/vla-eval"), LIBERO, tmp_path, **LIBERO_PARAMS)
    assert result["mean_success"] == 1.0
    assert "Spec validation passed" in caplog.text
    assert not mismatches(caplog)
    assert (len(noted.actions), noted.settled) == (STEPS, 2)
    np.testing.assert_allclose(noted.actions[0], [*ACTION[:6], -1], rtol=1e-6)  # an open gripper is -1 in LIBERO
    seen = policy.seen[0]
    assert seen.instruction == INSTRUCTION
    for image in (seen.rgb_static, seen.rgb_gripper):
        assert (image[-1, -1, 0], image[1, 1, 0]) == (200, 10), "rotated by vla-eval, not again by the server"
    assert len(policy.seen) == -(-STEPS // T)


def test_the_state_of_libero_has_the_axis_angles_of_its_data_sets(monkeypatch, tmp_path):
    stub_libero(monkeypatch, wait=2)
    policy = libero_policy()
    with serving(policy) as served:
        evaluate(served.url("/vla-eval"), LIBERO, tmp_path, **LIBERO_PARAMS)
    state = policy.seen[0].robot_obs
    assert state.shape == (8,)
    np.testing.assert_allclose(state[[0, 1, 2, 6, 7]], [0.1, 0.2, 0.3, 0.04, -0.04])
    assert np.linalg.norm(state[3:6]) > np.pi, "robosuite keeps the sign of the quaternion"


def test_units_gripper_euler_angles_and_images_are_converted_for_libero(monkeypatch, tmp_path):
    noted = stub_libero(monkeypatch, wait=2)
    ours = replace(TRAINED_ON_LIBERO, position_m_per_unit=0.02, rotation="euler_xyz", gripper="0 open, 1 closed")
    policy = SteadyPolicy(ours)
    with serving(policy) as served:
        evaluate(served.url("/vla-eval"), LIBERO, tmp_path, **LIBERO_PARAMS)
    rotation = pytest.importorskip("scipy.spatial.transform").Rotation
    sent = noted.actions[0]
    np.testing.assert_allclose(sent[:3], ACTION[:3] * 0.4, rtol=1e-6)
    np.testing.assert_allclose(sent[3:6] * 0.5, rotation.from_euler("xyz", ACTION[3:6] * 0.5).as_rotvec(), rtol=1e-5)
    assert sent[6] == 1
    assert policy.seen[0].rgb_static[0, 0, 0] == 200, (
        "as the camera gives it, because the model learned from such images"
    )


def test_simplerenv_executes_a_model_of_bridge_data(monkeypatch, tmp_path, caplog):
    noted = stub_simpler(monkeypatch)
    policy = SteadyPolicy(TRAINED_ON_BRIDGE)
    with serving(policy) as served:
        result = evaluate(served.url("/vla-eval"), SIMPLER, tmp_path, task_name="widowx_stack_cube", seed=0)
    assert result["mean_success"] == 1.0
    rotation = pytest.importorskip("scipy.spatial.transform").Rotation
    assert len(noted.actions) == STEPS
    np.testing.assert_allclose(noted.actions[0][:3], ACTION[:3] * 0.05, rtol=1e-6)
    vector = rotation.from_euler("xyz", ACTION[3:6] * 0.25).as_rotvec()
    np.testing.assert_allclose(noted.actions[0][3:6], vector, rtol=1e-5)
    assert noted.actions[0][6] == 1, "open"
    assert policy.seen[0].rgb_static[0, 0, 0] == 200
    # Its class declares other conventions than its step() executes; the server declares what it sends.
    assert sorted(mismatches(caplog)) == [
        "Spec mismatch: action [gripper]: gripper: binary_close_negative vs binary_close_positive",
        "Spec mismatch: action [rotation]: rotation: axis_angle vs euler_xyz",
    ]


def test_a_closed_gripper_is_closed_in_both(monkeypatch, tmp_path):
    closed = np.float32([0, 0, 0, 0, 0, 0, -0.9])
    for benchmark, noted, ours, sent in (
        (LIBERO, stub_libero(monkeypatch, wait=2), TRAINED_ON_LIBERO, 1),
        (SIMPLER, stub_simpler(monkeypatch), TRAINED_ON_BRIDGE, -1),
    ):
        with serving(SteadyPolicy(ours, closed)) as served:
            evaluate(served.url("/vla-eval"), benchmark, tmp_path, **(LIBERO_PARAMS if benchmark == LIBERO else {}))
        assert {action[6] for action in noted.actions} == {sent}


def refused(served: Served, benchmark: str, output: Path) -> str:
    with pytest.raises(RuntimeError, match="Expected HELLO reply"):
        evaluate(served.url("/vla-eval"), benchmark, output)
    return served.lines[-1]


@pytest.mark.parametrize(
    ("benchmark", "convention", "words"),
    [
        (
            LIBERO,
            ActionConvention(),
            "LIBERO executes actions with kind relative_to_measured, this model's are relative",
        ),
        (LIBERO, TRAINED_ON_BRIDGE, "with frame world, this model's are robot_base"),
        (
            LIBERO,
            replace(TRAINED_ON_LIBERO, rotation="quaternion"),
            "axis_angle or euler_xyz, this model's are quaternion",
        ),
        (LIBERO, replace(TRAINED_ON_LIBERO, dim=8), "with groups {'position': [0, 1, 2]"),
        (SIMPLER, TRAINED_ON_LIBERO, "SimplerEnv executes actions with frame robot_base, this model's are world"),
        (SIMPLER, replace(TRAINED_ON_BRIDGE, kind="absolute"), "kind relative or relative_to_measured"),
    ],
)
def test_other_conventions_are_refused_with_both_sides(tmp_path, benchmark, convention, words):
    with serving(EchoPolicy(convention=convention)) as served:
        assert words in refused(served, benchmark, tmp_path)


def test_other_cameras_and_states_are_refused(tmp_path):
    with serving(EchoPolicy(BOTH, TRAINED_ON_BRIDGE)) as served:
        words = (
            "SimplerEnv has the cameras primary, this model reads 2 views (rgb_static, rgb_gripper); train with model"
        )
        assert words in refused(served, SIMPLER, tmp_path)
    for benchmark, policy in (
        (LIBERO, SteadyPolicy(TRAINED_ON_LIBERO)),
        (SIMPLER, SteadyPolicy(TRAINED_ON_BRIDGE)),
    ):
        policy.state = StateLayout(8, (0, 1, 2), (3, 4, 5), (6,))  # Euler angles
        with serving(policy) as served:
            assert "gives the state 8 numbers" in refused(served, benchmark, tmp_path)


def test_tasks_of_another_robot_are_refused(monkeypatch, tmp_path):
    noted = stub_simpler(monkeypatch)
    with serving(SteadyPolicy(TRAINED_ON_BRIDGE)) as served:
        result = evaluate(served.url("/vla-eval"), SIMPLER, tmp_path, task_name="google_robot_pick_coke_can")
    assert result["mean_success"] == 0.0
    assert not noted.actions


def test_the_table_agrees_with_the_specifications_of_vla_evals_classes(monkeypatch):
    stub_libero(monkeypatch, wait=0)
    from vla_eval.benchmarks.libero.benchmark import LIBEROBenchmark
    from vla_eval.benchmarks.simpler.benchmark import SimplerEnvBenchmark

    libero, simpler = find_benchmark(LIBERO), find_benchmark(SIMPLER)
    theirs = LIBEROBenchmark(send_wrist_image=True, send_state=True)
    assert {*libero.cameras.values(), "language", "state"} == set(theirs.get_observation_spec())
    assert theirs.get_observation_spec()["state"].format == libero.state_format
    assert theirs.get_action_spec()["rotation"].format == libero.action.rotation
    assert {*simpler.cameras.values(), "language"} == set(SimplerEnvBenchmark().get_observation_spec())


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda one: one.key)
def test_an_action_of_a_benchmarks_own_convention_is_sent_as_it_is(benchmark):
    action = np.float32([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1])
    np.testing.assert_array_equal(converted(action, benchmark.action, benchmark.action), action)

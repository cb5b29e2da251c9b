"""The robot's state on its way from clients and robots to a policy that reads it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from policy_rollout import policy_upvla
from policy_rollout.policies.interface import ROBOT_OBS, Observation, StateLayout
from policy_rollout.policy_upvla import ControlSettings, control
from policy_rollout.robot.interface import RobotObservation
from policy_rollout.robot.remote import RemotePolicy
from policy_rollout.robot.safety import SafetyLimits
from policy_rollout.serve import banner
from policy_rollout.serving import vla_eval
from policy_rollout.serving.request import parse_state
from policy_rollout.serving.server import Settings
from policy_rollout.serving.wire import Limits, WireError
from tests.serving.served import EchoPolicy, T, image, serving
from tests.serving.test_control import RATE, FakeClock, FakeRobot

ARM = StateLayout(7, (0, 1, 2), (3, 4, 5), (6,))
CALVIN = StateLayout(15, (0, 1, 2), (3, 4, 5), (14,))
STATE = np.arange(7) / 8


class StatePolicy(EchoPolicy):
    """Its actions are the position and the rotation in the state."""

    def __init__(self, state: StateLayout = ARM) -> None:
        super().__init__()
        self.state = state
        self.states: list[np.ndarray] = []

    def act(self, observations):
        chunks = super().act(observations)
        for chunk, observation in zip(chunks, observations, strict=True):
            self.states.append(self.state.check(observation.robot_obs, "robot_obs"))
            chunk[:, :6] = observation.robot_obs[[*self.state.position, *self.state.rotation]]
        return chunks


def seen(state: Any = STATE) -> Observation:
    return Observation(image(5), "open the drawer", robot_obs=state)


@pytest.mark.parametrize("layout", [ARM, CALVIN, StateLayout(3, (2, 0), angles="axis_angle")])
def test_a_layout_survives_its_json(layout):
    assert StateLayout.from_json(layout.to_json()) == layout
    assert (layout == ROBOT_OBS) == (layout is CALVIN)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "field is missing: this model reads the robot's state, 7 numbers"),
        (np.zeros(8), "7 numbers, got float64 [8]"),
        (np.zeros((1, 7)), "7 numbers, got float64 [1, 7]"),
        (np.zeros(7, bool), "got bool"),
        (np.array([0.0] * 6 + [np.nan]), "field has a number that is not finite"),
        (np.array([0.0] * 6 + [1e300]), "not finite"),
        ([0.0] * 6, "7 numbers, got float64 [6]"),
        ([0.0] * 6 + ["1"], "a list of other values"),
        ([0.0] * 6 + [True], "a list of other values"),
        ("state", "7 numbers, got str"),
        ({"a": 1}, "7 numbers, got dict"),
    ],
)
def test_a_state_that_cannot_be_read_is_refused_with_the_fields_name(value, words):
    with pytest.raises(WireError) as caught:
        parse_state(value, ARM, "field")
    assert words in str(caught.value)


def test_lists_and_arrays_of_any_number_type_are_states():
    for state in ([0, 1, 2.5, 3, 4, 5, 6], np.arange(7, dtype=np.float32), np.arange(7, dtype=np.uint8)):
        np.testing.assert_array_equal(parse_state(state, ARM, "field"), np.asarray(state))


# --- openpi -----------------------------------------------------------------------------------------------------------


def test_a_served_policy_acts_as_in_process_for_the_same_state():
    policy = StatePolicy()
    with serving(policy) as served:
        remote = RemotePolicy(served.url())
        assert remote.state == ARM
        for state in (STATE, STATE.astype(np.float32), STATE + 0.1):
            np.testing.assert_array_equal(remote.act([seen(state)]), policy.act([seen(state)]))
        remote.close()
    assert [state.dtype for state in policy.states[:4]] == [np.float64] * 2 + [np.float32] * 2, "sent as they are"


def test_the_metadata_declare_the_state_only_if_it_is_read():
    clients = pytest.importorskip("openpi_client.websocket_client_policy", reason="make venv-dev brings openpi-client")
    for policy, expected in ((EchoPolicy(), None), (StatePolicy(), {"key": "observation/state", **ARM.to_json()})):
        with serving(policy) as served:
            metadata = clients.WebsocketClientPolicy(served.url("/openpi")).get_server_metadata()
        assert metadata.get("state") == expected


@pytest.mark.parametrize(
    ("sent", "words"),
    [({}, "observation/state is missing"), ({"observation/state": np.zeros(8)}, "7 numbers, got float64 [8]")],
)
def test_openpis_client_is_answered_what_is_wrong_and_others_are_served(sent, words):
    clients = pytest.importorskip("openpi_client.websocket_client_policy", reason="make venv-dev brings openpi-client")
    look = {"observation/image": image(5), "prompt": "open the drawer"}
    with serving(StatePolicy()) as served:
        wrong, right = (clients.WebsocketClientPolicy(served.url("/openpi")) for _ in range(2))
        with pytest.raises(RuntimeError) as caught:
            wrong.infer(look | sent)
        assert words in str(caught.value)
        assert right.infer(look | {"observation/state": STATE})["actions"].shape == (T, 7)
        assert right.infer(look | {"observation/state": STATE.tolist()})["actions"][0, 1] == np.float32(STATE[1])


def test_a_server_that_reads_another_state_after_a_restart_is_refused():
    with serving(StatePolicy()) as served:
        remote = RemotePolicy(served.url())
        remote.act([seen()])
    with serving(StatePolicy(CALVIN), port=served.port):
        with pytest.raises(ConnectionError):
            remote.act([seen()])
        with pytest.raises(ValueError, match=r"serves another model.*state"):
            remote.act([seen()])


def test_a_remote_policy_needs_the_state_of_the_robot():
    with serving(StatePolicy()) as served:
        remote = RemotePolicy(served.url())
        with pytest.raises(ValueError, match="robot_obs is missing"):
            remote.act([seen(None)])
        assert remote.act([seen()]).shape == (1, T, 7), "the connection is still open"
        remote.close()


# --- vla-eval ---------------------------------------------------------------------------------------------------------


def test_hello_asks_for_the_state_as_vla_evals_calvin_sends_it(monkeypatch):
    for name in ("PYOPENGL_PLATFORM", "EGL_PLATFORM"):
        monkeypatch.setenv(name, "unchanged")  # importing it would choose a renderer for every test after this one
    benchmark = pytest.importorskip("vla_eval.benchmarks.calvin.benchmark", reason="make venv-dev brings vla-eval")
    from vla_eval.connection import Connection
    from vla_eval.specs import DimSpec, check_specs

    async def hello(served: Any) -> Any:
        connection = Connection(served.url("/vla-eval"), timeout=10)
        await connection.connect(benchmark="calvin")
        await connection.close()
        return connection.server_info

    with serving(StatePolicy(CALVIN)) as served:
        info = asyncio.run(asyncio.wait_for(hello(served), 30))
    assert info["observation_params"] == {"send_wrist_image": False, "send_state": True}
    calvin = benchmark.CALVINBenchmark(send_state=True)
    specs = [
        {name: DimSpec.from_dict(spec) for name, spec in info[part].items()}
        for part in ("action_spec", "observation_spec")
    ]
    assert check_specs(specs[0], calvin.get_action_spec(), specs[1], calvin.get_observation_spec()) == []


def parsed(payload: dict[str, Any], layout: StateLayout) -> Any:
    look = {"images": {"rgb_static": image(1)}, "task_description": "push"}
    names = {"rgb_static": "rgb_static"}
    return vla_eval.parse_observation(look | payload, names, ("rgb_static",), Limits(), layout).state


def test_calvins_eight_numbers_are_robot_obs_without_the_joints():
    robot_obs = np.arange(15, dtype=np.float32)
    sent = np.concatenate([robot_obs[0:7], robot_obs[14:15]])  # as CALVINBenchmark.make_obs
    for states in (sent, sent.tolist()):
        found = parsed({"states": states}, CALVIN)
        read = [*CALVIN.position, *CALVIN.rotation, *CALVIN.gripper]
        np.testing.assert_array_equal(found[read], robot_obs[read])
        assert not found[7:14].any()
    np.testing.assert_array_equal(parsed({"state": robot_obs}, CALVIN), robot_obs)
    np.testing.assert_array_equal(parsed({"states": STATE}, ARM), STATE)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ({}, "states is missing"),
        ({"states": np.zeros(9)}, "15 numbers, got float64 [9]"),
        ({"state": np.zeros((2, 4))}, "state must be"),
        ({"states": np.full(8, np.inf)}, "states has a number that is not finite"),
        ({"states": 5}, "got int"),
    ],
)
def test_a_wrong_state_of_vla_eval_names_its_field(payload, words):
    with pytest.raises(WireError) as caught:
        parsed(payload, CALVIN)
    assert words in str(caught.value)


def test_a_session_of_vla_eval_continues_after_an_observation_without_state():
    connections = pytest.importorskip("vla_eval.connection", reason="make venv-dev brings vla-eval")
    look = {"images": {"rgb_static": image(1)}, "task_description": "push"}

    async def wrong_then_right(served: Any) -> Any:
        async with connections.Connection(served.url("/vla-eval"), timeout=10) as connection:
            with pytest.raises(RuntimeError, match="states is missing"):
                await connection.act(look)
            return (await connection.act(look | {"states": np.arange(8) / 8}))["actions"]

    with serving(StatePolicy(CALVIN)) as served:
        action = asyncio.run(asyncio.wait_for(wrong_then_right(served), 30))
    np.testing.assert_allclose(action[:6], np.arange(6) / 8 * np.repeat([0.02, 0.05], 3), rtol=1e-6)


def test_the_banner_names_the_state():
    chosen = Settings()
    assert "observation/state" not in banner(EchoPolicy(), "model", chosen, 8000, "cpu")
    assert "7 numbers (position [0, 1, 2]" in banner(StatePolicy(), "model", chosen, 8000, "cpu")


# --- robot ------------------------------------------------------------------------------------------------------------


class MeasuringRobot(FakeRobot):
    """A robot with a state; ``broken``: what it returns in place of it from that step on."""

    def __init__(self, clock: FakeClock, steps: int, state: Any = STATE) -> None:
        super().__init__(clock, steps)
        self.state = state
        self.broken: dict[int, Any] = {}

    def observe(self) -> RobotObservation | None:
        observation = super().observe()
        if observation is None:
            return None
        return replace(observation, state=self.broken.get(self.observations - 1, self.state))


def drive(robot: FakeRobot, policy: Any = None) -> Any:
    settings = ControlSettings("go", rate_hz=RATE, limits=SafetyLimits(max_plan_age_s=100), synchronous=True)
    return control(policy or StatePolicy(), robot, settings, clock=robot.clock)


def test_the_policy_reads_the_state_of_the_step_that_it_plans_for():
    policy = StatePolicy()
    robot = MeasuringRobot(FakeClock(), 2 * T)
    robot.broken = {step: STATE + step / 100 for step in range(2 * T)}
    report = drive(robot, policy)
    assert report.safe
    assert report.actions == 2 * T
    np.testing.assert_array_equal(policy.states, [STATE, STATE + T / 100])


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (None, "RobotObservation.state is missing: this model reads the robot's state, 7 numbers"),
        (np.zeros(15), "got float64 [15]"),
        (np.full(7, np.nan), "RobotObservation.state has a number that is not finite"),
    ],
)
def test_a_robot_without_the_state_is_stopped_before_it_moves(state, words):
    robot = MeasuringRobot(FakeClock(), 9, state)
    report = drive(robot)
    assert not report.safe
    assert words in report.outcome
    assert robot.commands == [None]


def test_a_state_that_breaks_later_stops_the_robot_at_once():
    robot = MeasuringRobot(FakeClock(), 9)
    robot.broken = {2: np.full(7, np.inf)}
    report = drive(robot)
    assert "not finite" in report.outcome
    assert [command is None for command in robot.commands] == [False, False, True]


def test_a_list_is_a_state_and_other_policies_need_none():
    assert drive(MeasuringRobot(FakeClock(), 3, STATE.tolist())).actions == 3
    assert drive(FakeRobot(FakeClock(), 3), EchoPolicy()).actions == 3


def test_a_recorded_split_has_the_state_and_images_have_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with serving(StatePolicy(CALVIN)) as served:
        command = ["--server", served.url(), "--steps", "3", "--synchronous", "--max-plan-age-ms", "5000"]
        assert policy_upvla.main(command) == 0
        first = np.load(Path(__file__).parents[2] / "dummy_data/calvin/validation" / _first_frame())["robot_obs"]
        np.testing.assert_array_equal(served.policy.states[0], first)
        Image.fromarray(image(7)).save(tmp_path / "a.png")
        code = policy_upvla.main([*command, "--recorded", str(tmp_path), "--instruction", "push"])
    assert code == 2
    assert f"{tmp_path}: state is missing: this model reads the robot's state, 15 numbers" in capsys.readouterr().err


def _first_frame() -> str:
    from training.data.calvin import CalvinSplit

    split = CalvinSplit(Path(__file__).parents[2] / "dummy_data" / "calvin" / "validation")
    return split.frame_path(split.annotations[0].start).name

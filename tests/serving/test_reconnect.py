"""A server that comes back is used again only with the contract of the first connection."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from websockets.sync.server import serve

import policy_rollout.policy_upvla as client
from policy_rollout.policies.interface import ActionConvention, Observation
from policy_rollout.robot.interface import RobotObservation
from policy_rollout.robot.remote import RemotePolicy
from policy_rollout.serving import openpi
from tests.serving.served import T, image, serving

CHANGED = {
    "position_m_per_unit 0.02 is now 0.2": {"convention": ActionConvention(position_m_per_unit=0.2)},
    "kind relative is now absolute": {"convention": ActionConvention(kind="absolute")},
    "gripper -1 closed, +1 open is now -1 open, +1 closed": {
        "convention": ActionConvention(gripper="-1 open, +1 closed")
    },
    "rate_hz 30 is now 5": {"convention": ActionConvention(rate_hz=5)},
    "cameras ('rgb_static',) is now ('rgb_static', 'rgb_gripper')": {"cameras": ("rgb_static", "rgb_gripper")},
    "act_step 4 is now 8": {"act_step": 8},
    "image_shapes {'rgb_static': (24, 24)} is now {'rgb_static': (48, 24)}": {"image_shapes": {"rgb_static": (48, 24)}},
}


@contextmanager
def declaring(port: int = 0, **changes: Any) -> Iterator[int]:
    """A server that declares a contract and plays chunks of ones; yields its port."""
    declared = {"convention": ActionConvention(), "cameras": ("rgb_static",), "act_step": T, "replan_every": T}
    declared |= {"image_shapes": {"rgb_static": (24, 24)}} | changes

    def talk(socket: Any) -> None:
        socket.send(openpi.metadata("server", "model", **declared))
        for _ in socket:
            socket.send(openpi.answer(np.ones((declared["act_step"], 7), np.float32), 1.0, None))

    server = serve(talk, "127.0.0.1", port)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.socket.getsockname()[1]
    finally:
        server.shutdown()
        thread.join(10)


@pytest.mark.parametrize("named", [*CHANGED, ""])
def test_a_server_that_comes_back_with_another_contract_is_not_driven_by(named):
    look = [Observation(image(1), "go", image(0))]
    with declaring() as port:
        policy = RemotePolicy(f"ws://127.0.0.1:{port}")
        policy.act(look)
    policy.close()
    with declaring(port, **CHANGED.get(named, {})):
        if not named:
            assert policy.act(look).shape == (1, T, 7), "the same contract goes on"
        for _ in range(2 if named else 0):  # a question that was refused opens no way for the next one
            with pytest.raises(ValueError, match=re.escape(f"since the first connection: {named}")):
                policy.act(look)
    assert policy.convention == ActionConvention()
    policy.close()


def test_a_robot_stops_when_the_server_comes_back_with_another_model():
    class Table:
        def __init__(self) -> None:
            self.calls: list[str] = []

        def observe(self):
            return RobotObservation(image(1), time.monotonic())

        def act(self, command):
            self.calls.append("act")

        def stop(self):
            self.calls.append("stop")

    robot = Table()
    with declaring() as port:
        policy = RemotePolicy(f"ws://127.0.0.1:{port}")
        driving = client.ControlSettings("go", rate_hz=100, steps=8, synchronous=True)
        assert client.control(policy, robot, driving).outcome == "all steps done"
    policy.close()
    robot.calls.clear()
    with declaring(port, convention=ActionConvention(position_m_per_unit=0.2)):
        report = client.control(policy, robot, driving)
    assert not report.safe
    assert "stopped, the policy refuses: " in report.outcome
    assert "position_m_per_unit 0.02 is now 0.2" in report.outcome
    assert "\n" not in report.outcome
    assert set(robot.calls) == {"stop"}


def test_a_served_model_declares_the_shapes_of_its_frames():
    with serving(image_shapes={"rgb_static": (24, 24)}) as served:
        contract = RemotePolicy(served.url()).contract
    assert (contract.image_shapes, contract.convention.dim) == ({"rgb_static": (24, 24)}, 7)

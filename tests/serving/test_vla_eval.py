"""The server as vla-eval's own client (PyPI `vla-eval`) sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator
from typing import Any

import msgpack
import numpy as np
import pytest

from policy_rollout.policies.interface import ActionConvention
from tests.serving.served import EchoPolicy, T, image, serving

pytest.importorskip("vla_eval", reason="make venv-dev brings vla-eval")

import websockets
from vla_eval.connection import Connection
from vla_eval.protocol import numpy_codec
from vla_eval.protocol.image_codec import encode_image
from vla_eval.protocol.messages import Message, MessageType, make_hello_payload, pack_message, unpack_message
from vla_eval.specs import DimSpec, check_specs
from websockets.sync.client import connect

CALVIN_ACTION_SPEC = {
    "position": DimSpec("position", 3, "delta_xyz"),
    "rotation": DimSpec("rotation", 3, "euler_xyz"),
    "gripper": DimSpec("gripper", 1, "binary_close_negative"),
}


@pytest.fixture(autouse=True)
def _png() -> Iterator[None]:
    yield
    numpy_codec.set_image_format("png")


def look(value: int = 5, task: str = "open the drawer", **more: Any) -> dict[str, Any]:
    return {"images": {"rgb_static": image(value)}, "task_description": task, **more}


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 30))


async def act(connection: Connection, *looks: dict[str, Any]) -> list[np.ndarray]:
    return [(await connection.act(one))["actions"] for one in looks]


def client(served: Any, path: str = "") -> Connection:
    return Connection(served.url(path), timeout=10, max_retries=3, backoff_base=0.05)


async def played(served: Any, *looks: dict[str, Any], path: str = "") -> list[np.ndarray]:
    async with client(served, path) as connection:
        await connection.start_episode({"task": {"name": "a"}})
        answers = await act(connection, *looks)
        await connection.end_episode({"metrics": {}})
        return answers


@pytest.mark.parametrize("path", ["", "/vla-eval"])
def test_hello_declares_version_needs_and_specs_that_vla_evals_calvin_accepts(path):
    async def hello(served):
        connection = client(served, path)
        await connection.connect(benchmark="calvin")
        await connection.close()
        return connection.server_info

    with serving(EchoPolicy(cameras=("rgb_static", "rgb_gripper"))) as served:
        info = run(hello(served))
    assert info["protocol_version"] == 1
    assert info["observation_params"] == {"send_wrist_image": True, "send_state": False}
    specs = {name: DimSpec.from_dict(spec) for name, spec in info["action_spec"].items()}
    seen = {name: DimSpec.from_dict(spec) for name, spec in info["observation_spec"].items()}
    assert check_specs(specs, CALVIN_ACTION_SPEC, seen, seen) == []


@pytest.mark.parametrize(
    ("payload", "convention", "words"),
    [
        ({"protocol_version": 2}, None, "version 2"),
        ({}, None, "version None"),
        ({"protocol_version": 1, "benchmark": "calvin"}, ActionConvention(kind="absolute"), "absolute"),
    ],
)
def test_a_hello_that_cannot_be_served_is_answered_with_an_error_and_the_end(payload, convention, words):
    with serving(EchoPolicy(convention=convention)) as served, connect(served.url("/vla-eval")) as ws:
        ws.send(pack_message(Message(MessageType.HELLO, payload, seq=7)))
        answer = unpack_message(ws.recv(5))
        assert answer.type == MessageType.ERROR
        assert answer.seq == 7
        assert words in answer.payload["error"]
        with pytest.raises(websockets.ConnectionClosed):
            ws.recv(5)


def test_the_answer_carries_the_number_of_its_question():
    with serving() as served, connect(served.url("/vla-eval")) as ws:
        for kind, payload, seq in (("hello", make_hello_payload(), 11), ("observation", look(), 907)):
            ws.send(pack_message(Message(MessageType(kind), payload, seq=seq)))
            assert unpack_message(ws.recv(5)).seq == seq


@pytest.mark.parametrize("codec", ["raw", "png", "jpeg"])
def test_images_arrive_in_all_three_codecs(codec):
    numpy_codec.set_image_format(codec)
    with serving() as served:
        (action,) = run(played(served, look(200)))
    assert action[0] == pytest.approx(0.2 * 0.02)


def test_a_raw_image_of_the_image_codec_arrives():
    with serving() as served:
        (action,) = run(played(served, look() | {"images": {"rgb_static": encode_image(image(9), "raw")}}))
    assert action[0] == pytest.approx(0.009 * 0.02)


def test_actions_leave_in_metres_and_radians_of_the_models_own_convention():
    convention = ActionConvention(position_m_per_unit=0.1, rotation_rad_per_unit=3.0)
    policy = EchoPolicy(convention=convention)
    policy.act = lambda observations: np.tile(np.float32([1, 2, 3, 4, 5, 6, 0.3]), (len(observations), T, 1))
    with serving(policy) as served:
        (action,) = run(played(served, look()))
    np.testing.assert_allclose(action, [0.1, 0.2, 0.3, 12, 15, 18, 1], rtol=1e-6)
    assert action.dtype == np.float32
    assert action.shape == (7,)


@pytest.mark.parametrize(
    ("words", "number", "sent"),
    [
        ("-1 closed, +1 open", 0.4, 1),
        ("-1 closed, +1 open", -0.4, -1),
        ("-1 closed, +1 open", 0.0, -1),
        ("+1 closed, -1 open", 0.4, -1),
        ("+1 closed, -1 open", -0.4, 1),
        ("0 open, 1 closed", 0.2, 1),
        ("0 closed, 1 open", 0.2, -1),
    ],
)
def test_the_gripper_opens_for_plus_one_whatever_the_model_was_trained_with(words, number, sent):
    with serving(EchoPolicy(convention=ActionConvention(gripper=words), gripper=number)) as served:
        (action,) = run(played(served, look()))
    assert action[6] == sent


def test_a_gripper_that_cannot_be_parsed_is_refused_at_start():
    from policy_rollout.serving.server import Server, Settings

    with pytest.raises(ValueError, match="suction"):
        Server(EchoPolicy(convention=ActionConvention(gripper="suction")), Settings())


def test_a_chunk_is_executed_before_the_next_observation():
    with serving() as served:
        actions = run(played(served, *(look(value) for value in range(10, 10 + T + 2))))
        assert served.policy.batches == [1, 1]
    assert [round(float(action[1]) / 0.02) for action in actions] == [0, 1, 2, 3, 0, 1]
    assert actions[-1][0] == pytest.approx((10 + T) / 1000 * 0.02), "the second plan is of the image it was made for"


@pytest.mark.parametrize(
    "second", [look(90, episode_restart=True), look(90, task="close the drawer")], ids=["restart", "other task"]
)
def test_a_restart_and_another_instruction_flush_the_chunk(second):
    with serving() as served:
        first, after = run(played(served, look(10), second))
    assert first[1] == 0
    assert after[1] == 0
    assert after[0] == pytest.approx(0.09 * 0.02)


def test_a_new_episode_flushes_the_chunk():
    async def twice(served):
        async with client(served) as connection:
            await connection.start_episode({"task": {"name": "a"}})
            (first,) = await act(connection, look(10))
            await connection.start_episode({"task": {"name": "b"}})
            return first, *(await act(connection, look(90)))

    with serving() as served:
        _, after = run(twice(served))
    assert after[1] == 0
    assert after[0] == pytest.approx(0.09 * 0.02)


def test_replanning_and_ensembling_are_the_servers_to_choose():
    looks = [look(value) for value in (100, 200, 300 % 256)]
    with serving(replan_every=1) as served:
        actions = run(played(served, *looks))
        assert served.policy.batches == [1, 1, 1]
    assert [round(float(action[1]) / 0.02, 3) for action in actions] == [0, 0, 0]
    with serving(replan_every=1, ensemble=0.0) as served:
        actions = run(played(served, *looks))
    assert float(actions[1][0]) / 0.02 == pytest.approx(0.15), "the mean of both plans"


def test_two_interleaved_sessions_never_share_a_chunk():
    async def both(served):
        async with client(served) as one, client(served) as other:
            seen = []
            for step in range(T + 1):
                a, b = (await act(one, look(10 + step)))[0], (await act(other, look(110 + step, "push")))[0]
                seen.append((a, b))
            return seen

    with serving() as served:
        seen = run(both(served))
    for step, (a, b) in enumerate(seen):
        start = 0 if step < T else T
        assert a[0] == pytest.approx((10 + start) / 1000 * 0.02)
        assert b[0] == pytest.approx((110 + start) / 1000 * 0.02)
        assert round(float(a[1]) / 0.02) == round(float(b[1]) / 0.02) == step % T


def test_clients_that_ask_together_are_answered_by_one_forward():
    async def crowd(served, count):
        connections = [client(served, "/vla-eval") for _ in range(count)]
        for connection in connections:
            await connection.connect()
        actions = await asyncio.gather(*(act(c, look(10 * n)) for n, c in enumerate(connections)))
        for connection in connections:
            await connection.close()
        return actions

    with serving(max_wait=0.5) as served:
        actions = run(crowd(served, 6))
        assert served.policy.batches == [6]
    for number, (action,) in enumerate(actions):
        assert action[0] == pytest.approx(number / 100 * 0.02)
    with serving(max_wait=0.5, max_batch=4) as served:
        run(crowd(served, 6))
        assert max(served.policy.batches) == 4


def test_a_client_alone_does_not_wait_for_others():
    with serving(max_wait=1.0, replan_every=1) as served:
        started = time.perf_counter()
        run(played(served, look(1), look(2), look(3), path="/vla-eval"))
        assert time.perf_counter() - started < 0.9


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ({"task_description": "a"}, "images"),
        ({"images": {}, "task_description": "a"}, "rgb_static is missing, sent: none"),
        ({"images": {"agentview": image(1)}, "task_description": "a"}, "sent: agentview"),
        ({"images": {"rgb_static": image(1)}}, "NoneType"),
        ({"images": {"rgb_static": image(1)}, "task_description": "a" * 5000}, "5000 characters"),
        ({"images": {"rgb_static": np.zeros((4, 4, 3))}, "task_description": "a"}, "float64"),
        ({"images": {"rgb_static": np.zeros((4, 4), np.uint8)}, "task_description": "a"}, "uint8 [4, 4]"),
        (look(task="refuse me"), "refused"),
        (look(task="nan"), "not finite"),
    ],
)
def test_an_error_answers_its_question_and_the_session_continues(payload, words):
    async def wrong_then_right(served):
        async with client(served) as connection:
            with pytest.raises(RuntimeError) as caught:
                await connection.act(payload)
            return str(caught.value), (await act(connection, look(50)))[0]

    with serving() as served:
        text, action = run(wrong_then_right(served))
    assert words in text
    assert action[0] == pytest.approx(0.05 * 0.02)


def test_one_refused_observation_of_a_batch_affects_no_other():
    async def together(served):
        async with client(served, "/vla-eval") as good, client(served, "/vla-eval") as bad:
            return await asyncio.gather(good.act(look(50)), bad.act(look(task="refuse me")), return_exceptions=True)

    with serving(max_wait=0.5) as served:
        fine, refused = run(together(served))
        assert served.policy.batches[0] == 2
    assert fine["actions"][0] == pytest.approx(0.05 * 0.02)
    assert "refused" in str(refused)


def test_a_policy_that_fails_is_reported_to_client_and_operator_and_the_server_lives():
    async def fails_then_not(served):
        async with client(served) as connection:
            served.policy.broken = RuntimeError("CUDA out of memory")
            with pytest.raises(RuntimeError, match="out of memory"):
                await connection.act(look())
            served.policy.broken = None
            return (await act(connection, look(50)))[0]

    with serving() as served:
        assert run(fails_then_not(served))[0] == pytest.approx(0.05 * 0.02)
        assert any("out of memory" in line for line in served.lines)


def test_cameras_may_have_the_clients_names():
    with serving(names={"rgb_static": "agentview", "rgb_gripper": "wrist"}) as served:
        (action,) = run(played(served, look() | {"images": {"agentview": image(30)}}))
    assert action[0] == pytest.approx(0.03 * 0.02)


def test_nothing_is_answered_before_hello():
    with serving() as served, connect(served.url("/vla-eval")) as ws:
        ws.send(pack_message(Message(MessageType.OBSERVATION, look(), seq=1)))
        assert "hello" in unpack_message(ws.recv(5)).payload["error"]


def test_a_client_whose_server_was_killed_continues_with_the_next_one():
    async def over_a_restart():
        with serving() as served:
            connection = client(served)
            await connection.connect()
            (first,) = await act(connection, look(10))
            await asyncio.to_thread(served.stop)
        with serving(port=served.port):
            (second,) = await act(connection, look(90))
            await connection.close()
        return first, second

    first, second = run(over_a_restart())
    assert first[1] == second[1] == 0
    assert second[0] == pytest.approx(0.09 * 0.02)


def test_stopping_waits_for_the_answer_in_the_making():
    async def stop_while_thinking(served):
        async with client(served) as connection:
            served.policy.seconds = 0.3
            asking = asyncio.ensure_future(connection.act(look(40)))
            await asyncio.sleep(0.1)
            await asyncio.to_thread(served.stop)
            return await asking

    with serving() as served:
        action = run(stop_while_thinking(served))["actions"]
    assert action[0] == pytest.approx(0.04 * 0.02)


def test_a_message_is_plain_msgpack_that_anyone_can_read():
    with serving() as served, connect(served.url("/vla-eval")) as ws:
        ws.send(pack_message(Message(MessageType.HELLO, make_hello_payload(), seq=0)))
        assert set(msgpack.unpackb(ws.recv(5))) == {"type", "payload", "seq", "timestamp"}

"""The server as openpi's own client (PyPI `openpi-client`) sees it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from policy_rollout.policies.interface import ActionConvention
from tests.serving.served import EchoPolicy, T, image, serving

pytest.importorskip("openpi_client", reason="make venv-dev brings openpi-client")

import websockets
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from vla_eval.protocol.messages import Message, MessageType, make_hello_payload, pack_message
from websockets.sync.client import connect


def look(value: int = 5, prompt: str = "open the drawer", **more: Any) -> dict[str, Any]:
    return {"observation/image": image(value), "observation/state": np.zeros(8), "prompt": prompt, **more}


@pytest.mark.parametrize("path", ["", "/openpi"])
def test_metadata_declares_the_model_and_what_actions_mean(path):
    with serving(EchoPolicy(cameras=("rgb_static", "rgb_gripper")), replan_every=2) as served:
        metadata = WebsocketClientPolicy(served.url(path)).get_server_metadata()
    assert metadata["act_step"] == T
    assert metadata["replan_every"] == 2
    assert ActionConvention(**metadata["action_convention"]) == ActionConvention()
    assert metadata["cameras"] == {"rgb_static": "observation/image", "rgb_gripper": "observation/wrist_image"}


def test_an_observation_is_answered_with_a_whole_chunk_in_the_models_units():
    with serving() as served:
        client = WebsocketClientPolicy("127.0.0.1", served.port)
        first, second = client.infer(look(100)), client.infer(look(200))
    assert first["actions"].shape == (T, 7)
    assert first["actions"].dtype == np.float32
    np.testing.assert_allclose(first["actions"][:, 0], 0.1)
    np.testing.assert_allclose(second["actions"][:, 0], 0.2)
    assert first["server_timing"]["infer_ms"] > 0
    assert "prev_total_ms" not in first["server_timing"]
    assert second["server_timing"]["prev_total_ms"] >= first["server_timing"]["infer_ms"]


def test_both_protocols_are_distinguished_on_one_port_at_the_same_time():
    with serving() as served:
        openpi = WebsocketClientPolicy(served.url())
        with connect(served.url()) as ws:
            ws.send(pack_message(Message(MessageType.HELLO, make_hello_payload(), seq=3)))
            assert msgpack_numpy.unpackb(ws.recv(5))["type"] == "hello"
        assert openpi.infer(look())["actions"].shape == (T, 7)


def test_a_client_that_asks_before_the_metadata_came_gets_both():
    with serving() as served, connect(served.url()) as ws:
        ws.send(msgpack_numpy.packb(look(100)))
        assert msgpack_numpy.unpackb(ws.recv(5))["act_step"] == T
        assert msgpack_numpy.unpackb(ws.recv(5))["actions"].shape == (T, 7)


@pytest.mark.parametrize(
    ("observation", "words"),
    [
        ({"prompt": "a"}, "observation/image is missing"),
        (look() | {"prompt": None}, "instruction must be a text"),
        (look() | {"observation/image": np.zeros((3, 24, 24), np.uint8)}, "uint8 [height, width, 3]"),
        (look() | {"observation/image": np.zeros((24, 24, 3), np.float32)}, "float32"),
        (look(prompt="refuse me"), "refused"),
        (look(prompt="nan"), "not finite"),
    ],
)
def test_an_error_is_a_text_and_the_end_of_the_connection_with_code_1011(observation, words):
    with serving() as served:
        client = WebsocketClientPolicy(served.url("/openpi"))
        with pytest.raises(RuntimeError) as caught:
            client.infer(observation)
        assert words in str(caught.value)
        with pytest.raises(websockets.ConnectionClosed) as closed:
            client.infer(look())
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1011
        assert WebsocketClientPolicy(served.url("/openpi")).infer(look())["actions"].shape == (T, 7)


def test_a_late_hello_gets_the_right_path():
    with serving() as served, connect(served.url("/openpi")) as ws:
        ws.recv(5)
        ws.send(pack_message(Message(MessageType.HELLO, make_hello_payload(), seq=3)))
        assert "/vla-eval" in ws.recv(5)


def test_a_batch_of_a_real_model_answers_what_single_questions_are_answered(tmp_path):
    from policy_rollout.policies.upvla import UPVLAPolicy
    from tests.policy.saved_model import write_model

    policy = UPVLAPolicy.from_config(write_model(tmp_path, act_step=T), device="cpu")
    rng = np.random.default_rng(0)
    looks = [
        {"observation/image": rng.integers(0, 256, (32, 32, 3), dtype=np.uint8), "prompt": "push it" + " left" * n}
        for n in range(4)
    ]
    batches: list[int] = []
    act = policy.act
    policy.act = lambda seen: (batches.append(len(seen)), act(seen))[1]
    with serving(policy, max_wait=1.0) as served:
        clients = [WebsocketClientPolicy(served.url("/openpi")) for _ in looks]
        with ThreadPoolExecutor(len(looks)) as threads:
            answers = threads.map(lambda client, look: client.infer(look), clients, looks)
            together = [answer["actions"] for answer in answers]
        assert max(batches) == len(looks)
        for client in clients[1:]:
            client._ws.close()
        time.sleep(0.2)
        single = [clients[0].infer(one)["actions"] for one in looks]
        assert batches[-4:] == [1, 1, 1, 1]
    for chunk, alone in zip(together, single, strict=True):
        np.testing.assert_allclose(chunk, alone, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-4, "different observations are answered differently"

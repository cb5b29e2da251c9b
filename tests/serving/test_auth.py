"""Who may connect, how large, how many; what HTTP answers; and clients that mean harm."""

from __future__ import annotations

import http.client
import json
import random
import socket
import struct
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
import websockets
from websockets.sync.client import connect

from policy_rollout.serving.server import Settings
from policy_rollout.serving.wire import Limits, WireError, pack, unpack
from tests.serving.served import T, image, serving

OPENPI_LOOK = pack({"observation/image": image(100), "prompt": "open the drawer"}, bytes_keys=True)


def get(served: Any, path: str, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=5)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def works(served: Any, **more: Any) -> bool:
    """Is a client that behaves served?"""
    with connect(served.url("/openpi"), **more) as ws:
        ws.recv(5)
        ws.send(OPENPI_LOOK)
        return bool(msgpack.unpackb(ws.recv(5))["actions"][b"shape"] == [T, 7])


def test_this_machine_alone_is_served_by_default():
    assert Settings().host == "127.0.0.1"
    with serving() as served:
        addresses = [sock.getsockname()[0] for sock in served.server._listener.sockets]
        assert addresses == ["127.0.0.1"]


def test_health_and_configuration_are_http_on_the_same_port():
    with serving(max_batch=8, max_wait=0.01) as served:
        assert get(served, "/health") == (200, '{"status": "ok"}\n')
        assert get(served, "/healthz")[0] == 200
        status, text = get(served, "/config")
        assert status == 200
        assert json.loads(text)["config"] == {"max_batch_size": 8, "max_wait_time": 0.01}
        assert get(served, "/nowhere")[0] == 404


def test_batching_can_be_changed_within_what_the_server_was_started_with():
    with serving(max_batch=8) as served:
        status, text = get(served, "/config?max_batch_size=2&max_wait_time=0.02")
        assert status == 200
        assert json.loads(text)["applied"] == {"max_batch_size": 2, "max_wait_time": 0.02}
        for wrong in ("max_batch_size=9", "max_batch_size=0", "max_wait_time=nan", "max_wait_time=60", "token_bytes=1"):
            status, text = get(served, f"/config?{wrong}")
            assert status == 422, wrong
            assert "allowed" in text
        assert json.loads(get(served, "/config")[1])["config"]["max_batch_size"] == 2


def test_without_the_token_only_health_is_served():
    with serving(token="s3cret") as served:
        for refused in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret"}):
            status, text = get(served, "/config", **refused)
            assert status == 401
            assert "token is needed" in text
            with pytest.raises(websockets.InvalidStatus, match="401"):
                connect(served.url("/openpi"), additional_headers=refused)
        assert get(served, "/health")[0] == 200
        assert served.server.stats.refused["wrong token"] == 6


@pytest.mark.parametrize("scheme", ["Bearer", "Api-Key"])
def test_with_the_token_in_a_header_clients_are_served(scheme):
    with serving(token="s3cret") as served:
        assert works(served, additional_headers={"Authorization": f"{scheme} s3cret"})


def test_the_token_may_be_part_of_the_address():
    with serving(token="s3cret") as served, connect(served.url("/openpi?token=s3cret")) as ws:
        assert "act_step" in msgpack.unpackb(ws.recv(5))


def test_pages_in_a_browser_may_not_connect():
    with serving() as served, pytest.raises(websockets.InvalidStatus, match="403"):
        connect(served.url("/openpi"), origin="https://example.com")


@pytest.mark.parametrize("header", [("Origin", "https://example.com"), ("Sec-Fetch-Site", "cross-site")])
def test_pages_in_a_browser_may_not_change_how_it_batches(header):
    with serving(max_batch=8) as served:
        assert get(served, "/config?max_batch_size=1", **dict([header]))[0] == 403
        assert json.loads(get(served, "/config")[1])["config"]["max_batch_size"] == 8


@pytest.mark.parametrize(("path", "words"), [("/", "rgb_static"), ("/vla-eval", "type"), ("/openpi", "rgb_static")])
def test_an_array_where_a_text_belongs_is_an_error_of_its_message(path, words):
    array = {"__ndarray__": True, "data": b"\0" * 8, "dtype": "<i4", "shape": [2]}
    with serving() as served, connect(served.url(path)) as enemy:
        enemy.send(msgpack.packb({"type": array, "payload": {}, "seq": 1, "timestamp": 0.0, "prompt": "go"}))
        said = [enemy.recv(5)] if path == "/vla-eval" else [enemy.recv(5), enemy.recv(5)]  # openpi: metadata first
        assert words in str(said[-1])
        assert "ambiguous" not in str(said[-1])
        assert works(served)


def test_one_session_too_many_is_refused_and_there_is_room_again_when_one_ends():
    with serving(limits=Limits(sessions=2)) as served:
        with connect(served.url("/openpi")) as one, connect(served.url("/openpi")) as other:
            one.recv(5), other.recv(5)
            with pytest.raises(websockets.InvalidStatus, match="503"):
                connect(served.url("/openpi"))
        for _ in range(50):
            try:
                assert works(served)
                break
            except websockets.InvalidStatus:
                pass
        else:
            pytest.fail("a session that ended still takes its place")


def test_a_message_that_is_too_large_ends_its_session_alone():
    with serving(limits=Limits(message_bytes=20_000)) as served, connect(served.url("/openpi")) as ws:
        ws.recv(5)
        ws.send(b"x" * 20_001)
        with pytest.raises(websockets.ConnectionClosed) as closed:
            ws.recv(5)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009
        assert works(served)


LIES: list[tuple[str, Any, str]] = [
    ("object dtype", {"__ndarray__": True, "data": b"x" * 8, "dtype": "|O", "shape": [1]}, "dtype"),
    ("structured dtype", {"__ndarray__": True, "data": b"x" * 8, "dtype": "f4,f4", "shape": [1]}, "dtype"),
    ("sized object dtype", {"__ndarray__": True, "data": b"x" * 8, "dtype": "|O8", "shape": [1]}, "only numbers"),
    ("void dtype", {"__ndarray__": True, "data": b"x" * 8, "dtype": "|V8", "shape": [1]}, "dtype"),
    ("repeated dtype", {"__ndarray__": True, "data": b"", "dtype": "(100000000,)f8", "shape": [0]}, "dtype"),
    ("dtype that is no text", {"__ndarray__": True, "data": b"", "dtype": ["f4"], "shape": [0]}, "dtype"),
    ("dtype that does not exist", {"__ndarray__": True, "data": b"x", "dtype": "<f1", "shape": [1]}, "dtype"),
    ("larger shape than data", {"__ndarray__": True, "data": b"x", "dtype": "|u1", "shape": [1 << 30, 3]}, "bytes"),
    ("smaller shape than data", {"__ndarray__": True, "data": b"xyz", "dtype": "|u1", "shape": [2]}, "bytes"),
    ("negative sizes", {"__ndarray__": True, "data": b"x", "dtype": "|u1", "shape": [-1, -1]}, "sizes"),
    ("sizes that overflow", {"__ndarray__": True, "data": b"", "dtype": "|u1", "shape": [1 << 62, 4]}, "sizes"),
    ("many dimensions", {"__ndarray__": True, "data": b"x", "dtype": "|u1", "shape": [1] * 40}, "sizes"),
    ("a shape that is no list", {"__ndarray__": True, "data": b"x", "dtype": "|u1", "shape": "1"}, "sizes"),
    ("no data", {"__ndarray__": True, "dtype": "|u1", "shape": [1]}, "bytes"),
    ("openpi's object dtype", {b"__ndarray__": True, b"data": b"x" * 8, b"dtype": "|O", b"shape": [1]}, "dtype"),
    ("image of many pixels", {"__image__": True, "format": "png", "data": b"", "shape": [9999, 9999, 3]}, "pixels"),
    ("floats", {"__image__": True, "format": "raw", "data": bytes(12), "dtype": "<f4", "shape": [1, 1, 3]}, "uint8"),
    ("image in another format", {"__image__": True, "format": "gif", "data": b"x", "shape": [2, 2, 3]}, "format"),
    ("grey image", {"__image__": True, "format": "png", "data": b"x", "shape": [2, 2, 1]}, "height, width, 3"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "words"), [lie[1:] for lie in LIES], ids=[lie[0] for lie in LIES])
def test_what_a_message_claims_of_itself_is_checked(value, words):
    with pytest.raises(WireError, match=words):
        unpack(msgpack.packb({"a": value}), Limits())


def test_no_extension_type_is_read_and_there_is_no_pickle_in_the_package():
    import pickle
    from pathlib import Path

    import policy_rollout.serving

    for content in (msgpack.ExtType(42, pickle.dumps("x")), msgpack.Timestamp(1)):
        with pytest.raises(WireError):
            unpack(msgpack.packb({"a": content}), Limits())
    for file in Path(policy_rollout.serving.__file__).parent.glob("*.py"):
        lines = [line for line in file.read_text().splitlines() if "pickle" in line and "no pickle" not in line]
        assert not lines, file


def test_lists_and_maps_that_declare_to_be_huge_allocate_nothing():
    huge = struct.pack(">BI", 0xDD, 0xFFFFFFFF), struct.pack(">BI", 0xDF, 0xFFFFFFFF), struct.pack(">BI", 0xC6, 1 << 31)
    nested = struct.pack(">BI", 0xDD, 4000) * 400
    deep = b"\x91" * 100_000
    filled = struct.pack(">BI", 0xDD, 1_000_000) * 100 + bytes(1_000_000)
    tracemalloc.start()
    for message in (*huge, nested + b"\xc0", filled, deep, b"", b"\xc1"):
        with pytest.raises(WireError):
            unpack(message, Limits())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 << 20, "a hundred lists of a million entries each were not made"


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_damaged_image_is_an_error_of_its_message(kind):
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(stream, kind)
    whole = stream.getvalue()
    rng = random.Random(0)
    entry = {"__image__": True, "format": kind, "shape": [40, 40, 3]}
    refused = 0
    for _ in range(300):
        broken = bytearray(whole[: rng.randrange(len(whole))] if rng.random() < 0.5 else whole)
        for _ in range(rng.randrange(8)):
            if broken:
                broken[rng.randrange(len(broken))] = rng.randrange(256)
        try:
            pixels = unpack(msgpack.packb(entry | {"data": bytes(broken)}), Limits()).decoded()
            assert pixels.shape == (40, 40, 3)
        except WireError:
            refused += 1
    assert refused > 100
    with pytest.raises(WireError, match="declares"):
        unpack(msgpack.packb(entry | {"data": whole, "shape": [39, 40, 3]}), Limits()).decoded()


def hostile(rng: random.Random) -> bytes | str:
    """A message that no client sends: noise, or a good one that is cut, changed or filled with something else."""
    vla = {"type": rng.choice(["hello", "observation", "episode_start", "error", "x"]), "seq": 1, "timestamp": 0.0}
    odd: list[Any] = [None, -1, 1 << 60, "x" * 50, b"\x00" * 50, [], {}, [[[]]], float("nan")]
    odd += [lie[1] for lie in LIES]
    payload = {"images": rng.choice([*odd, {"rgb_static": rng.choice(odd)}]), "task_description": rng.choice(odd)}
    choice = rng.randrange(6)
    if choice == 0:
        return rng.randbytes(rng.randrange(200))
    if choice == 1:
        return "text " * rng.randrange(5)
    if choice == 2:
        return msgpack.packb(vla | {"payload": rng.choice([*odd, payload]), "seq": rng.choice([1, 2, *odd])})
    if choice == 3:
        return msgpack.packb({"observation/image": rng.choice(odd), "prompt": rng.choice(odd)})
    whole = bytearray(OPENPI_LOOK if choice == 4 else msgpack.packb(vla | {"payload": payload}))
    for _ in range(rng.randrange(6)):
        whole[rng.randrange(len(whole))] = rng.randrange(256)
    return bytes(whole[: rng.randrange(len(whole) + 1)])


def test_hostile_clients_end_at_most_their_own_sessions():
    rng = random.Random(7)
    with serving() as served, connect(served.url("/openpi")) as honest:
        honest.recv(5)
        for number in range(120):
            with connect(served.url(rng.choice(["/openpi", "/vla-eval", "/"])), close_timeout=0.02) as enemy:
                try:
                    for _ in range(rng.randrange(1, 6)):
                        enemy.send(hostile(rng))
                    if rng.random() < 0.5:
                        enemy.recv(0.02)
                except (websockets.ConnectionClosed, TimeoutError):
                    pass
                if rng.random() < 0.3:
                    enemy.socket.close()
            if number % 20 == 0:
                honest.send(OPENPI_LOOK)
                assert msgpack.unpackb(honest.recv(5))["actions"][b"shape"] == [T, 7]
        assert works(served)
        assert served.server.stats.refused["bad message"] > 50
        assert set(served.server.stats.refused) == {"bad message"}


def test_a_port_that_talks_nonsense_instead_of_http_is_shut_for_the_talker_alone():
    with serving() as served:
        for noise in (
            b"\x16\x03\x01" * 50,
            b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 500,
            b"\r\n" * 100,
            b"POST / HTTP/1.1\r\n\r\n",
        ):
            with socket.create_connection(("127.0.0.1", served.port), timeout=5) as talker:
                talker.sendall(noise)
        assert works(served)

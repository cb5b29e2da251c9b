"""Clients for `benchmarks/serving.py`, in a process without torch.

Each sends its next request after the last answer. The argument is a JSON object with the requests; the results are
printed as another one.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from websockets.sync.client import ClientConnection, connect

from common.command import run_command
from policy_rollout.serving import openpi, vla_eval
from policy_rollout.serving.wire import Limits, unpack

PIXELS = 200
SENTENCES = ("open the drawer", "push the red block to the left", "lift the blue block from the table")


def image(client: int, number: int) -> NDArray[np.uint8]:
    return np.random.default_rng([client, number]).integers(0, 256, (PIXELS, PIXELS, 3), dtype=np.uint8)


def request(protocol: str, client: int, number: int) -> bytes:
    """Return a request with raw images, because encoding them would be the client's time."""
    sentence = SENTENCES[client % len(SENTENCES)]
    if protocol == "openpi":
        return openpi.observation({"rgb_static": image(client, number)}, sentence)
    observation = {"images": {"rgb_static": image(client, number)}, "task_description": sentence}
    return vla_eval.write("observation", observation, number)


def _connected(port: int, protocol: str) -> ClientConnection:
    socket = connect(f"ws://127.0.0.1:{port}/{protocol}", compression=None).__enter__()  # closed by ``Client.run``
    if protocol == "vla-eval":
        socket.send(vla_eval.write("hello", {"protocol_version": vla_eval.PROTOCOL_VERSION}, 0))
    socket.recv(30)
    return socket


class Client(threading.Thread):
    """One client. ``milliseconds``: latency of each answer; ``first``: the actions of the first answer."""

    def __init__(self, number: int, port: int, protocol: str, requests: int, start: threading.Barrier) -> None:
        super().__init__()
        self._socket = _connected(port, protocol)
        self._requests = [request(protocol, number, each) for each in range(requests)]
        self._start, self._vla = start, protocol == "vla-eval"
        self.milliseconds: list[float] = []
        self.first: list[Any] = []

    def run(self) -> None:
        self._start.wait()
        for message in self._requests:
            begun = time.perf_counter()
            self._socket.send(message)
            answer = self._socket.recv(120)
            self.milliseconds.append((time.perf_counter() - begun) * 1000)
            if not self.first:
                assert isinstance(answer, bytes), answer
                found = unpack(answer, Limits())
                self.first = (found["payload"] if self._vla else found)["actions"].tolist()
        self._socket.close()


def main() -> None:
    task = json.loads(sys.argv[1])
    start = threading.Barrier(task["clients"] + 1)
    clients = [
        Client(number, task["port"], task["protocol"], task["requests"], start) for number in range(task["clients"])
    ]
    for client in clients:
        client.start()
    start.wait()
    begun = time.perf_counter()
    for client in clients:
        client.join()
    seconds = time.perf_counter() - begun
    times = [time for client in clients for time in client.milliseconds]
    print(json.dumps({"seconds": seconds, "milliseconds": times, "first": [client.first for client in clients]}))


if __name__ == "__main__":
    run_command(main)

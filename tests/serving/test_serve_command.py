"""`python -m policy_rollout.serve` as it is typed: a real model, a real process, real signals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from policy_rollout import serve
from policy_rollout.robot.remote import RemotePolicy
from tests.policy.saved_model import write_model

pytest.importorskip("openpi_client", reason="make venv-dev brings openpi-client")
from openpi_client.websocket_client_policy import WebsocketClientPolicy

ROOT = Path(__file__).parents[2]
LOOK = {"observation/image": np.full((32, 32, 3), 99, np.uint8), "prompt": "open the drawer"}


class Process:
    """The command, started, and what it has said."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "policy_rollout.serve", *arguments],
            cwd=ROOT,
            env={**os.environ, "BLOCKDIFF_SERVE_TOKEN": "s3cret"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self.port = 0
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._ready.wait(120)
        assert self.port, "\n".join(self.lines)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if match := re.match(r"ready on port (\d+)", line):
                self.port = int(match[1])
                self._ready.set()
        self._ready.set()

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        code = self.process.wait(30)
        self._reader.join(5)
        return code


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("served"), act_step=4)


@pytest.fixture
def started() -> Iterator[list[Process]]:
    running: list[Process] = []
    yield running
    for one in running:
        if one.process.poll() is None:
            one.process.kill()


def test_the_command_serves_a_model_says_where_and_ends_at_sigterm(model, started):
    server = Process("--model-config", str(model), "--port", "0", "--device", "cpu", "--report-every", "0.5")
    started.append(server)
    banner = "\n".join(server.lines)
    for part in (
        "cameras   rgb_static; chunks of 4",
        "1.0 = 0.02 m",
        f"ws://127.0.0.1:{server.port}/vla-eval",
        "required",
    ):
        assert part in banner, part
    assert "s3cret" not in banner
    assert "WARNING" not in banner
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/health", timeout=5) as answer:
        assert json.load(answer) == {"status": "ok"}
    client = WebsocketClientPolicy("127.0.0.1", server.port, api_key="s3cret")
    assert client.infer(LOOK)["actions"].shape == (4, 7)
    assert server.end(signal.SIGTERM) == 0
    assert server.lines[-1] == "stopped: 1 sessions, 1 answers by 1 forwards"
    assert any("answers/s" in line and "ms median" in line for line in server.lines)


@pytest.mark.slow
def test_a_client_continues_after_the_server_was_killed_and_started_again(model, started):
    first = Process("--model-config", str(model), "--port", "0", "--device", "cpu")
    started.append(first)
    policy = RemotePolicy(f"ws://127.0.0.1:{first.port}", token="s3cret")
    seen = serve_look()
    before = policy.act([seen])
    first.end(signal.SIGKILL)
    with pytest.raises(ConnectionError):
        policy.act([seen])
    second = Process("--model-config", str(model), "--port", str(first.port), "--device", "cpu")
    started.append(second)
    np.testing.assert_allclose(policy.act([seen]), before, atol=1e-6)
    assert second.end(signal.SIGINT) == 0


def serve_look():
    from policy_rollout.policies.interface import Observation

    return Observation(LOOK["observation/image"], LOOK["prompt"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "70000"], "--port must lie in 0..65535, got 70000"),
        (["--max-batch", "0"], "--max-batch"),
        (["--camera", "static=agentview"], "--camera static=agentview"),
        (["--token", " "], "token is empty"),
    ],
)
def test_a_wrong_option_is_one_line_before_a_model_is_loaded(capsys, arguments, words):
    assert serve.main(["--model-config", "none.yaml", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_port_that_is_taken_is_one_line(capsys, model):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert serve.main(["--model-config", str(model), "--device", "cpu", "--port", port]) == 2
    error = capsys.readouterr().err
    assert port in error
    assert error.count("\n") == 1


def test_everyone_being_able_to_connect_without_a_token_is_warned_about():
    from policy_rollout.serving.server import Settings
    from tests.serving.served import EchoPolicy

    def said(**settings: object) -> str:
        return serve.banner(EchoPolicy(), "m", Settings(**settings), 1, "cpu")

    assert "WARNING" in said(host="0.0.0.0")
    assert "WARNING" in said(host="robot.local")
    assert "WARNING" not in said(host="0.0.0.0", token="t")
    assert "WARNING" not in said(host="::1")

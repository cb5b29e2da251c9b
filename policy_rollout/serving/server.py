"""The server: connections, protocols, and a shutdown that loses no answer."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.server import Server as Listener
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from policy_rollout.policies.action_chunking import ChunkPlayer
from policy_rollout.policies.action_units import converted, gripper_values
from policy_rollout.policies.interface import Policy, image_rotation_of, state_read_by
from policy_rollout.serving import openpi, vla_eval
from policy_rollout.serving.auth import CONFIG_PATH, HEALTH_PATHS, WS_PATHS, configure, has_token, is_browser_request
from policy_rollout.serving.batching import Batcher, PolicyError, Session
from policy_rollout.serving.benchmarks import UNKNOWN, Benchmark
from policy_rollout.serving.stats import ServerStats
from policy_rollout.serving.wire import Limits, WireError, unpack

NAME = "blockdiff-vla"
HELLO_SLICES, HELLO_SLICE = 5, 0.05
"""A client of unknown protocol that sends nothing within 5 x 0.05 s is an openpi client, which waits for metadata. In
slices, so that a delay of the server itself uses up one of them only."""
STOP_SECONDS = 10.0
"""Time at shutdown for answers in progress."""
CLOSE_SECONDS = 2.0
"""Time for a client to close its side of the connection."""
MAX_QUEUED_FRAMES = 2
"""Messages of one session that are read ahead; the rest stays in the client."""


@dataclass(frozen=True)
class Settings:
    """Settings of a server. `names`: of cameras in vla-eval's `images`, if they are not those of its benchmark."""

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    max_batch: int = 16
    max_wait: float = 0.005
    """Seconds that an observation waits for others of its batch."""
    replan_every: int | None = None
    ensemble: float | None = None
    limits: Limits = field(default_factory=Limits)
    names: Mapping[str, str] = field(default_factory=dict)
    report_every: float = 30.0
    """Seconds between lines of statistics; 0: none."""


def _no_handshake_noise(record: logging.LogRecord) -> bool:
    """Drop the tracebacks of failed handshakes, such as port scans."""
    return "handshake" not in record.getMessage()


class Server:
    """Serves one policy.

    `async with` binds the port and raises if it is in use; `port` is then the actual one (0 selects a free port).
    """

    def __init__(
        self,
        policy: Policy,
        settings: Settings,
        *,
        model: str = "policy",
        image_shapes: Mapping[str, Sequence[int]] | None = None,
        log: Callable[[str], None] = print,
    ) -> None:
        self.policy, self.settings, self.model, self.image_shapes = policy, settings, model, image_shapes
        self._state = state_read_by(policy)
        if policy.convention.layout.gripper:
            gripper_values(policy.convention)  # raises before the server starts
        self._new_player()  # likewise for replan_every and ensemble
        self.stats = ServerStats()
        self._log = log
        self._sessions = 0
        self._busy = 0
        self._stopping = asyncio.Event()
        self._batcher = Batcher(
            policy,
            max_batch=settings.max_batch,
            max_wait=settings.max_wait,
            sessions=lambda: self._sessions,
            on_forward=self.stats.add_forward,
        )
        self._listener: Listener | None = None
        self._worker: asyncio.Task[None] | None = None

    def _new_player(self) -> ChunkPlayer:
        return ChunkPlayer(self.policy.act_step, self.settings.replan_every, self.settings.ensemble)

    @property
    def port(self) -> int:
        assert self._listener is not None
        return int(self._listener.sockets[0].getsockname()[1])

    async def __aenter__(self) -> Server:
        logger = logging.getLogger(__name__)
        logger.addFilter(_no_handshake_noise)
        self._listener = await serve(
            self._connected,
            self.settings.host,
            self.settings.port,
            process_request=self._http,
            origins=[None],  # browsers send an origin; no web page may control a robot
            compression=None,  # images are compressed; a zip bomb would be unpacked before its size is known
            max_size=self.settings.limits.message_bytes,
            max_queue=MAX_QUEUED_FRAMES,
            ping_interval=None,  # a busy simulator does not answer; TCP's keepalive detects dead clients
            close_timeout=CLOSE_SECONDS,
            logger=logger,
        )
        for listening in self._listener.sockets:  # connections inherit it
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._worker = asyncio.create_task(self._batcher.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Wait for answers in progress, then close all connections (close code 1001)."""
        assert self._listener is not None
        assert self._worker is not None
        self._stopping.set()
        until = time.monotonic() + STOP_SECONDS
        while self._busy and time.monotonic() < until and not self._worker.done():
            await asyncio.sleep(0.01)
        self._listener.close()
        self._worker.cancel()
        await asyncio.wait({self._worker})
        await self._listener.wait_closed()

    def stop(self) -> None:
        """Make `run` return."""
        self._stopping.set()

    async def run(self) -> None:
        """Serve until `stop`, and log statistics periodically. Raises an error of the batching task."""
        assert self._worker is not None
        stopping = asyncio.create_task(self._stopping.wait())
        pause = self.settings.report_every or None
        while not stopping.done():
            await asyncio.wait({stopping, self._worker}, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            line = self.stats.line(self._sessions) if pause else None
            if line is not None:
                self._log(line)
            if self._worker.done():
                stopping.cancel()
                self._worker.result()

    # -- HTTP --------------------------------------------------------------------------------------------------------

    def _http(self, connection: ServerConnection, request: Request) -> Response | None:
        """Return the response to plain HTTP or to a refused WebSocket; None to continue the handshake."""
        url = urlsplit(request.path)
        if url.path in HEALTH_PATHS:
            return _json(connection, HTTPStatus.OK, '{"status": "ok"}\n')
        token = self.settings.token
        if token is not None and not has_token(token, request.path, request.headers.get("Authorization")):
            self.stats.refused["wrong token"] += 1
            text = "a token is needed: 'Authorization: Bearer <token>', 'Api-Key <token>', or ?token=<token>\n"
            refusal = connection.respond(HTTPStatus.UNAUTHORIZED, text)
            refusal.headers["WWW-Authenticate"] = "Bearer"
            return refusal
        if url.path == CONFIG_PATH:
            if is_browser_request(request.headers):
                return connection.respond(HTTPStatus.FORBIDDEN, "not available to web pages\n")
            status, content = configure(self._batcher, self.settings.max_batch, url.query)
            return _json(connection, HTTPStatus(status), content)
        if url.path not in WS_PATHS:
            known = ", ".join((*WS_PATHS, *HEALTH_PATHS, CONFIG_PATH))
            return connection.respond(HTTPStatus.NOT_FOUND, f"there are {known}\n")
        if self._stopping.is_set():
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "the server stops\n")
        if self._sessions >= self.settings.limits.sessions:
            self.stats.refused["session too many"] += 1
            return connection.respond(
                HTTPStatus.SERVICE_UNAVAILABLE, f"all {self.settings.limits.sessions} sessions are in use\n"
            )
        return None

    # -- WebSockets --------------------------------------------------------------------------------------------------

    async def _connected(self, client: ServerConnection) -> None:
        """Serve one client. Nothing that it sends can end another connection."""
        self._sessions += 1
        self.stats.sessions += 1
        try:
            assert client.request is not None
            path = urlsplit(client.request.path).path
            first: asyncio.Future[bytes | str] = asyncio.ensure_future(client.recv())
            try:
                if path == "/vla-eval" or (path == "/" and await self._is_vla_eval(first)):
                    await self._vla_eval(client, _messages(client, first))
                else:
                    await self._openpi(client, _messages(client, first))
            finally:
                first.cancel()
                with suppress(asyncio.CancelledError, ConnectionClosed):
                    await first
        except ConnectionClosed:
            pass  # the usual end of a session
        finally:
            self._sessions -= 1

    async def _is_vla_eval(self, first: asyncio.Future[bytes | str]) -> bool:
        """Detect the protocol: vla-eval's client sends hello, openpi's waits for the server."""
        for _ in range(HELLO_SLICES):
            done, _ = await asyncio.wait({first}, timeout=HELLO_SLICE)
            if done:
                break
        if not first.done():
            return False
        data = first.result()
        try:
            return isinstance(data, bytes) and vla_eval.is_message(unpack(data, self.settings.limits))
        except WireError:
            return False

    async def _vla_eval(self, client: ServerConnection, messages: AsyncIterator[bytes | str]) -> None:
        """Answer until the client disconnects. Errors are answers; only a failed hello closes the connection."""
        session = Session(self._batcher, self._new_player(), self.settings.limits)
        greeted, benchmark = False, UNKNOWN
        async for data in messages:
            started = time.perf_counter()
            seq = 0
            self._busy += 1
            try:
                message = vla_eval.read(data, self.settings.limits)
                seq = message.seq
                if message.type == "hello":
                    benchmark = vla_eval.require_hello(message.payload, self.policy)
                    greeted = True
                    names = {**benchmark.cameras, **self.settings.names}
                    await client.send(vla_eval.hello(seq, NAME, self.model, self.policy, benchmark, names))
                elif not greeted:
                    raise WireError(f"send hello before {message.type}")
                elif message.type in ("episode_start", "episode_end"):
                    session.restart()
                elif message.type == "observation":
                    await client.send(vla_eval.action(await self._action(session, message, benchmark), seq))
                    self.stats.add_answer(time.perf_counter() - started)
                elif message.type == "action":
                    raise WireError("only the server sends actions")
            except (ValueError, PolicyError) as error:  # a WireError, or an observation that the policy refuses
                if not greeted:  # vla-eval's client does not print the error of a refused hello
                    self._log(f"refused a client of vla-eval: {error}")
                await client.send(vla_eval.error(self._refusal(error), seq))
                if not greeted:
                    await client.close(1002, "no hello")
            finally:
                self._busy -= 1
            if self._stopping.is_set():
                return

    async def _action(self, session: Session, message: vla_eval.Message, benchmark: Benchmark) -> Any:
        """Return the action [A] for an observation, as the client's benchmark executes it."""
        policy, limits, names = self.policy, self.settings.limits, {**benchmark.cameras, **self.settings.names}
        request = vla_eval.parse_observation(message.payload, names, policy.cameras, limits, self._state, benchmark)
        action = await session.act(replace(request, turned=benchmark.turns_images(policy)))
        return converted(action, policy.convention, benchmark.executed(policy.convention))

    async def _openpi(self, client: ServerConnection, messages: AsyncIterator[bytes | str]) -> None:
        """Answer observations with chunks. An error is a text frame and closes the connection, as in openpi."""
        policy, limits, previous_ms = self.policy, self.settings.limits, None
        replan_every = self.settings.replan_every or policy.act_step
        await client.send(
            openpi.metadata(
                NAME,
                self.model,
                policy.convention,
                policy.cameras,
                policy.act_step,
                replan_every,
                self.image_shapes,
                self._state,
                image_rotation_of(policy) or 0,
            )
        )
        async for data in messages:
            started = time.perf_counter()
            self._busy += 1
            try:
                request = openpi.parse_message(data, policy.cameras, limits, self._state)
                observation = await asyncio.to_thread(request.observation, limits)
                decoded = time.perf_counter()
                chunk = await self._batcher.act(observation)
                await client.send(openpi.answer(chunk, (time.perf_counter() - decoded) * 1000, previous_ms))
                previous_ms = (time.perf_counter() - started) * 1000
                self.stats.add_answer(previous_ms / 1000)
            except (ValueError, PolicyError) as error:
                await client.send(self._refusal(error))
                await client.close(openpi.BROKEN, "error, see the text before")
            finally:
                self._busy -= 1
            if self._stopping.is_set():
                return

    def _refusal(self, error: Exception) -> str:
        """Return the error text for the client, and log failures of the policy."""
        if isinstance(error, PolicyError):
            self.stats.refused["failed policy"] += 1
            self._log(f"error: {error}")
            return str(error)
        self.stats.refused["bad message"] += 1
        return f"{type(error).__name__}: {error}"


async def _messages(client: ServerConnection, first: asyncio.Future[bytes | str]) -> AsyncIterator[bytes | str]:
    """Yield the first message, which is already being received, and those after it, until the connection closes."""
    yield await first
    async for data in client:
        yield data


def _json(connection: ServerConnection, status: HTTPStatus, content: str) -> Response:
    response = connection.respond(status, content)
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = "application/json"
    return response

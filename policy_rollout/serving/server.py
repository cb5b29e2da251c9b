"""The server: connections, protocols, and stopping without losing an answer."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.server import Server as Listener
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from policy_rollout.policies.action_chunking import ChunkPlayer
from policy_rollout.policies.action_units import gripper_values, in_metres
from policy_rollout.policies.interface import CAMERAS, Policy
from policy_rollout.serving import openpi, vla_eval
from policy_rollout.serving.auth import CONFIG_PATH, HEALTH_PATHS, WS_PATHS, configure, has_token, is_browser_request
from policy_rollout.serving.batching import Batcher, PolicyError
from policy_rollout.serving.session import Session
from policy_rollout.serving.stats import Counters
from policy_rollout.serving.wire import Limits, WireError, unpack

NAME = "blockdiff-vla"
HELLO_SLICES, HELLO_SLICE = 5, 0.05
"""A client of unknown protocol that says nothing for a quarter of a second waits for openpi's metadata. In slices: a
moment in which the server itself is held up costs one of them, not the client's turn."""
STOPPING_SECONDS = 10.0
"""For answers that are being made when the server is asked to stop."""
CLOSE_SECONDS = 2.0
"""For a client to say goodbye too."""
UNFINISHED_FRAMES = 2
"""Messages of one session that are read ahead; the rest waits in the client."""


@dataclass(frozen=True)
class Settings:
    """How to serve. `names`: what vla-eval's `images` calls each camera."""

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    max_batch: int = 16
    max_wait: float = 0.005
    """Seconds that a question waits for others."""
    replan_every: int | None = None
    ensemble: float | None = None
    limits: Limits = field(default_factory=Limits)
    names: Mapping[str, str] = field(default_factory=lambda: {camera: camera for camera in CAMERAS})
    report_every: float = 30.0
    """Seconds between lines of statistics; 0: none."""


def _no_handshake_noise(record: logging.LogRecord) -> bool:
    """A port scan is not worth a traceback each; mistakes of ours are."""
    return "handshake" not in record.getMessage()


class Server:
    """Serves one policy until told to stop.

    `async with` binds the port, so that a taken one is an error at once; `port` is then the real one (0 asks for any).
    """

    def __init__(
        self,
        policy: Policy,
        settings: Settings,
        *,
        model: str = "policy",
        image_shapes: Mapping[str, Sequence[int]] | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.policy, self.settings, self.model, self.image_shapes = policy, settings, model, image_shapes
        if policy.convention.layout.gripper:
            gripper_values(policy.convention)  # raises before anybody connects
        self._new_player()  # the same for replan_every and ensemble
        self.counters = Counters()
        self._say = say
        self._sessions = 0
        self._busy = 0
        self._stopping = asyncio.Event()
        self._batcher = Batcher(
            policy,
            max_batch=settings.max_batch,
            max_wait=settings.max_wait,
            sessions=lambda: self._sessions,
            ran=self.counters.ran,
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
            origins=[None],  # pages in a browser send an origin: none of them may drive a robot
            compression=None,  # images are compressed already, and a bomb would be unpacked before its size is known
            max_size=self.settings.limits.message_bytes,
            max_queue=UNFINISHED_FRAMES,
            ping_interval=None,  # a busy simulator answers none; TCP's keepalive finds the dead
            close_timeout=CLOSE_SECONDS,
            logger=logger,
        )
        for listening in self._listener.sockets:  # connections inherit it
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._worker = asyncio.create_task(self._batcher.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Waits for answers in the making, then says goodbye to everyone (close code 1001)."""
        assert self._listener is not None
        assert self._worker is not None
        self._stopping.set()
        until = time.monotonic() + STOPPING_SECONDS
        while self._busy and time.monotonic() < until and not self._worker.done():
            await asyncio.sleep(0.01)
        self._listener.close()
        self._worker.cancel()
        await asyncio.wait({self._worker})
        await self._listener.wait_closed()

    def stop(self) -> None:
        """Asks `run` to end."""
        self._stopping.set()

    async def run(self) -> None:
        """Serves until `stop`, with a line of statistics now and then. Raises what the batching raised, if it ever
        does."""
        assert self._worker is not None
        stopping = asyncio.create_task(self._stopping.wait())
        pause = self.settings.report_every or None
        while not stopping.done():
            await asyncio.wait({stopping, self._worker}, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            line = self.counters.line(self._sessions) if pause else None
            if line is not None:
                self._say(line)
            if self._worker.done():
                stopping.cancel()
                self._worker.result()

    # -- HTTP --------------------------------------------------------------------------------------------------------

    def _http(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answers plain HTTP, and refuses WebSockets that may not be; None lets a handshake go on."""
        url = urlsplit(request.path)
        if url.path in HEALTH_PATHS:
            return _json(connection, HTTPStatus.OK, '{"status": "ok"}\n')
        token = self.settings.token
        if token is not None and not has_token(token, request.path, request.headers.get("Authorization")):
            self.counters.refused["wrong token"] += 1
            text = "a token is needed: 'Authorization: Bearer <token>', 'Api-Key <token>', or ?token=<token>\n"
            refusal = connection.respond(HTTPStatus.UNAUTHORIZED, text)
            refusal.headers["WWW-Authenticate"] = "Bearer"
            return refusal
        if url.path == CONFIG_PATH:
            if is_browser_request(request.headers):
                return connection.respond(HTTPStatus.FORBIDDEN, "not for pages in a browser\n")
            status, content = configure(self._batcher, self.settings.max_batch, url.query)
            return _json(connection, HTTPStatus(status), content)
        if url.path not in WS_PATHS:
            known = ", ".join((*WS_PATHS, *HEALTH_PATHS, CONFIG_PATH))
            return connection.respond(HTTPStatus.NOT_FOUND, f"there are {known}\n")
        if self._stopping.is_set():
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "the server stops\n")
        if self._sessions >= self.settings.limits.sessions:
            self.counters.refused["session too many"] += 1
            return connection.respond(
                HTTPStatus.SERVICE_UNAVAILABLE, f"all {self.settings.limits.sessions} sessions are taken\n"
            )
        return None

    # -- WebSockets --------------------------------------------------------------------------------------------------

    async def _connected(self, client: ServerConnection) -> None:
        """One client from its handshake to its end. Nothing it sends ends more than its own connection."""
        self._sessions += 1
        self.counters.sessions += 1
        try:
            assert client.request is not None
            path = urlsplit(client.request.path).path
            first: asyncio.Future[bytes | str] = asyncio.ensure_future(client.recv())
            try:
                if path == "/vla-eval" or (path == "/" and await self._speaks_vla_eval(first)):
                    await self._vla_eval(client, _messages(client, first))
                else:
                    await self._openpi(client, _messages(client, first))
            finally:
                first.cancel()
                with suppress(asyncio.CancelledError, ConnectionClosed):
                    await first
        except ConnectionClosed:
            pass  # how every session ends
        finally:
            self._sessions -= 1

    async def _speaks_vla_eval(self, first: asyncio.Future[bytes | str]) -> bool:
        """Who speaks first? vla-eval's client says hello, openpi's waits for the server."""
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
        """Answers until the client goes. Errors are messages, and the connection stays; only a failed hello ends it."""
        session = Session(self._batcher, self._new_player(), self.settings.limits)
        greeted = False
        async for data in messages:
            started = time.perf_counter()
            seq = 0
            self._busy += 1
            try:
                message = vla_eval.read(data, self.settings.limits)
                seq = message.seq
                if message.type == "hello":
                    vla_eval.require_hello(message.payload, self.policy.convention)
                    greeted = True
                    await client.send(
                        vla_eval.hello(seq, NAME, self.model, self.policy.convention, self.policy.cameras)
                    )
                elif not greeted:
                    raise WireError(f"say hello before {message.type}")
                elif message.type in ("episode_start", "episode_end"):
                    session.restart()
                elif message.type == "observation":
                    await client.send(vla_eval.action(await self._action(session, message), seq))
                    self.counters.answered(time.perf_counter() - started)
                elif message.type == "action":
                    raise WireError("actions are the server's to send")
            except (ValueError, PolicyError) as error:  # a WireError, or an observation that the policy refuses
                await client.send(vla_eval.error(self._refusal(error), seq))
                if not greeted:
                    await client.close(1002, "no hello")
            finally:
                self._busy -= 1
            if self._stopping.is_set():
                return

    async def _action(self, session: Session, message: vla_eval.Message) -> Any:
        seen = vla_eval.observed(message.payload, self.settings.names, self.policy.cameras, self.settings.limits)
        return in_metres(await session.act(seen), self.policy.convention)

    async def _openpi(self, client: ServerConnection, messages: AsyncIterator[bytes | str]) -> None:
        """Answers observations with chunks. An error is a text frame, and ends the connection, as openpi's does."""
        policy, limits, before = self.policy, self.settings.limits, None
        replan_every = self.settings.replan_every or policy.act_step
        await client.send(
            openpi.metadata(
                NAME, self.model, policy.convention, policy.cameras, policy.act_step, replan_every, self.image_shapes
            )
        )
        async for data in messages:
            started = time.perf_counter()
            self._busy += 1
            try:
                seen = openpi.observed(data, policy.cameras, limits)
                observation = await asyncio.to_thread(seen.observation, limits)
                asked = time.perf_counter()
                chunk = await self._batcher.act(observation)
                await client.send(openpi.answer(chunk, (time.perf_counter() - asked) * 1000, before))
                before = (time.perf_counter() - started) * 1000
                self.counters.answered(before / 1000)
            except (ValueError, PolicyError) as error:
                await client.send(self._refusal(error))
                await client.close(openpi.BROKEN, "error, see the text before")
            finally:
                self._busy -= 1
            if self._stopping.is_set():
                return

    def _refusal(self, error: Exception) -> str:
        """The client's words for a mistake; failures of the policy are the operator's too."""
        if isinstance(error, PolicyError):
            self.counters.refused["failed policy"] += 1
            self._say(f"error: {error}")
            return str(error)
        self.counters.refused["bad message"] += 1
        return f"{type(error).__name__}: {error}"


async def _messages(client: ServerConnection, first: asyncio.Future[bytes | str]) -> AsyncIterator[bytes | str]:
    """The first message, which somebody already waits for, and those after it; ends with the connection."""
    yield await first
    async for data in client:
        yield data


def _json(connection: ServerConnection, status: HTTPStatus, content: str) -> Response:
    response = connection.respond(status, content)
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = "application/json"
    return response

"""A policy that runs elsewhere (`policy_rollout/serve.py`), seen from the robot's side. No torch is needed here."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from policy_rollout.acting import ACTION_SIZE, CAMERAS, ActionConvention, Observation
from policy_rollout.serving.wire import Limits, WireError, unpack

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection


class RemotePolicy:
    """Asks a server that speaks openpi's protocol and declares its action convention, as ours does.

    A connection that broke is made anew by the next question. Raises `OSError` (`ConnectionError`, `TimeoutError`)
    where the server cannot be reached or does not answer in time, `RuntimeError` with the server's words where it
    refuses, `ValueError` for an address or a server that is not one of these.
    """

    def __init__(self, url: str, token: str | None = None, timeout: float = 10.0) -> None:
        if urlsplit(url).scheme not in ("ws", "wss") or not urlsplit(url).hostname:
            raise ValueError(f"server {url!r}: give an address such as ws://127.0.0.1:8000")
        bare = urlsplit(url).path in ("", "/")
        self.url = urlsplit(url)._replace(path="/openpi").geturl() if bare else url
        self._headers = {"Authorization": f"Bearer {token}"} if token else None
        self._timeout = timeout
        self._open = ExitStack()
        self._socket: ClientConnection | None = None
        about = self._connect()
        try:
            self.convention = ActionConvention(**about["action_convention"])
            self.act_step = int(about["act_step"])
            self.cameras: tuple[str, ...] = tuple(about["cameras"])
            self.model = str(about["model"])
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{url} does not say what its actions mean; it is no policy_rollout.serve") from None
        if self.act_step < 1 or any(camera not in CAMERAS for camera in self.cameras):
            raise ValueError(f"{url} declares cameras {self.cameras} and chunks of {self.act_step}")

    def reset(self) -> None:
        """The server keeps nothing of what was shown to it."""

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float32]:
        return np.stack([self._ask(observation) for observation in observations])

    def close(self) -> None:
        if self._socket is not None:
            self._open.close()
            self._socket = None

    def _ask(self, observation: Observation) -> NDArray[np.float32]:
        from policy_rollout.serving import openpi

        look = {camera: getattr(observation, camera) for camera in self.cameras}
        missing = [camera for camera, picture in look.items() if picture is None]
        if missing:
            raise ValueError(f"the model looks through {', '.join(self.cameras)}; the robot gives no {missing[0]}")
        answer = self._exchange(openpi.observation(look, observation.instruction))
        chunk = answer.get("actions") if isinstance(answer, dict) else None
        if not isinstance(chunk, np.ndarray) or chunk.shape != (self.act_step, ACTION_SIZE):
            raise RuntimeError(f"{self.url} answered with something that is no chunk of {self.act_step} actions")
        return np.asarray(chunk, dtype=np.float32)

    def _exchange(self, message: bytes) -> Any:
        from websockets.exceptions import ConnectionClosed

        if self._socket is None:
            self._connect()
        assert self._socket is not None
        try:
            self._socket.send(message)
            answer = self._socket.recv(self._timeout)
        except (ConnectionClosed, OSError) as error:
            self.close()  # an answer that comes late must not be taken for the next one
            raise ConnectionError(f"{self.url}: {type(error).__name__} while waiting for actions") from None
        if isinstance(answer, str):
            self.close()
            raise RuntimeError(f"{self.url} refuses: {answer[:500]}")
        return self._unpacked(answer)

    def _connect(self) -> Any:
        """Opens the connection; what the server says of itself."""
        from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
        from websockets.sync.client import connect

        try:
            connection = connect(
                self.url,
                additional_headers=self._headers,
                compression=None,
                max_size=Limits().message_bytes,
                open_timeout=self._timeout,
                close_timeout=1,
            )
            self._socket = self._open.enter_context(connection)
            about = self._socket.recv(self._timeout)
        except InvalidStatus as refusal:
            body = (refusal.response.body or b"").decode("utf-8", "replace").strip()
            code = refusal.response.status_code
            raise ConnectionError(f"{self.url} answers {code}: {body[:200]}") from None
        except (InvalidHandshake, ConnectionClosed, OSError) as error:
            self.close()
            raise ConnectionError(f"{self.url} cannot be reached: {error or type(error).__name__}") from None
        return self._unpacked(about.encode() if isinstance(about, str) else about)

    def _unpacked(self, data: bytes) -> Any:
        try:
            return unpack(data, Limits())
        except WireError as error:
            self.close()
            raise ValueError(f"{self.url}: {error}") from None

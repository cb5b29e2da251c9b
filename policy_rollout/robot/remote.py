"""A policy that runs elsewhere (`policy_rollout/serve.py`), seen from the robot's side. No torch is needed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from policy_rollout.policies.interface import CAMERAS, ActionConvention, Observation
from policy_rollout.serving.wire import Limits, WireError, unpack

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection


@dataclass(frozen=True)
class Contract:
    """What the actions of a server mean and what it needs to see. `image_shapes`: (height, width) of the frames that
    the model was trained on, by camera, as far as the server declares them."""

    convention: ActionConvention
    cameras: tuple[str, ...]
    act_step: int
    image_shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, about: Any, url: str) -> Contract:
        """Return the contract in a server's metadata. Raises `ValueError`."""
        try:
            contract = cls(
                ActionConvention(**about["action_convention"]),
                tuple(about["cameras"]),
                int(about["act_step"]),
                {str(name): tuple(map(int, shape)) for name, shape in about.get("image_shapes", {}).items()},
            )
        except (AttributeError, KeyError, TypeError, ValueError):
            raise ValueError(f"{url} does not say what its actions mean; it is no policy_rollout.serve") from None
        size = about.get("action_size", contract.convention.dim)
        if contract.act_step < 1 or any(camera not in CAMERAS for camera in contract.cameras):
            raise ValueError(f"{url} declares cameras {contract.cameras} and chunks of {contract.act_step}")
        if size != contract.convention.dim:
            raise ValueError(f"{url} declares actions of {size} numbers; expected {contract.convention.dim}")
        return contract

    def require_same(self, now: Contract, url: str) -> None:
        """Raise `ValueError` naming every field in which the contract of a later connection differs."""
        first, later = (_fields(contract) for contract in (self, now))
        differing = [f"{name} {first[name]} is now {later[name]}" for name in first if first[name] != later[name]]
        if differing:
            raise ValueError(f"{url} serves another model since the first connection: {'; '.join(differing)}")


def _fields(contract: Contract) -> dict[str, Any]:
    """Return the fields of a contract by name, those of the action convention one by one."""
    fields = asdict(contract)
    return {**fields.pop("convention"), **fields}


class RemotePolicy:
    """Asks a server that speaks openpi's protocol and declares its action convention, as ours does.

    A connection that broke is made anew by the next question. The server then has to declare the contract that it
    declared at first: after a restart with another model the same numbers may mean other motions.

    Raises `OSError` (`ConnectionError`, `TimeoutError`) where the server cannot be reached or does not answer in time,
    `RuntimeError` with the server's words where it refuses, `ValueError` for an address or a server that is not one of
    these, or whose contract has changed.
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
        self._contract: Contract | None = None
        self._connect()

    @property
    def contract(self) -> Contract:
        """What the server declared at the first connection, and at every later one."""
        assert self._contract is not None
        return self._contract

    @property
    def convention(self) -> ActionConvention:
        return self.contract.convention

    @property
    def act_step(self) -> int:
        return self.contract.act_step

    @property
    def cameras(self) -> tuple[str, ...]:
        return self.contract.cameras

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
        missing = [camera for camera, image in look.items() if image is None]
        if missing:
            raise ValueError(f"the model looks through {', '.join(self.cameras)}; the robot gives no {missing[0]}")
        answer = self._exchange(openpi.observation(look, observation.instruction))
        chunk = answer.get("actions") if isinstance(answer, dict) else None
        if not isinstance(chunk, np.ndarray) or chunk.shape != (self.act_step, self.convention.dim):
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

    def _connect(self) -> None:
        """Open the connection, and check what the server declares."""
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
        try:
            declared = Contract.of(self._unpacked(about.encode() if isinstance(about, str) else about), self.url)
            if self._contract is not None:
                self._contract.require_same(declared, self.url)
        except ValueError:
            self.close()  # the next question has to check again
            raise
        self._contract = declared

    def _unpacked(self, data: bytes) -> Any:
        try:
            return unpack(data, Limits())
        except WireError as error:
            self.close()
            raise ValueError(f"{self.url}: {error}") from None

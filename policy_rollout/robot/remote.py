"""Client of a policy server (`policy_rollout/serve.py`). Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from policy_rollout.policies.interface import CAMERAS, ActionConvention, Observation, StateLayout
from policy_rollout.serving.wire import Limits, WireError, unpack

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection


@dataclass(frozen=True)
class Contract:
    """The action convention of a server and the cameras that it reads. `image_shapes`: (height, width) of the training
    frames by camera, if the server declares them; `state`: the robot's state, None if the model does not read it."""

    convention: ActionConvention
    cameras: tuple[str, ...]
    act_step: int
    image_shapes: Mapping[str, tuple[int, ...]]
    state: StateLayout | None = None

    @classmethod
    def of(cls, metadata: Any, url: str) -> Contract:
        """Return the contract in a server's metadata. Raises `ValueError`."""
        try:
            state = metadata.get("state")
            contract = cls(
                ActionConvention(**metadata["action_convention"]),
                tuple(metadata["cameras"]),
                int(metadata["act_step"]),
                {str(name): tuple(map(int, shape)) for name, shape in metadata.get("image_shapes", {}).items()},
                None if state is None else StateLayout.from_json(state),
            )
        except (AttributeError, KeyError, TypeError, ValueError):
            raise ValueError(f"{url} declares no action convention; it is no policy_rollout.serve") from None
        if contract.act_step < 1 or any(camera not in CAMERAS for camera in contract.cameras):
            raise ValueError(f"{url} declares cameras {contract.cameras} and chunks of {contract.act_step}")
        size = metadata.get("action_size", contract.convention.dim)
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
    """A policy on a server with openpi's protocol that declares its action convention, as `policy_rollout.serve` does.

    A broken connection is opened again at the next call. The server then has to declare the same contract as before:
    after a restart with another model, the same numbers may mean other motions.

    Raises `OSError` (`ConnectionError`, `TimeoutError`) if the server cannot be reached or does not answer in time,
    `RuntimeError` with the server's message if it refuses an observation, `ValueError` for an invalid address, another
    kind of server, or a changed contract.
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
        """The contract that the server declared at every connection."""
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

    @property
    def state(self) -> StateLayout | None:
        return self.contract.state

    def reset(self) -> None:
        """Do nothing: the server keeps no state."""

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float32]:
        return np.stack([self._infer(observation) for observation in observations])

    def close(self) -> None:
        if self._socket is not None:
            self._open.close()
            self._socket = None

    def _infer(self, observation: Observation) -> NDArray[np.float32]:
        from policy_rollout.serving import openpi

        images = {camera: getattr(observation, camera) for camera in self.cameras}
        missing = [camera for camera, image in images.items() if image is None]
        if missing:
            raise ValueError(f"the model reads {', '.join(self.cameras)}; the robot has no {missing[0]}")
        state = None if self.state is None else self.state.check(observation.robot_obs, "robot_obs")
        answer = self._exchange(openpi.observation(images, observation.instruction, state))
        chunk = answer.get("actions") if isinstance(answer, dict) else None
        if not isinstance(chunk, np.ndarray) or chunk.shape != (self.act_step, self.convention.dim):
            raise RuntimeError(f"{self.url} returned something other than a chunk of {self.act_step} actions")
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
            self.close()  # a late answer must not be read as the next one
            raise ConnectionError(f"{self.url}: {type(error).__name__} while waiting for actions") from None
        if isinstance(answer, str):
            self.close()
            raise RuntimeError(f"{self.url} refuses: {answer[:500]}")
        return self._unpacked(answer)

    def _connect(self) -> None:
        """Open the connection and check the contract."""
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
            data = self._socket.recv(self._timeout)
        except InvalidStatus as refusal:
            body = (refusal.response.body or b"").decode("utf-8", "replace").strip()
            code = refusal.response.status_code
            raise ConnectionError(f"{self.url} returns status {code}: {body[:200]}") from None
        except (InvalidHandshake, ConnectionClosed, OSError) as error:
            self.close()
            raise ConnectionError(f"{self.url} cannot be reached: {error or type(error).__name__}") from None
        try:
            declared = Contract.of(self._unpacked(data.encode() if isinstance(data, str) else data), self.url)
            if self._contract is not None:
                self._contract.require_same(declared, self.url)
        except ValueError:
            self.close()  # the next call has to check again
            raise
        self._contract = declared

    def _unpacked(self, data: bytes) -> Any:
        try:
            return unpack(data, Limits())
        except WireError as error:
            self.close()
            raise ValueError(f"{self.url}: {error}") from None

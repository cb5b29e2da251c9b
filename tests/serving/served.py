"""A server in a thread, with a policy that says what it saw."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_rollout.policies.interface import ActionConvention, Observation
from policy_rollout.serving.server import Server, Settings

T = 4


class EchoPolicy:
    """Step t of a chunk is [first pixel / 1000, t, length of the instruction, 0, 0, 0, gripper].

    ``batches`` remembers how many were asked about together; ``seconds``: how long a forward takes.
    """

    def __init__(
        self,
        cameras: tuple[str, ...] = ("rgb_static",),
        convention: ActionConvention | None = None,
        gripper: float = 1.0,
    ) -> None:
        self.cameras = cameras
        self.act_step = T
        self.convention = convention or ActionConvention()
        self.gripper = gripper
        self.seconds = 0.0
        self.batches: list[int] = []
        self.broken: Exception | None = None

    def reset(self) -> None:
        pass

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float32]:
        self.batches.append(len(observations))
        time.sleep(self.seconds)
        if self.broken is not None:
            raise self.broken
        for observation in observations:
            if observation.instruction == "refuse me":
                raise ValueError("this observation is refused")
        chunks = np.zeros((len(observations), T, 7), dtype=np.float32)
        for chunk, observation in zip(chunks, observations, strict=True):
            chunk[:, 0] = observation.rgb_static[0, 0, 0] / 1000
            chunk[:, 1] = np.arange(T)
            chunk[:, 2] = len(observation.instruction)
            chunk[:, 6] = np.nan if observation.instruction == "nan" else self.gripper
        return chunks


class Served:
    """Where the server is, and what may be asked of it from the test's thread."""

    def __init__(self, policy: Any, settings: Settings, image_shapes: Any = None) -> None:
        self.policy = policy
        self._image_shapes = image_shapes
        self.lines: list[str] = []
        self._settings = settings
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.server = Server(self.policy, self._settings, image_shapes=self._image_shapes, log=self.lines.append)
        async with self.server:
            self.port = self.server.port
            self._ready.set()
            await self.server.run()

    def start(self) -> Served:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def stop(self) -> None:
        if not self._thread.is_alive():
            return
        self._loop.call_soon_threadsafe(self.server.stop)
        self._thread.join(20)
        assert not self._thread.is_alive()

    def url(self, path: str = "") -> str:
        return f"ws://127.0.0.1:{self.port}{path}"


@contextmanager
def serving(policy: Any | None = None, image_shapes: Any = None, **settings: Any) -> Iterator[Served]:
    """A server for the duration of a test, on a port that is free; ``settings`` as in ``Settings``."""
    chosen = replace(Settings(port=0, report_every=0), **settings)
    served = Served(EchoPolicy() if policy is None else policy, chosen, image_shapes).start()
    try:
        yield served
    finally:
        served.stop()


def image(value: int, size: tuple[int, int] = (24, 24)) -> NDArray[np.uint8]:
    """All pixels alike, so that jpeg keeps them."""
    return np.full((*size, 3), value, dtype=np.uint8)

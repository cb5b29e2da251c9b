"""Batch the observations of many clients into common forwards of one policy.

A batch starts when every open session has a pending observation, when the first one has waited for `max_wait` seconds,
or when `max_batch` are pending. A single client never waits. While a forward runs, the next batch is collected.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from policy_rollout.policies.action_chunking import ChunkPlayer
from policy_rollout.policies.interface import Observation, Policy
from policy_rollout.serving.request import Request
from policy_rollout.serving.wire import Limits

Chunk = NDArray[np.float32]


class PolicyError(RuntimeError):
    """The policy failed on a valid observation; the message is that of its error."""


@dataclass
class _Pending:
    observation: Observation
    chunk: asyncio.Future[Chunk] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batcher:
    """Runs a policy for any number of coroutines that await ``act``; ``run`` has to run as a task.

    ``sessions`` returns the number of open sessions; ``on_forward(batch size, seconds)`` is called after every forward.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        max_batch: int,
        max_wait: float,
        sessions: Callable[[], int],
        on_forward: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self.policy = policy
        self.max_batch = max_batch
        self.max_wait = max_wait
        self._sessions = sessions
        self._on_forward = on_forward
        self._pending: list[_Pending] = []
        self._added = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="policy")  # a policy is used from one thread only

    async def act(self, observation: Observation) -> Chunk:
        """Return the chunk [T, A]. Raises `ValueError` for an observation that the policy refuses, `PolicyError` if the
        policy fails."""
        pending = _Pending(observation)
        self._pending.append(pending)
        self._added.set()
        return await pending.chunk

    async def run(self) -> None:
        """Run batches until cancelled. Observations that are still pending then raise `PolicyError`."""
        batch: list[_Pending] = []
        try:
            while True:
                batch = await self._next_batch()
                started = time.perf_counter()
                await self._run_batch(batch)
                self._on_forward(len(batch), time.perf_counter() - started)
        finally:
            for pending in (*batch, *self._pending):
                if not pending.chunk.done():
                    pending.chunk.set_exception(PolicyError("the server stops"))
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _next_batch(self) -> list[_Pending]:
        while not self._pending:
            self._added.clear()
            await self._added.wait()
        until = time.perf_counter() + self.max_wait
        while len(self._pending) < min(self.max_batch, self._sessions()):
            self._added.clear()
            left = until - time.perf_counter()
            if left <= 0:
                break
            try:
                await asyncio.wait_for(self._added.wait(), left)
            except asyncio.TimeoutError:
                break
        batch, self._pending = self._pending[: self.max_batch], self._pending[self.max_batch :]
        return batch

    async def _run_batch(self, batch: Sequence[_Pending]) -> None:
        """Set the chunk of every observation. The observations of a refused batch are run one by one, so that only the
        invalid one fails; any other error fails the whole batch."""
        loop = asyncio.get_running_loop()
        try:
            observations = [pending.observation for pending in batch]
            chunks = await loop.run_in_executor(self._thread, self.policy.act, observations)
        except ValueError as refused:
            if len(batch) == 1:
                _set_result(batch[0], refused)
                return
            for pending in batch:
                await self._run_batch([pending])
            return
        except (RuntimeError, MemoryError) as failed:  # torch's own, out of memory included
            for pending in batch:
                _set_result(pending, PolicyError(f"the policy failed: {type(failed).__name__}: {failed}"[:500]))
            return
        for pending, chunk in zip(batch, chunks, strict=True):
            finite = bool(np.isfinite(chunk).all())
            _set_result(pending, chunk if finite else PolicyError("the policy returned numbers that are not finite"))


def _set_result(pending: _Pending, outcome: Chunk | Exception) -> None:
    if pending.chunk.done():  # the client has disconnected
        return
    if isinstance(outcome, Exception):
        pending.chunk.set_exception(outcome)
    else:
        pending.chunk.set_result(outcome)


class Session:
    """State of one vla-eval client: the chunk that is executed, and its instruction."""

    def __init__(self, batcher: Batcher, player: ChunkPlayer, limits: Limits) -> None:
        self._batcher, self._player, self._limits = batcher, player, limits
        self._instruction: str | None = None

    def restart(self) -> None:
        """Discard the chunk, so that no action of a previous instruction or episode is executed."""
        self._player.reset()
        self._instruction = None

    async def act(self, request: Request) -> NDArray[np.float32]:
        """Return the action [A] for this observation, in the policy's units.

        Images are decoded only if a new chunk is needed. Raises as `Batcher.act` does, and `WireError`; the next
        request then gets a new chunk.
        """
        if request.restart or request.instruction != self._instruction:
            self.restart()
        if self._player.needs_chunk:
            observation = await asyncio.to_thread(request.observation, self._limits)
            self._player.add_chunk(await self._batcher.act(observation))
        self._instruction = request.instruction
        return self._player.next_action()

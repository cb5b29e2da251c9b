"""One policy for many clients: who asks at about the same time is answered by the same forward.

A question waits until every session that is open has asked, or `max_wait` seconds have gone by since the first one, or
`max_batch` are there. Alone, a client never waits. While a forward runs, the questions of the next one gather.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from policy_rollout.policies.interface import Observation, Policy

Chunk = NDArray[np.float32]


class PolicyError(RuntimeError):
    """The policy failed on an observation that was in order; its own words are the message."""


@dataclass
class _Question:
    observation: Observation
    answer: asyncio.Future[Chunk] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batcher:
    """``act(observation)`` from any number of coroutines; ``run()`` answers until it is cancelled.

    ``sessions`` tells how many may ask at all; ``ran(batch size, seconds)`` hears of every forward.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        max_batch: int,
        max_wait: float,
        sessions: Callable[[], int],
        ran: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self.policy = policy
        self.max_batch = max_batch
        self.max_wait = max_wait
        self._sessions = sessions
        self._ran = ran
        self._questions: list[_Question] = []
        self._asked = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="policy")  # a policy is asked from one thread only

    async def act(self, observation: Observation) -> Chunk:
        """The chunk [T, A]. Raises `ValueError` for an observation that the policy refuses, `PolicyError` where it
        fails."""
        question = _Question(observation)
        self._questions.append(question)
        self._asked.set()
        return await question.answer

    async def run(self) -> None:
        """Answers questions. Ends only by being cancelled, or by a mistake of ours; then whoever waits is told."""
        batch: list[_Question] = []
        try:
            while True:
                batch = await self._gather()
                started = time.perf_counter()
                await self._answer(batch)
                self._ran(len(batch), time.perf_counter() - started)
        finally:
            for question in (*batch, *self._questions):
                if not question.answer.done():
                    question.answer.set_exception(PolicyError("the server stops"))
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _gather(self) -> list[_Question]:
        while not self._questions:
            self._asked.clear()
            await self._asked.wait()
        until = time.perf_counter() + self.max_wait
        while len(self._questions) < min(self.max_batch, self._sessions()):
            self._asked.clear()
            left = until - time.perf_counter()
            if left <= 0:
                break
            try:
                await asyncio.wait_for(self._asked.wait(), left)
            except asyncio.TimeoutError:
                break
        batch, self._questions = self._questions[: self.max_batch], self._questions[self.max_batch :]
        return batch

    async def _answer(self, batch: Sequence[_Question]) -> None:
        """Sets every answer. A refused batch is asked again one by one, so that one bad observation harms nobody else;
        a policy that fails in any other way fails for all of them."""
        loop = asyncio.get_running_loop()
        try:
            chunks = await loop.run_in_executor(self._thread, self.policy.act, [q.observation for q in batch])
        except ValueError as refused:
            if len(batch) == 1:
                _settle(batch[0], refused)
                return
            for question in batch:
                await self._answer([question])
            return
        except (RuntimeError, MemoryError) as failed:  # torch's own, out of memory included
            for question in batch:
                _settle(question, PolicyError(f"the policy failed: {type(failed).__name__}: {failed}"[:500]))
            return
        for question, chunk in zip(batch, chunks, strict=True):
            finite = bool(np.isfinite(chunk).all())
            _settle(question, chunk if finite else PolicyError("the policy answered with numbers that are not finite"))


def _settle(question: _Question, outcome: Chunk | Exception) -> None:
    if question.answer.done():  # whoever asked is gone
        return
    if isinstance(outcome, Exception):
        question.answer.set_exception(outcome)
    else:
        question.answer.set_result(outcome)

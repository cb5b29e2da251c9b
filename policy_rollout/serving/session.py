"""What the server remembers of one vla-eval client: the chunk that is being played, and for which instruction."""

from __future__ import annotations

import asyncio

import numpy as np
from numpy.typing import NDArray

from policy_rollout.policies.action_chunking import ChunkPlayer
from policy_rollout.serving.batching import Batcher
from policy_rollout.serving.request import NeedsChunk
from policy_rollout.serving.wire import Limits


class Session:
    """One robot in one world. No other session sees its chunks."""

    def __init__(self, batcher: Batcher, player: ChunkPlayer, limits: Limits) -> None:
        self._batcher = batcher
        self._player = player
        self._limits = limits
        self._instruction: str | None = None

    def restart(self) -> None:
        """No action of an old instruction or episode may be played for a new one."""
        self._player.reset()
        self._instruction = None

    async def act(self, look: NeedsChunk) -> NDArray[np.float32]:
        """The action [A] for this moment, in the policy's units.

        Images are decoded only when the chunk is played out. Raises as `Batcher.act` does, and `WireError`; the next
        look is then answered by a new plan.
        """
        if look.restart or look.instruction != self._instruction:
            self.restart()
        if self._player.wants_plan:
            observation = await asyncio.to_thread(look.observation, self._limits)
            self._player.plan(await self._batcher.act(observation))
        self._instruction = look.instruction
        return self._player.next_action()

"""Execute action chunks one control step at a time.

A policy returns T actions for an observation. `ChunkPlayer` decides how many of them are executed before the policy
gets a new observation (`replan_every`), and whether overlapping chunks are averaged (temporal ensembling). Evaluation,
serving and the robot client all execute chunks through it.

Shape letters: T actions per chunk, A action size.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Actions = NDArray[np.float32]


class ChunkPlayer:
    """The chunks of one robot, and which of their actions comes next.

    `replan_every`  actions executed before `needs_chunk` is true again, 1..T (default T: execute each chunk fully).
    `ensemble`      None: only the newest chunk is executed. A number m >= 0: the action for a step is the weighted mean
                    of the actions of all chunks that cover the step, with weight exp(-m * i) for the i-th oldest (ACT's
                    temporal ensembling, Zhao et al. 2023; m = 0 is the plain mean).
    """

    def __init__(self, act_step: int, replan_every: int | None = None, ensemble: float | None = None) -> None:
        if act_step < 1:
            raise ValueError(f"act_step must be at least 1, got {act_step}")
        replan_every = act_step if replan_every is None else replan_every
        if not 1 <= replan_every <= act_step:
            raise ValueError(f"replan_every must lie in 1..act_step ({act_step}), got {replan_every}")
        if ensemble is not None and not 0 <= ensemble < float("inf"):
            raise ValueError(f"ensemble must be a number of at least 0 (or None for none), got {ensemble}")
        self.act_step = act_step
        self.replan_every = replan_every
        self.ensemble = ensemble
        self.reset()

    def reset(self) -> None:
        """Discard all chunks. Call it when the episode restarts or the instruction changes, so that no action for the
        previous instruction is executed for the next one."""
        self._step = 0
        self._observed_at: int | None = None  # the step whose observation the newest chunk is for
        self._chunks: list[tuple[int, Actions]] = []  # (step of its first action, chunk), oldest first

    @property
    def needs_chunk(self) -> bool:
        """True if a new chunk has to be added before the next action."""
        return self._observed_at is None or self._step - self._observed_at >= self.replan_every

    def add_chunk(self, chunk: Actions, age: int = 0) -> None:
        """Add the policy's chunk [T, A] for the current observation.

        `age`: number of actions executed since that observation. The first `age` actions of the chunk are skipped.
        """
        if chunk.ndim != 2 or chunk.shape[0] != self.act_step:
            raise ValueError(f"a chunk must be [{self.act_step}, A], got {list(chunk.shape)}")
        if not 0 <= age < self.act_step:
            raise ValueError(f"age must lie in 0..{self.act_step - 1}: an older chunk has no action left; got {age}")
        if self.ensemble is None:
            self._chunks.clear()
        self._chunks.append((self._step - age, np.asarray(chunk, dtype=np.float32)))
        self._observed_at = self._step - age

    def next_action(self) -> Actions:
        """Return the action [A] for the next control step."""
        if self.needs_chunk:
            raise RuntimeError("no action is left: call add_chunk() before next_action()")
        self._chunks = [(start, chunk) for start, chunk in self._chunks if self._step - start < self.act_step]
        proposals = np.stack([chunk[self._step - start] for start, chunk in self._chunks])  # [chunks, A], oldest first
        self._step += 1
        if self.ensemble is None:
            return np.array(proposals[-1])
        weights = np.exp(-self.ensemble * np.arange(len(proposals)))
        return np.asarray(weights / weights.sum() @ proposals, dtype=np.float32)

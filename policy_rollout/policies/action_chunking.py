"""Plays a policy's action chunks one control step at a time.

A policy answers an observation with T actions. How many of them are executed before it looks again
(`replan_every`), and whether older plans still have a say (temporal ensembling), is decided here and nowhere else:
rollout, serving and one's own robot all play chunks through `ChunkPlayer`.

Shape letters: T actions per chunk, A action size.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Actions = NDArray[np.float32]


class ChunkPlayer:
    """One robot's playback state.

    `replan_every`  actions executed before `wants_plan` asks for a new chunk, 1..T (default T: play each chunk out).
    `ensemble`      None: the newest chunk alone is played. A number m >= 0: the action for a step is the weighted
                    mean of what every chunk that covers the step proposes for it, with weight exp(-m * i) for the
                    i-th oldest (ACT's rule, Zhao et al. 2023; m = 0 is the plain mean).
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
        """Forgets every plan. Call it when the episode restarts or the instruction changes: no action of an old
        instruction may be played for a new one."""
        self._step = 0
        self._planned_at: int | None = None  # the step whose observation the newest plan answers
        self._plans: list[tuple[int, Actions]] = []  # (step of its first action, chunk), oldest first

    @property
    def wants_plan(self) -> bool:
        """True when the next action must come from a chunk that has not been given yet."""
        return self._planned_at is None or self._step - self._planned_at >= self.replan_every

    def plan(self, chunk: Actions, age: int = 0) -> None:
        """Takes the policy's answer to what the robot sees now; `chunk` is [T, A].

        `age`: how many actions were played while the policy was thinking. That many of the chunk's first ones are for
        moments that have passed, and are skipped.
        """
        if chunk.ndim != 2 or chunk.shape[0] != self.act_step:
            raise ValueError(f"a chunk must be [{self.act_step}, A], got {list(chunk.shape)}")
        if not 0 <= age < self.act_step:
            raise ValueError(f"age must lie in 0..{self.act_step - 1}: of an older chunk nothing is left; got {age}")
        if self.ensemble is None:
            self._plans.clear()
        self._plans.append((self._step - age, np.asarray(chunk, dtype=np.float32)))
        self._planned_at = self._step - age

    def next_action(self) -> Actions:
        """The action [A] for the coming control step."""
        if self.wants_plan:
            raise RuntimeError("the chunk is played out: give plan() a new one before next_action()")
        self._plans = [(start, chunk) for start, chunk in self._plans if self._step - start < self.act_step]
        proposals = np.stack([chunk[self._step - start] for start, chunk in self._plans])  # [plans, A], oldest first
        self._step += 1
        if self.ensemble is None:
            return np.array(proposals[-1])
        weights = np.exp(-self.ensemble * np.arange(len(proposals)))
        return np.asarray(weights / weights.sum() @ proposals, dtype=np.float32)

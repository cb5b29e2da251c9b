"""Who watches chains as they are played: the seam between the closed loop and films, images, tables."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from policy_rollout.closed_loop.env_slot import ChainJob, ChainRecord
from policy_rollout.policies.action_chunking import Actions
from policy_rollout.policies.interface import Observation


class Recorder(Protocol):
    """Called in the process that holds the policy, wherever the worlds are. The calls about one chain come in their
    order; chains that are played side by side take turns. ``place`` counts the tasks of a chain from 0, ``step`` the
    control steps of a task."""

    @property
    def film_every(self) -> int:
        """Of every so many control steps one is filmed; the last one of a task always is."""
        ...

    def wants(self, job: ChainJob) -> bool:
        """Whether the other calls are made for this chain. Asked once, when it begins."""
        ...

    def began(self, job: ChainJob) -> None:
        """The chain begins. A second time where its process broke down: forget what was seen of the first."""
        ...

    def looked(self, job: ChainJob, place: int, step: int, observation: Observation, chunk: Actions) -> None:
        """Before control step ``step`` the policy saw ``observation`` and answered ``chunk`` [T, A]."""
        ...

    def filmed(self, job: ChainJob, place: int, step: int, image: NDArray[np.uint8]) -> None:
        """The static camera (uint8 HWC) after control step ``step``, the first of a task being 0."""
        ...

    def ended(self, job: ChainJob, record: ChainRecord) -> None:
        """What became of the chain."""
        ...

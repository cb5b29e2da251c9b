"""CALVIN's long-horizon evaluation: tasks in sequence, without a reset in between, until one of them fails.

Several environments run in parallel, in this process or in worker processes. The policy runs in this process, with one
forward for all environments that need a chunk. The outcome of a chain depends neither on its slot nor on the chains of
other slots. An environment renders only the policy's cameras, and only when the policy needs an observation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.constants import CALVIN_MAX_STEPS
from policy_rollout.closed_loop.env_slot import EnvSlots, LocalSlots, NeedsChunk, SlotEvent, SlotSettings, WorkerCrashed
from policy_rollout.closed_loop.env_worker import WorkerSlots
from policy_rollout.closed_loop.interface import ChainJob, ChainRecord, EnvFactory, PolicyCall, Recorder
from policy_rollout.policies.interface import (
    ImagePredictor,
    Observation,
    Policy,
    require_calvin_state,
    require_same_convention,
)

MAX_ATTEMPTS = 2
"""How often a chain is started whose worker process crashes in it."""

OnRecord = Callable[[ChainRecord], None]


def run_chains(
    factory: EnvFactory,
    policy: Policy,
    jobs: Iterable[ChainJob],
    on_record: OnRecord,
    *,
    max_steps: int = CALVIN_MAX_STEPS,
    replan_every: int | None = None,
    ensemble: float | None = None,
    parallel: int = 8,
    workers: int = 0,
    recorder: Recorder | None = None,
) -> None:
    """Run every chain once and call ``on_record`` with each record.

    ``jobs``       are read one by one, when a slot is free.
    ``parallel``   number of environments; in ``workers`` processes, or in this one if 0.
    ``recorder``   receives frames and outcomes; ``replan_every``, ``ensemble``: see ``ChunkPlayer``.

    Raises ``ValueError`` if the action conventions of policy and environment differ, if the policy reads another state
    than CALVIN's, and if a worker process crashed twice in the same chain.
    """
    require_same_convention(policy.convention, factory.convention, "the environment")
    require_calvin_state(policy, "the environment")
    policy.reset()
    cameras = tuple(name.removeprefix("rgb_") for name in policy.cameras)
    frame_interval = recorder.frame_interval if recorder is not None else 1
    settings = SlotSettings(policy.act_step, cameras, max_steps, replan_every, ensemble, frame_interval)
    settings.make_player()  # raises before any environment is made
    slots: EnvSlots
    slots = WorkerSlots(factory, settings, parallel, workers) if workers else LocalSlots(factory, settings, parallel)
    try:
        _ChainRunner(slots, policy, iter(jobs), on_record, recorder).run()
    finally:
        slots.close()


@dataclass
class _Chain:
    """A chain in a slot. ``recorder``: None if the chain is not recorded."""

    job: ChainJob
    recorder: Recorder | None
    crashes: int = 0


class _ChainRunner:
    """The loop: one forward for all slots that need a chunk, and the next chain for every slot that is free."""

    def __init__(
        self, slots: EnvSlots, policy: Policy, jobs: Iterator[ChainJob], on_record: OnRecord, recorder: Recorder | None
    ) -> None:
        self.slots, self.policy, self.jobs, self.on_record, self.recorder = slots, policy, jobs, on_record, recorder
        self.chains: dict[int, _Chain] = {}
        self.waiting: dict[int, NeedsChunk] = {}

    def run(self) -> None:
        for slot in range(self.slots.count):
            self._start_next(slot)
        while self.chains:
            # One forward for all slots that are ready; slots that still act are not waited for.
            while events := self.slots.events(wait=not self.waiting):
                for slot, event in events:
                    self._handle(slot, event)
            self._run_policy()

    def _start_next(self, slot: int) -> None:
        job = next(self.jobs, None)
        if job is not None:
            selected = self.recorder is not None and self.recorder.selects(job)
            self.chains[slot] = _Chain(job, self.recorder if selected else None)
            self._start(slot)

    def _start(self, slot: int) -> None:
        chain = self.chains[slot]
        if chain.recorder is not None:
            chain.recorder.start_chain(chain.job)
        self.slots.start(slot, chain.job, chain.recorder is not None)

    def _handle(self, slot: int, event: SlotEvent) -> None:
        chain = self.chains[slot]
        if isinstance(event, WorkerCrashed):
            self.waiting.pop(slot, None)
            self._retry(slot, event)
            return
        if chain.recorder is not None:
            for frame in event.frames:
                chain.recorder.add_frame(chain.job, frame.task_index, frame.step, frame.image)
        if isinstance(event, NeedsChunk):
            self.waiting[slot] = event
            return
        if chain.recorder is not None:
            chain.recorder.finish_chain(chain.job, event.record)
        self.on_record(event.record)
        del self.chains[slot]
        self._start_next(slot)

    def _retry(self, slot: int, crash: WorkerCrashed) -> None:
        chain = self.chains[slot]
        chain.crashes += crash.in_this_chain
        if chain.crashes >= MAX_ATTEMPTS:
            raise ValueError(
                f"chain {chain.job.index} ({', '.join(chain.job.tasks)}): its worker process crashed {chain.crashes} "
                f"times in this chain; end of its output: {crash.output}"
            )
        self._start(slot)

    def _run_policy(self) -> None:
        """Run one forward for all waiting slots."""
        if not self.waiting:
            return
        waiting, self.waiting = self.waiting, {}
        recorders = [self.chains[slot].recorder for slot in waiting]
        wanted = any(recorder is not None and recorder.wants_codes for recorder in recorders)
        chunks, codes = self._act([event.observation for event in waiting.values()], wanted)
        for row, (slot, event) in enumerate(waiting.items()):
            chain, expected = self.chains[slot], None if codes is None else codes[row]
            if chain.recorder is not None:
                call = PolicyCall(event.task_index, event.step, event.observation, chunks[row], expected)
                chain.recorder.add_call(chain.job, call)
            self.slots.execute(slot, chunks[row])

    def _act(
        self, observations: Sequence[Observation], want_codes: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
        """Return chunks and, if they are wanted and the policy predicts images, predicted image codes."""
        if want_codes and isinstance(self.policy, ImagePredictor):
            return self.policy.act_with_codes(observations)
        return self.policy.act(observations), None

"""CALVIN's long-horizon evaluation: tasks one after the other, the world never put back, until one of them fails.

Several environments run side by side, in this process or in worker processes, and the policy is asked in this one about
all that wait for it at once, so that one forward serves many chains. Which environment plays a chain, and beside which
others, does not change its outcome. An environment renders only when the policy looks at it, and only what the policy
sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from policy_rollout.closed_loop.env_slot import MAX_STEPS as MAX_STEPS
from policy_rollout.closed_loop.env_slot import ChainJob as ChainJob
from policy_rollout.closed_loop.env_slot import ChainRecord as ChainRecord
from policy_rollout.closed_loop.env_slot import LocalSeats, NeedsChunk, Rules, Seats, SlotEvent, WorkerCrashed, World
from policy_rollout.closed_loop.env_worker import WorkerSeats
from policy_rollout.closed_loop.recorder import Recorder
from policy_rollout.policies.interface import ActionConvention, Policy, require_same_convention

TRIES = 2
"""How often a chain is begun whose process breaks down in its midst."""

Finished = Callable[[ChainRecord], None]


class Arena(World, Protocol):
    """A world that says what it does with an action. Every ``policy_rollout.benchmarks.base.Benchmark`` is one."""

    @property
    def convention(self) -> ActionConvention: ...


def run_chains(
    world: Arena,
    policy: Policy,
    jobs: Iterable[ChainJob],
    finished: Finished,
    *,
    max_steps: int = MAX_STEPS,
    replan_every: int | None = None,
    ensemble: float | None = None,
    parallel: int = 8,
    workers: int = 0,
    recorder: Recorder | None = None,
) -> None:
    """Plays every chain once. ``finished`` hears each record as it is made.

    ``jobs``       taken one by one, when an environment is free for it.
    ``parallel``   environments side by side; ``workers`` processes hold them, or this one for 0.
    ``recorder``   watches; ``replan_every``, ``ensemble``: see ``ChunkPlayer``.

    Raises ``ValueError`` where the policy's actions mean something else than the world's, and where a chain's worker
    process has broken down twice in its midst.
    """
    require_same_convention(policy.convention, world.convention, "the environment")
    policy.reset()
    cameras = tuple(name.removeprefix("rgb_") for name in policy.cameras)
    film_every = recorder.film_every if recorder is not None else 1
    rules = Rules(policy.act_step, cameras, max_steps, replan_every, ensemble, film_every)
    rules.player()  # refuses wrong numbers before anything is started
    seats: Seats = WorkerSeats(world, rules, parallel, workers) if workers else LocalSeats(world, rules, parallel)
    try:
        _Round(seats, policy, iter(jobs), finished, recorder).play()
    finally:
        seats.close()


@dataclass
class _Chain:
    """A chain in a seat."""

    job: ChainJob
    watched: bool
    breakdowns: int = 0


class _Round:
    """The loop: who waits for a chunk is asked about, who is done gets the next chain."""

    def __init__(
        self, seats: Seats, policy: Policy, jobs: Iterator[ChainJob], finished: Finished, recorder: Recorder | None
    ) -> None:
        self.seats, self.policy, self.jobs, self.finished, self.recorder = seats, policy, jobs, finished, recorder
        self.playing: dict[int, _Chain] = {}
        self.waiting: dict[int, NeedsChunk] = {}

    def play(self) -> None:
        for seat in range(self.seats.count):
            self._next(seat)
        while self.playing:
            # All that is ready is asked about together, but nobody waits for those that still act.
            while moments := self.seats.ready(wait=not self.waiting):
                for seat, moment in moments:
                    self._hear(seat, moment)
            self._answer()

    def _next(self, seat: int) -> None:
        job = next(self.jobs, None)
        if job is not None:
            self.playing[seat] = _Chain(job, self.recorder is not None and self.recorder.wants(job))
            self._begin(seat)

    def _begin(self, seat: int) -> None:
        chain = self.playing[seat]
        if self.recorder is not None and chain.watched:
            self.recorder.began(chain.job)
        self.seats.begin(seat, chain.job, chain.watched)

    def _hear(self, seat: int, moment: SlotEvent) -> None:
        chain = self.playing[seat]
        if isinstance(moment, WorkerCrashed):
            self.waiting.pop(seat, None)
            self._again(seat, moment)
            return
        if self.recorder is not None and chain.watched:
            for shot in moment.shots:
                self.recorder.filmed(chain.job, shot.place, shot.step, shot.image)
        if isinstance(moment, NeedsChunk):
            self.waiting[seat] = moment
            return
        if self.recorder is not None and chain.watched:
            self.recorder.ended(chain.job, moment.record)
        self.finished(moment.record)
        del self.playing[seat]
        self._next(seat)

    def _again(self, seat: int, lost: WorkerCrashed) -> None:
        chain = self.playing[seat]
        chain.breakdowns += lost.by_it
        if chain.breakdowns >= TRIES:
            raise ValueError(
                f"chain {chain.job.index} ({', '.join(chain.job.tasks)}): the process of its environment broke down "
                f"{chain.breakdowns} times in its midst; its last words: {lost.last_words}"
            )
        self._begin(seat)

    def _answer(self) -> None:
        """One forward for all that wait."""
        if not self.waiting:
            return
        asked, self.waiting = self.waiting, {}
        chunks = self.policy.act([look.observation for look in asked.values()])
        for (seat, look), chunk in zip(asked.items(), chunks, strict=True):
            chain = self.playing[seat]
            if self.recorder is not None and chain.watched:
                self.recorder.looked(chain.job, look.place, look.step, look.observation, chunk)
            self.seats.plan(seat, chunk)

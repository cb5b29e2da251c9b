"""What a closed loop benchmark is, and how one is found.

A benchmark is a module of this package with a function ``from_settings(settings) -> Benchmark``; its name is the value
of ``environment`` in ``policy_conf/calvin_evaluate_upvla.yaml``. There is no list to add it to.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Protocol

import policy_rollout.benchmarks as package
from policy_rollout.calvin.initial_states import initial_state
from policy_rollout.calvin.instructions import validation_instruction
from policy_rollout.calvin.sequences import official_sequences
from policy_rollout.closed_loop.interface import ChainJob, Env, Oracle
from policy_rollout.policies.interface import ActionConvention

Settings = Mapping[str, Any]
"""The keys of ``policy_conf/calvin_evaluate_upvla.yaml``."""


class Benchmark(Protocol):
    """Chains of tasks, a world to play them in, and a judge. Make it a frozen dataclass of plain values: it is pickled
    and sent to worker processes, which make the environments. Whatever is heavy is imported where it is used."""

    @property
    def name(self) -> str: ...

    @property
    def convention(self) -> ActionConvention:
        """What its environments do with an action; the policy's has to be the same."""
        ...

    @property
    def envs_per_process(self) -> int | None:
        """How many of its environments one process can hold; None: as many as wanted."""
        ...

    def stamp(self) -> dict[str, Any]:
        """All that its outcomes depend on, as JSON: scene, renderer, sizes, versions. Goes into the results'
        settings; records of two stamps do not mix."""
        ...

    def jobs(self, count: int) -> list[ChainJob]:
        """The first ``count`` chains; fewer are a prefix of more. ``ValueError`` where there are not so many."""
        ...

    def make_env(self) -> Env:
        """One environment, of its own in whichever process calls this."""
        ...

    def oracle(self) -> Oracle: ...


def find_benchmark(settings: Settings) -> Benchmark:
    """The one that ``settings["environment"]`` names. Raises ``ValueError`` in one line naming key and value."""
    wanted = str(settings["environment"])
    make = _factory(wanted) if wanted.isidentifier() else None
    if make is None:
        raise ValueError(f"environment={wanted}: allowed are {', '.join(benchmark_names())}")
    return make(settings)


def benchmark_names() -> tuple[str, ...]:
    """Every closed loop benchmark there is."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(package.__path__) if _factory(module.name)))


def _factory(name: str) -> Callable[[Settings], Benchmark] | None:
    if all(module.name != name for module in pkgutil.iter_modules(package.__path__)):
        return None
    found: Callable[[Settings], Benchmark] | None
    found = getattr(import_module(f"{package.__name__}.{name}"), "from_settings", None)
    return found


def official_jobs(count: int) -> list[ChainJob]:
    """The first of CALVIN's official chains, with their initial states and held-out sentences."""
    jobs = []
    for index, chain in enumerate(official_sequences(count)):
        robot, scene = initial_state(chain.state)
        jobs.append(ChainJob(index, chain.tasks, tuple(map(validation_instruction, chain.tasks)), robot, scene))
    return jobs

"""Interface and registry of closed-loop benchmarks.

A benchmark is a module of this package with a function ``from_settings(settings) -> Benchmark``; its name is the value
of ``environment`` in ``policy_conf/calvin_evaluate_upvla.yaml``. No list needs an entry.
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
    """Chains of tasks, their environment and their oracle. Implement it as a frozen dataclass of plain values: it is
    pickled and sent to worker processes, which make the environments. Import heavy modules where they are used."""

    @property
    def name(self) -> str: ...

    @property
    def convention(self) -> ActionConvention:
        """What its environments do with an action; the policy's convention has to be equal."""
        ...

    @property
    def envs_per_process(self) -> int | None:
        """Largest number of its environments in one process; None: no limit."""
        ...

    def stamp(self) -> dict[str, Any]:
        """Return all that its outcomes depend on, as JSON: scene, renderer, sizes, versions.

        It is part of the results' settings; records of different stamps are not mixed.
        """
        ...

    def jobs(self, count: int) -> list[ChainJob]:
        """Return the first ``count`` chains. Raises ``ValueError`` if there are not so many."""
        ...

    def make_env(self) -> Env:
        """Return a new environment in the calling process."""
        ...

    def oracle(self) -> Oracle: ...


def find_benchmark(settings: Settings) -> Benchmark:
    """Return the benchmark ``settings["environment"]``. Raises ``ValueError`` in one line naming key and value."""
    name = str(settings["environment"])
    make = _factory(name) if name.isidentifier() else None
    if make is None:
        raise ValueError(f"environment={name}: allowed are {', '.join(benchmark_names())}")
    return make(settings)


def benchmark_names() -> tuple[str, ...]:
    """Return the names of all closed-loop benchmarks."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(package.__path__) if _factory(module.name)))


def _factory(name: str) -> Callable[[Settings], Benchmark] | None:
    if all(module.name != name for module in pkgutil.iter_modules(package.__path__)):
        return None
    found: Callable[[Settings], Benchmark] | None
    found = getattr(import_module(f"{package.__name__}.{name}"), "from_settings", None)
    return found


def official_jobs(count: int) -> list[ChainJob]:
    """Return the first of CALVIN's official chains, with initial states and instructions."""
    jobs = []
    for index, chain in enumerate(official_sequences(count)):
        robot, scene = initial_state(chain.state)
        jobs.append(ChainJob(index, chain.tasks, tuple(map(validation_instruction, chain.tasks)), robot, scene))
    return jobs

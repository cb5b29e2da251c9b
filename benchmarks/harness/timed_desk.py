"""The desk with the CPU time of its parts. Imports no network, because worker processes import it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from policy_rollout.benchmarks.desk import DeskBenchmark
from policy_rollout.closed_loop.interface import Env, Oracle
from policy_rollout.policies.interface import ActionConvention

RENDERING, PHYSICS, ORACLE = "pictures", "physics", "oracle"
"""Keys of the recorded times."""


@dataclass
class Clock:
    """CPU seconds of this process, by part. Within a timed part no other part is timed."""

    spent: dict[str, float] = field(default_factory=dict)
    running: bool = False

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        began, self.running = time.process_time(), True
        yield
        self.running = False
        self.spent[part] = self.spent.get(part, 0.0) + time.process_time() - began

    def time_method(self, owner: object, method: str, part: str, **fixed: Any) -> None:
        """Replace a method of an object by one that is timed and called with the keyword arguments ``fixed``.

        Calls within a timed part are not changed.
        """
        original: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self.running:
                return original(*args, **kwargs)
            with self.of(part):
                return original(*args, **{**kwargs, **fixed})

        setattr(owner, method, timed)


class _Shared:
    """The clock of the latest environment, which the oracle of the same slot shares."""

    clock = Clock()


@dataclass(frozen=True)
class TimedDesk:
    """The desk benchmark with timed parts. An environment writes its times to a file in ``folder`` when it is closed.

    ``eager``: render both cameras at every control step.
    """

    folder: Path
    eager: bool = False
    desk = DeskBenchmark()
    convention = ActionConvention()

    def make_env(self) -> Env:
        env: Any = self.desk.make_env()
        clock, born, close = Clock(), time.process_time(), env.close
        for method in ("reset", "get_info"):
            clock.time_method(env, method, PHYSICS)
        clock.time_method(env, "step", PHYSICS, render=False)
        clock.time_method(env, "get_obs", RENDERING, **({"render": True} if self.eager else {}))
        move = env.step

        def step_and_render(*args: Any, **kwargs: Any) -> Any:
            result = move(*args, **kwargs)
            env.get_obs()
            return result

        def write_and_close() -> None:
            close()
            times = {**clock.spent, "born": born, "process": os.getpid()}
            (self.folder / f"{os.getpid()}-{id(env)}.json").write_text(json.dumps(times), encoding="utf-8")

        if self.eager:
            env.step = step_and_render
        env.close = write_and_close
        _Shared.clock = clock
        made: Env = env
        return made

    def oracle(self) -> Oracle:
        oracle = self.desk.oracle()
        _Shared.clock.time_method(oracle, "tasks_done", ORACLE)
        return oracle

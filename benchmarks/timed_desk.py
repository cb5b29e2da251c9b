"""The desk with a clock in each of its parts. Loads no network: worker processes import it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from policy_rollout.benchmarks.desk import DeskBenchmark
from policy_rollout.closed_loop.interface import Env, Info, Oracle, Render
from policy_rollout.policies.interface import ActionConvention

IMAGES, PHYSICS, ORACLE = "pictures", "physics", "oracle"


@dataclass
class Clock:
    """CPU seconds of this process by part."""

    spent: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        began = time.process_time()
        yield
        self.spent[part] = self.spent.get(part, 0.0) + time.process_time() - began


@dataclass
class TimedEnv:
    """An environment that notes what drawing and acting take; told to by ``eager``, it draws all that it can at every
    step. What it noted goes to a file of ``folder`` when it is closed."""

    env: Env
    eager: bool
    folder: Path
    born: float = field(default_factory=time.process_time)
    clock: Clock = field(default_factory=Clock)

    def reset(self, robot_obs: NDArray[Any] | None = None, scene_obs: NDArray[Any] | None = None) -> dict[str, Any]:
        with self.clock.of(PHYSICS):
            return self.env.reset(robot_obs=robot_obs, scene_obs=scene_obs)

    def step(self, action: NDArray[Any], render: Render = True) -> tuple[dict[str, Any], Any, bool, Info]:
        with self.clock.of(PHYSICS):
            done = self.env.step(action, render=False)
        if self.eager:
            self.get_obs(True)
        return done

    def get_obs(self, render: Render = True) -> dict[str, Any]:
        with self.clock.of(IMAGES):
            return self.env.get_obs(render=True if self.eager else render)

    def get_info(self) -> Info:
        with self.clock.of(PHYSICS):
            return self.env.get_info()

    def close(self) -> None:
        self.env.close()
        name = f"{os.getpid()}-{id(self)}.json"
        (self.folder / name).write_text(
            json.dumps({**self.clock.spent, "born": self.born, "process": os.getpid()}), encoding="utf-8"
        )


@dataclass
class TimedOracle:
    oracle: Oracle
    clock: Clock

    def tasks_done(self, start_info: Info, end_info: Info, among: Collection[str] | None = None) -> set[str]:
        with self.clock.of(ORACLE):
            return self.oracle.tasks_done(start_info, end_info, among)


class _Shared:
    """The clock of the environment that was made last, which the oracle of the same seat shares."""

    clock = Clock()


@dataclass(frozen=True)
class TimedDesk:
    """The desk of the benchmark; its parts keep time."""

    folder: Path
    eager: bool = False
    desk = DeskBenchmark()
    convention = ActionConvention()

    def make_env(self) -> TimedEnv:
        env = TimedEnv(self.desk.make_env(), self.eager, self.folder)
        _Shared.clock = env.clock
        return env

    def oracle(self) -> TimedOracle:
        return TimedOracle(self.desk.oracle(), _Shared.clock)

"""Interfaces of the closed loop: environment, oracle, chains as plain data, and recorder."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from policy_rollout.policies.action_chunking import Actions
from policy_rollout.policies.interface import ActionConvention, Observation

Info = Mapping[str, Any]
Render = bool | Collection[str]


class Env(Protocol):
    """CALVIN's environment interface, implemented by the embedded desk and by the real simulator.

    `render` selects the cameras to draw: none (False), all (True), or the named ones of "static" and "gripper". An
    environment may draw more cameras than requested if that costs nothing.
    """

    def reset(self, robot_obs: NDArray[Any] | None = None, scene_obs: NDArray[Any] | None = None) -> dict[str, Any]: ...
    def step(self, action: NDArray[Any], render: Render = True) -> tuple[dict[str, Any], Any, bool, Info]: ...
    def get_obs(self, render: Render = True) -> dict[str, Any]: ...
    def get_info(self) -> Info: ...
    def close(self) -> None: ...


class Oracle(Protocol):
    """Decides which tasks were done between two states of the environment."""

    def tasks_done(self, start_info: Info, end_info: Info, among: Collection[str] | None = None) -> set[str]: ...


class EnvFactory(Protocol):
    """Makes environments and oracles. Pickled if the environments are in worker processes.

    Every `policy_rollout.benchmarks.base.Benchmark` is one.
    """

    @property
    def convention(self) -> ActionConvention:
        """What the environments do with an action."""
        ...

    def make_env(self) -> Env: ...
    def oracle(self) -> Oracle: ...


@dataclass(frozen=True)
class ChainJob:
    """A chain to run: tasks, the instruction for each, and the initial state."""

    index: int
    tasks: tuple[str, ...]
    instructions: tuple[str, ...]
    robot_obs: NDArray[np.float64] | None = None
    scene_obs: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class ChainRecord:
    """Outcome of a chain. `completed`: number of tasks done; `steps`: control steps of every task that was started."""

    index: int
    tasks: tuple[str, ...]
    completed: int
    steps: tuple[int, ...]


@dataclass(frozen=True)
class PolicyCall:
    """What the policy observed before control step `step` of a task, and the chunk [T, A] that it returned.

    `codes`: predicted image codes [N] of T steps later, if the recorder wants them and the policy predicts images.
    """

    task_index: int
    step: int
    observation: Observation
    chunk: Actions
    codes: NDArray[np.int64] | None = None


class Recorder(Protocol):
    """Receives calls of the policy, video frames and outcomes of chains, in the process of the policy.

    Calls about one chain come in order; calls about parallel chains are interleaved. `task_index` counts the tasks of a
    chain from 0, `step` the control steps of a task.
    """

    @property
    def frame_interval(self) -> int:
        """Control steps between two video frames. The last step of a task is always recorded."""
        ...

    @property
    def wants_codes(self) -> bool:
        """Whether the policy (an `ImagePredictor`) shall predict image codes together with the actions."""
        ...

    def selects(self, job: ChainJob) -> bool:
        """Return whether to record this chain. Called once, when the chain starts."""
        ...

    def start_chain(self, job: ChainJob) -> None:
        """Start a chain. Called again if its worker process crashed: discard the frames of the first attempt."""
        ...

    def add_call(self, job: ChainJob, call: PolicyCall) -> None:
        """Add a call of the policy."""
        ...

    def add_frame(self, job: ChainJob, task_index: int, step: int, image: NDArray[np.uint8]) -> None:
        """Add the static camera's image (uint8 HWC) after control step `step`, counted from 0."""
        ...

    def finish_chain(self, job: ChainJob, record: ChainRecord) -> None:
        """Add the outcome of the chain."""
        ...


def observation(obs: Mapping[str, Any], instruction: str) -> Observation:
    """Return the policy's observation from a CALVIN observation dictionary."""
    images = obs["rgb_obs"]
    return Observation(
        rgb_static=images["rgb_static"],
        rgb_gripper=images.get("rgb_gripper"),
        robot_obs=obs.get("robot_obs"),
        instruction=instruction,
    )


def binary_gripper(action: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the action [A] with its gripper at +1 (open) if above 0, else -1 (closed), as CALVIN's wrapper does."""
    out = np.array(action, dtype=np.float64)
    out[6] = 1.0 if out[6] > 0 else -1.0
    return out

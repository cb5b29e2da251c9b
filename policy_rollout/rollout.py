"""Closed loop: a policy acts, the environment answers, the oracle judges.

Several environments run side by side in one process and the policy is asked about all of them at once, so that one
forward serves many episodes. An environment renders only when the policy looks at it, and only what the policy sees.

Shape letters: T actions per chunk, A action size (7).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from policy_rollout.chunking import ChunkPlayer
from policy_rollout.policy import ActionConvention, Observation, Policy, require_same_convention
from policy_rollout.statistics import Interval, wilson

Info = Mapping[str, Any]
Render = bool | Collection[str]


class Env(Protocol):
    """CALVIN's environment interface, as the embedded desk and the real simulator speak it.

    `render` says which cameras are needed: none (False), all (True) or those named, of "static" and "gripper". Where
    one costs as much as both, an environment may draw more than it was asked for.
    """

    def reset(self, robot_obs: NDArray[Any] | None = None, scene_obs: NDArray[Any] | None = None) -> dict[str, Any]: ...
    def step(self, action: NDArray[Any], render: Render = True) -> tuple[dict[str, Any], Any, bool, Info]: ...
    def get_obs(self, render: Render = True) -> dict[str, Any]: ...
    def get_info(self) -> Info: ...
    def close(self) -> None: ...


class Oracle(Protocol):
    """Says which tasks were done between two states of the world."""

    def tasks_done(self, start_info: Info, end_info: Info, among: Collection[str] | None = None) -> set[str]: ...


@dataclass(frozen=True)
class Episode:
    """One task to be tried from one initial state."""

    index: int
    task: str
    instruction: str
    robot_obs: NDArray[np.float64] | None = None
    scene_obs: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class EpisodeRecord:
    """What became of an episode; `steps` are control steps taken until success or the limit."""

    index: int
    task: str
    instruction: str
    success: bool
    steps: int


@dataclass(frozen=True)
class Rollout:
    """All records in the order of the episodes, and the frames (uint8 HWC) of those that were filmed."""

    records: list[EpisodeRecord]
    frames: dict[int, list[NDArray[np.uint8]]]

    def success(self) -> Interval:
        return wilson(sum(record.success for record in self.records), len(self.records))

    def per_task(self) -> dict[str, Interval]:
        tasks = sorted({record.task for record in self.records})
        outcomes = {task: [r.success for r in self.records if r.task == task] for task in tasks}
        return {task: wilson(sum(done), len(done)) for task, done in outcomes.items()}


@dataclass
class _Desk:
    """One environment and the episode it is in."""

    env: Env
    player: ChunkPlayer
    episode: Episode
    cameras: tuple[str, ...]
    start_info: Info = field(default_factory=dict)
    steps: int = 0
    film: list[NDArray[np.uint8]] | None = None

    def begin(self, episode: Episode, film: bool) -> None:
        self.episode, self.steps = episode, 0
        self.film = [] if film else None
        self.player.reset()
        self.env.reset(robot_obs=episode.robot_obs, scene_obs=episode.scene_obs)
        self.start_info = self.env.get_info()

    def observe(self) -> Observation:
        return observation(self.env.get_obs(render=self.cameras), self.episode.instruction)

    def play(self, oracle: Oracle, max_steps: int, film_every: int) -> EpisodeRecord | None:
        """Acts until the player wants a new plan (None) or the episode is over (its record)."""
        while not self.player.wants_plan:
            filmed = self.film is not None and self.steps % film_every == 0
            action = binary_gripper(self.player.next_action())
            obs, _, _, info = self.env.step(action, render=("static",) if filmed else False)
            self.steps += 1
            if filmed and self.film is not None:
                self.film.append(np.array(obs["rgb_obs"]["rgb_static"], dtype=np.uint8))
            success = bool(oracle.tasks_done(self.start_info, info, among={self.episode.task}))
            if success or self.steps >= max_steps:
                e = self.episode
                return EpisodeRecord(e.index, e.task, e.instruction, success, self.steps)
        return None


def run_episodes(
    make_env: Callable[[], Env],
    policy: Policy,
    episodes: Sequence[Episode],
    oracle: Oracle,
    *,
    convention: ActionConvention | None = None,
    max_steps: int = 360,
    replan_every: int | None = None,
    ensemble: float | None = None,
    parallel: int = 8,
    film: Collection[int] = (),
    film_every: int = 2,
    progress: Callable[[EpisodeRecord], None] = lambda record: None,
) -> Rollout:
    """Tries every episode once.

    `convention`  what the environment does with an action; compared with the policy's (default: CALVIN's).
    `parallel`    environments side by side; which one runs an episode does not change its outcome.
    `film`        indices of episodes whose static camera is kept, one frame every `film_every` steps.
    `progress`    hears each record as it is made.
    """
    require_same_convention(policy.convention, convention or ActionConvention(), "the environment")
    policy.reset()
    cameras = tuple(name.removeprefix("rgb_") for name in policy.cameras)
    waiting: Iterator[Episode] = iter(episodes)
    records: dict[int, EpisodeRecord] = {}
    films: dict[int, list[NDArray[np.uint8]]] = {}
    desks: list[_Desk] = []
    envs: list[Env] = []
    try:
        for episode in _take(waiting, min(parallel, len(episodes))):
            envs.append(make_env())
            desk = _Desk(envs[-1], ChunkPlayer(policy.act_step, replan_every, ensemble), episode, cameras)
            desk.begin(episode, episode.index in film)
            desks.append(desk)
        while desks:
            # All desks want a plan here, so every forward is as wide as it can be.
            for desk, chunk in zip(desks, policy.act([desk.observe() for desk in desks]), strict=True):
                desk.player.plan(chunk)
            still_running = []
            for desk in desks:
                record = desk.play(oracle, max_steps, film_every)
                if record is not None:
                    records[record.index] = record
                    progress(record)
                    if desk.film is not None:
                        films[record.index] = desk.film
                    following = next(waiting, None)
                    if following is None:
                        continue
                    desk.begin(following, following.index in film)
                still_running.append(desk)
            desks = still_running
    finally:
        for env in envs:
            env.close()
    return Rollout([records[episode.index] for episode in episodes], films)


def _take(episodes: Iterator[Episode], count: int) -> Iterable[Episode]:
    return (next(episodes) for _ in range(count))


def observation(obs: Mapping[str, Any], instruction: str) -> Observation:
    """The policy's view of a CALVIN observation dictionary."""
    pictures = obs["rgb_obs"]
    return Observation(
        rgb_static=pictures["rgb_static"],
        rgb_gripper=pictures.get("rgb_gripper"),
        robot_obs=obs.get("robot_obs"),
        instruction=instruction,
    )


def binary_gripper(action: NDArray[np.float32]) -> NDArray[np.float64]:
    """The action [A] with its gripper at exactly +1 (open) above 0, else -1 (closed), as CALVIN's wrapper does."""
    out = np.array(action, dtype=np.float64)
    out[6] = 1.0 if out[6] > 0 else -1.0
    return out

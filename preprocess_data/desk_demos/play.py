"""Play chains of tasks on the desk or in the real CALVIN, as its operators did, without resets between the tasks.

The next task is drawn from those that are feasible in the current state, and an expert with noise attempts it. If the
task oracle confirms success, its frames become a window with an instruction; frames of failures stay as play.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from policy_rollout.calvin.instructions import HELD_OUT, TRAINING
from policy_rollout.calvin.oracle import TaskOracle
from policy_rollout.calvin.scene_state import symbolic_state
from policy_rollout.calvin.symbolic import Frozen, feasible_tasks, freeze, successors, thaw
from policy_rollout.calvin.tasks import COLOURS, TASK_NAMES
from policy_rollout.desk import DeskEnv
from policy_rollout.desk.experts.policy import PLAY, QUIET, ScriptedExpert, task_resets
from policy_rollout.desk.experts.worlds import ExpertEnv, regions_of
from training.data.calvin import relative_action

Array = npt.NDArray[Any]
Frame = dict[str, Array]  # the arrays of one episode_*.npz
Sink = Callable[[int, Frame], None]  # (number of the frame in its episode, its arrays)

SPLITS = ("training", "validation")
INSTRUCTIONS: Mapping[str, Mapping[str, tuple[str, ...]]] = {"training": TRAINING, "held_out": HELD_OUT}

WINDOW = 64
"""Frames at most, both ends included, as in CALVIN."""
PATIENCE = 150
"""Frames for one task; median attempts take 12 to 55."""
GIVE_UP = 20
"""Frames that an expert which has finished waits for the oracle."""
TAIL = (2, 9)
"""Frames from success to the next task, drawn for each task (low, high exclusive)."""
DEPTH_STEP = 2.0**-13
"""Metres: recorded depth is rounded to an eighth of a millimetre, which halves its file."""

VERSION = 2
"""Of the recorder: another version draws other tasks or writes other arrays. 2: even draws, `expert_actions`."""

# Weights of the tasks of a kind (without colour and side) in the draw, and how often each task starts an episode. They
# make all tasks occur about equally often, as far as the tasks that lead to others allow (docs/desk.md).
_WEIGHTS = {
    "lift_block_drawer": 300.0,
    "lift_block_slider": 200.0,
    "lift_block_table": 110.0,
    "push_into_drawer": 40.0,
    "unstack_block": 3.6,
    "rotate_block": 0.42,
    "push_block": 0.42,
    "open_drawer": 0.24,
    "close_drawer": 0.24,
    "turn": 0.15,
    "move_slider": 0.13,
    "stack_block": 0.12,
    "place_in_slider": 0.026,
    "place_in_drawer": 0.019,
}
_STARTS = {"lift_block_drawer": 3, "lift_block_slider": 2}
_NO_PROSPECT = 0.001
"""Prospect of a task that no other task can follow."""


@dataclass(frozen=True)
class Settings:
    """All settings that determine the bytes of a recording; equal settings give equal files."""

    episodes: int
    tasks_per_episode: int = 8  # attempts, also those that fail
    scenes: tuple[str, ...] = ("D",)
    split: str = "training"
    instructions: str = "training"
    seed: int = 0
    tasks: tuple[str, ...] = TASK_NAMES
    static_size: int = 200
    gripper_size: int = 84
    depth: bool = False
    noise: bool = True
    camera_jitter: float = 0.0
    light_jitter: float = 0.0
    renderer: str = "raycast"
    environment: str = "desk"

    @property
    def program(self) -> str:
        """The command that makes the recording."""
        return "preprocess_data/make_desk_demos.py"

    def player(self) -> Player:
        """Return a new player of the episodes."""
        return Player(self)

    def scene(self, episode: int) -> str:
        """Return the scene of an episode. Scenes are recorded one after the other, as `scene_info.npy` requires."""
        return self.scenes[episode * len(self.scenes) // self.episodes]

    def as_dict(self) -> dict[str, Any]:
        """Return all settings and the recorder's version, with lists in place of tuples."""
        settings = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        if self.environment == "desk":
            del settings["environment"]  # recordings of the desk are older than this setting
        return {**settings, "version": VERSION}


@dataclass(frozen=True)
class Window:
    """Frames `start`..`end` (both included, counted within the episode) in which `task` was completed."""

    start: int
    end: int
    task: str
    instruction: str
    by_policy: bool | None = None  # whether a policy completed the task; None where an expert played


@dataclass(frozen=True)
class PlayedEpisode:
    """One episode: its number of frames, its windows, and the tasks that were attempted without success."""

    frames: int
    windows: tuple[Window, ...]
    failed: tuple[str, ...]


class Player:
    """Plays the episodes of one recording. An episode depends on the settings and its number only."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.oracle = TaskOracle()
        self._env: ExpertEnv | None = None

    def play(self, episode: int, sink: Sink) -> PlayedEpisode:
        """Play one episode; pass each frame to `sink` when it is complete."""
        return self.make_run(self.desk(self.settings.scene(episode)), episode, sink).play()

    def make_run(self, env: ExpertEnv, episode: int, sink: Sink) -> EpisodeRun:
        """Return an episode that is not played yet."""
        return EpisodeRun(self.settings, env, self.oracle, episode, sink)

    def desk(self, scene: str) -> ExpertEnv:
        """Return the environment of a scene; a player has one at a time."""
        if self._env is None or self._env.scene != scene:
            self.close()
            self._env = self._make_env(scene)
        return self._env

    def _make_env(self, scene: str) -> ExpertEnv:
        s = self.settings
        if s.environment == "calvin":
            from policy_rollout.calvin.scenes.env import SceneEnv

            return SceneEnv(scene, s.renderer == "egl", None, s.static_size, s.gripper_size)
        return DeskEnv(scene, s.renderer, s.static_size, s.gripper_size, s.camera_jitter, s.light_jitter)

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None


class EpisodeRun:
    """One episode while it is played."""

    def __init__(self, settings: Settings, env: ExpertEnv, oracle: TaskOracle, episode: int, sink: Sink) -> None:
        self.settings, self.env, self.oracle, self.sink = settings, env, oracle, sink
        source = np.random.SeedSequence([settings.seed, SPLITS.index(settings.split), episode])
        # Instructions have a stream of their own: with other wordings the frames are the same.
        rngs = [np.random.default_rng(child) for child in source.spawn(3)]
        self.choice, self.hand, self.wording = rngs
        self.first_task = _first_task(settings, episode)
        self.count = 0
        self.attempted: list[str] = []
        self.failed: list[str] = []

    def play(self) -> PlayedEpisode:
        seed = int(self.choice.integers(2**31))
        robot_obs, scene_obs = task_resets(self.first_task, seed, self.env.layout)
        self.obs = self.env.reset(robot_obs, scene_obs, seed=seed, render=True)
        self.expert = self.make_expert()
        windows: list[Window] = []
        while len(self.attempted) < self.settings.tasks_per_episode:
            task = self._next_task()
            if task is None:
                break
            self.attempted.append(task)
            window = self.attempt(task)
            if window is not None:
                windows.append(window)
        return PlayedEpisode(self.count, tuple(windows), tuple(self.failed))

    def make_expert(self) -> ScriptedExpert:
        """Return the expert that does all tasks of the episode."""
        noise = PLAY if self.settings.noise else QUIET
        return ScriptedExpert(self.env.layout, self.first_task, self.hand, noise)

    def _next_task(self) -> str | None:
        """Draw one of the feasible tasks: rare ones and those that lead to rare ones more often, repeats less often."""
        regions = regions_of(self.env.layout)
        values = symbolic_state(self.obs["scene_obs"], self.obs["robot_obs"], self.env.get_info(), regions)
        feasible = feasible_tasks(values, self.settings.tasks, unique=False)
        if not feasible:
            return None
        if not self.attempted and self.first_task in feasible:
            return self.first_task
        is_last = len(self.attempted) == self.settings.tasks_per_episode - 1
        state = freeze(values)

        def weight(task: str) -> float:
            prospect = 1.0 if is_last else _prospect(state, task, self.settings.tasks)
            return _WEIGHTS[_kind(task)] * prospect / (1 + self.attempted.count(task)) ** 2

        weights = np.array([weight(task) for task in feasible])
        return feasible[int(self.choice.choice(len(feasible), p=weights / weights.sum()))]

    def attempt(self, task: str) -> Window | None:
        """Let the expert attempt a task; return the window if the oracle confirms success, else None."""
        first, success, idle = self.count, None, 0
        tail = int(self.hand.integers(*TAIL))
        infos = [self.env.get_info()]  # infos[k] belongs to the observation of frame first + k
        self.expert.reset(task, self.obs)
        while True:
            infos.append(self.step())
            steps = len(infos) - 1
            if success is None and self.oracle.done(task, infos[0], infos[-1]):
                success = steps
            idle += self.expert.done and success is None
            limit = PATIENCE if success is None else success + tail
            if steps >= limit or idle > GIVE_UP:
                break
        edges = None if success is None else self._edges(task, infos, success)
        if edges is None:
            self.failed.append(task)
            return None
        return Window(first + edges[0], first + edges[1], task, self.draw_instruction(task))

    def draw_instruction(self, task: str) -> str:
        """Return one of the instructions of a task."""
        phrases = INSTRUCTIONS[self.settings.instructions][task]
        return phrases[int(self.wording.integers(len(phrases)))]

    def _edges(self, task: str, infos: list[Any], success: int) -> tuple[int, int] | None:
        """Return first and last frame of the longest window of at most 64 frames that the oracle confirms by itself."""
        last = len(infos) - 2  # the last frame whose action belongs to this task
        for end in range(min(last, max(success, WINDOW - 1)), success - 1, -1):
            start = max(0, end - WINDOW + 1)
            if self.oracle.done(task, infos[start], infos[end]):
                return start, end
        return None

    def command(self, wanted: Array) -> Array:
        """Return the action (7,) that is executed; ``wanted``: that of the expert."""
        return wanted

    def step(self) -> Mapping[str, Any]:
        """Act once, pass the frame (observation before the action, and the action) to the sink, return the new info."""
        before = self.obs
        command = self.command(self.expert.act(before))
        self.obs, _, _, info = self.env.step(command, render=True)
        self.sink(self.count, frame_of(before, self.obs, self.expert.intended, self.settings.depth))
        self.count += 1
        return info


def _kind(task: str) -> str:
    """Return a task's kind: its name without colour and side; all four tasks of the lights are one kind."""
    words = [word for word in task.split("_") if word not in COLOURS]
    if words[0] == "turn":
        return "turn"
    return "_".join(words[:2] if words[0] in ("rotate", "push", "move") and words[1] != "into" else words)


@cache
def _prospect(state: Frozen, task: str, tasks: tuple[str, ...]) -> float:
    """Return the largest weight of the other tasks that are feasible after `task`, the mean over its outcomes."""
    largest = [
        max(
            (_WEIGHTS[_kind(other)] for other in feasible_tasks(thaw(after), tasks, unique=False) if other != task),
            default=_NO_PROSPECT,
        )
        for after in successors(state, task)
    ]
    return sum(largest) / len(largest)


def _first_task(settings: Settings, episode: int) -> str:
    """Return the first task of an episode, from a shuffled order of all tasks; rare ones occur in it repeatedly."""
    is_chained = settings.tasks_per_episode > 1
    order = [task for task in settings.tasks for _ in range(_STARTS.get(_kind(task), 1) if is_chained else 1)]
    shuffle, position = divmod(episode, len(order))
    rng = np.random.default_rng([settings.seed, SPLITS.index(settings.split), shuffle])
    return order[int(rng.permutation(len(order))[position])]


def frame_of(before: Mapping[str, Any], after: Mapping[str, Any], intended: Array, depth: bool = False) -> Frame:
    """Return the arrays of one frame, from the observations before and after its action.

    As in CALVIN, `actions` is the pose that was reached with the gripper command, `rel_actions` the motion to it.
    `expert_actions` is added to CALVIN's arrays: `intended` (7,), the relative action that the expert wanted in the
    observed state, before any noise (DART, arXiv 1703.09327).
    """
    robot_obs = before["robot_obs"]
    action = np.concatenate([after["robot_obs"][:6], after["robot_obs"][14:15]])
    frame: Frame = dict(before["rgb_obs"])
    if depth:
        for name, metres in before["depth_obs"].items():
            frame[name] = (np.round(metres / DEPTH_STEP) * DEPTH_STEP).astype(np.float32)
    frame["actions"] = action
    frame["rel_actions"] = relative_action(action, robot_obs)
    frame["robot_obs"] = robot_obs
    frame["scene_obs"] = before["scene_obs"]
    frame["expert_actions"] = intended
    return frame

"""Chained play on the embedded desk, as CALVIN's operators played: one task after the other, nothing put back between.

The next task is drawn from those that the desk allows as it is; an expert with noise attempts it. Where the task oracle
agrees that it was done, the frames of it become a window with an instruction; the frames of failures stay as play.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from policy_rollout.calvin.instructions import HELD_OUT, TRAINING
from policy_rollout.calvin.oracle import TaskOracle
from policy_rollout.calvin.scene_state import symbolic_state
from policy_rollout.calvin.symbolic import CATEGORIES, feasible_tasks
from policy_rollout.calvin.tasks import BLOCKS, TASK_NAMES
from policy_rollout.desk import DeskEnv
from policy_rollout.desk.experts.policy import PLAY, QUIET, ScriptedExpert, task_resets
from training.data.calvin import relative_action

Array = npt.NDArray[Any]
Frame = dict[str, Array]  # the arrays of one episode_*.npz
Sink = Callable[[int, Frame], None]  # (number of the frame in its episode, its arrays)

SPLITS = ("training", "validation")
INSTRUCTIONS: Mapping[str, Mapping[str, tuple[str, ...]]] = {"training": TRAINING, "held_out": HELD_OUT}

WINDOW = 64  # frames at most, both ends included: CALVIN's
PATIENCE = 150  # frames for one task; median attempts take 12 to 55
GIVE_UP = 20  # frames that an expert which believes it is done may wait for the oracle
TAIL = (2, 9)  # frames from the oracle's yes to the next task, drawn anew each time (low, high exclusive)
DEPTH_STEP = 2.0**-13  # metres: recorded depth is rounded to this, an eighth of a millimetre, which halves its file

# Tasks whose conditions are seldom met are drawn more readily when they are, so that all come about equally often.
_EAGER = {
    "unstack_block": 4.0,
    "push_into_drawer": 6.0,
    **{f"lift_{block.removeprefix('block_')}_block_drawer": 3.0 for block in BLOCKS},
}


@dataclass(frozen=True)
class Settings:
    """Everything that decides the bytes of a recording; two recordings with equal settings are equal files."""

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

    def scene(self, episode: int) -> str:
        """Scenes are recorded one after the other, as `scene_info.npy` wants them."""
        return self.scenes[episode * len(self.scenes) // self.episodes]

    def as_dict(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Window:
    """Frames `start`..`end` (both included, counted within the episode) in which `task` was done."""

    start: int
    end: int
    task: str
    instruction: str


@dataclass(frozen=True)
class Played:
    """One episode: how many frames it has, its windows, and the tasks that were attempted in vain."""

    frames: int
    windows: tuple[Window, ...]
    failed: tuple[str, ...]


class Player:
    """Plays episodes of one recording. What an episode holds depends on the settings and its number only."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._oracle = TaskOracle()
        self._env: DeskEnv | None = None

    def play(self, episode: int, sink: Sink) -> Played:
        """Play one episode; every frame goes to `sink` as soon as it is complete."""
        env = self._desk(self.settings.scene(episode))
        return _Episode(self.settings, env, self._oracle, episode, sink).play()

    def _desk(self, scene: str) -> DeskEnv:
        if self._env is None or self._env.scene != scene:
            self.close()
            s = self.settings
            self._env = DeskEnv(scene, s.renderer, s.static_size, s.gripper_size, s.camera_jitter, s.light_jitter)
        return self._env

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None


class _Episode:
    def __init__(self, settings: Settings, env: DeskEnv, oracle: TaskOracle, episode: int, sink: Sink) -> None:
        self.settings, self.env, self.oracle, self.sink = settings, env, oracle, sink
        source = np.random.SeedSequence([settings.seed, SPLITS.index(settings.split), episode])
        # The choice of words has its own stream: held-out instructions describe the very same frames.
        rngs = [np.random.default_rng(child) for child in source.spawn(3)]
        self.choice, self.hand, self.words = rngs
        self.first_task = _first_task(settings, episode)
        self.count = 0
        self.tried: list[str] = []

    def play(self) -> Played:
        seed = int(self.choice.integers(2**31))
        robot_obs, scene_obs = task_resets(self.first_task, seed, self.env.scene)
        self.obs = self.env.reset(robot_obs, scene_obs, seed=seed, render=True)
        noise = PLAY if self.settings.noise else QUIET
        self.expert = ScriptedExpert(self.env.layout, self.first_task, self.hand, noise)
        windows: list[Window] = []
        failed: list[str] = []
        while len(self.tried) < self.settings.tasks_per_episode:
            task = self._next_task()
            if task is None:
                break
            self.tried.append(task)
            window = self._attempt(task)
            if window is None:
                failed.append(task)
            else:
                windows.append(window)
        return Played(self.count, tuple(windows), tuple(failed))

    def _next_task(self) -> str | None:
        """One of the tasks that are feasible now; what was tried already becomes less likely."""
        state = symbolic_state(self.obs["scene_obs"], self.obs["robot_obs"], self.env.get_info())
        possible = feasible_tasks(state, self.settings.tasks, unique=False)
        if not possible:
            return None
        if not self.tried and self.first_task in possible:
            return self.first_task
        kinds = [CATEGORIES[task] for task in self.tried]
        weights = np.array(
            [
                _EAGER.get(task, 1.0) / (1 + kinds.count(CATEGORIES[task])) / (1 + self.tried.count(task)) ** 2
                for task in possible
            ]
        )
        return possible[int(self.choice.choice(len(possible), p=weights / weights.sum()))]

    def _attempt(self, task: str) -> Window | None:
        """Let the expert try. The window if the oracle agrees that it succeeded."""
        first, success, idle = self.count, None, 0
        tail = int(self.hand.integers(*TAIL))
        infos = [self.env.get_info()]  # infos[k] belongs to the observation of frame first + k
        self.expert.reset(task, self.obs)
        while True:
            infos.append(self._step())
            taken = len(infos) - 1
            if success is None and self.oracle.done(task, infos[0], infos[-1]):
                success = taken
            idle += self.expert.done and success is None
            limit = PATIENCE if success is None else success + tail
            if taken >= limit or idle > GIVE_UP:
                break
        edges = None if success is None else self._edges(task, infos, success)
        if edges is None:
            return None
        phrases = INSTRUCTIONS[self.settings.instructions][task]
        instruction = phrases[int(self.words.integers(len(phrases)))]
        return Window(first + edges[0], first + edges[1], task, instruction)

    def _edges(self, task: str, infos: list[Any], success: int) -> tuple[int, int] | None:
        """First and last frame of the longest window of at most 64 that the oracle confirms by itself."""
        last = len(infos) - 2  # the last frame whose action was taken for this task
        for end in range(min(last, max(success, WINDOW - 1)), success - 1, -1):
            start = max(0, end - WINDOW + 1)
            if self.oracle.done(task, infos[start], infos[end]):
                return start, end
        return None

    def _step(self) -> dict[str, Any]:
        """Act once and hand out the frame: the observation before the action, and the action. Returns the new info."""
        before = self.obs
        command = self.expert.act(before)
        self.obs, _, _, info = self.env.step(command, render=True)
        self.sink(self.count, frame_of(before, self.obs, self.settings.depth))
        self.count += 1
        return info


def _first_task(settings: Settings, episode: int) -> str:
    """Every task begins an episode equally often, also the rare ones; a shuffled order, so that few episodes vary."""
    around, place = divmod(episode, len(settings.tasks))
    order = np.random.default_rng([settings.seed, SPLITS.index(settings.split), around]).permutation(
        len(settings.tasks)
    )
    return settings.tasks[int(order[place])]


def frame_of(before: Mapping[str, Any], after: Mapping[str, Any], depth: bool = False) -> Frame:
    """The arrays of one frame, from the observations before and after its action.

    CALVIN's rule: `actions` is the pose that was reached, with the gripper command, and `rel_actions` is the way there.
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
    return frame

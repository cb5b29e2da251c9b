"""Moments of play on the desk: observations, each with what experts would do next for several tasks.

Every task that is feasible in an observation has its own expert, and an instruction alone decides which actions follow.
Demonstrations show one task from each moment, so that a network can learn them from the motion and ignore the words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from policy_rollout.calvin.oracle import TaskOracle
from policy_rollout.calvin.scene_state import symbolic_state
from policy_rollout.calvin.symbolic import feasible_tasks
from policy_rollout.desk import DeskEnv
from policy_rollout.desk.experts.motion import DeskState, Disturber
from policy_rollout.desk.experts.policy import QUIET, Noise, ScriptedExpert, task_resets
from preprocess_data.desk_demos.play import PATIENCE
from preprocess_data.desk_scenes.objects import OBJECTS, object_of_task, object_positions

Array = npt.NDArray[Any]

NOISE = Noise(sigma=0.06, burst_rate=0.03)
"""Rare pushes: most chunks are then undisturbed, and all of them start in states that pushes lead to."""
INTERRUPTED = 0.15
"""Share of attempts that end early, at a random frame, so that tasks begin anywhere."""
ATTEMPTS = 4
"""Attempts from one reset at most."""
MOST = 1.5
"""A task gets no further label of an expert that only begins it when it has this multiple of the mean of all tasks."""
CLEAR = 0.13
"""Metres between the hand and the object of another task. Nearer, its expert would first raise the hand, although one
that is already on its way would go on."""


@dataclass(frozen=True)
class Label:
    """The next actions [C, 7] of the expert of ``task``, without noise."""

    task: str
    chunk: Array


@dataclass(frozen=True)
class Moment:
    """An observation with both images, and the labels of one or more tasks."""

    obs: dict[str, Any]
    labels: tuple[Label, ...]


class MomentPlayer:
    """Plays tasks on one desk and yields moments, each with at most 1 + ``others`` labels of ``chunk`` actions.

    ``share``: probability that a frame of an attempt is a moment. Successive frames hardly differ.
    """

    def __init__(self, env: DeskEnv, tasks: Sequence[str], others: int, chunk: int, share: float) -> None:
        self.env, self.tasks, self.others, self.chunk, self.share = env, tuple(tasks), others, chunk, share
        self._trial = DeskEnv(env.scene, static_size=1, gripper_size=1)
        self._oracle = TaskOracle()
        self._labelled: Counter[str] = Counter()

    def close(self) -> None:
        self._trial.close()

    def moments(self, rng: np.random.Generator) -> Iterator[Moment]:
        """Yield moments without end; they depend on ``rng`` only."""
        self._labelled = Counter()
        while True:
            task = self._draw(self.tasks, 1, rng)[0]
            obs = self.env.reset(*task_resets(task, int(rng.integers(2**31)), self.env.scene), seed=0)
            for _ in range(ATTEMPTS):
                found, obs = self._attempt(obs, task, rng)
                if found is None:
                    break
                self._labelled.update(label.task for moment in found for label in moment.labels)
                yield from found
                feasible = self._feasible(obs)
                if not feasible:
                    break
                task = self._draw(feasible, 1, rng)[0]

    def _draw(self, tasks: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
        """Draw at most ``count`` different tasks; those with few labels are more likely: all get equally many."""
        weights = np.array([1 / (1 + self._labelled[task]) ** 2 for task in tasks])
        drawn = rng.choice(len(tasks), min(count, len(tasks)), replace=False, p=weights / weights.sum())
        return [tasks[int(number)] for number in drawn]

    def _feasible(self, obs: dict[str, Any]) -> tuple[str, ...]:
        state = symbolic_state(obs["scene_obs"], obs["robot_obs"], self.env.get_info())
        return feasible_tasks(state, self.tasks, unique=False)

    def _attempt(
        self, obs: dict[str, Any], task: str, rng: np.random.Generator
    ) -> tuple[list[Moment] | None, dict[str, Any]]:
        """Let the expert attempt a task. Return its moments (None after a failure) and the last observation."""
        expert, disturber = self._expert(task, rng), Disturber(NOISE, rng)
        expert.reset(task, obs)
        interrupted_at = int(rng.integers(4, 28)) if rng.random() < INTERRUPTED else PATIENCE
        start, succeeded, is_over = self.env.get_info(), False, False
        actions: list[Array] = []
        moments: list[tuple[int, dict[str, Any], list[Label]]] = []
        while not is_over:
            if len(actions) >= PATIENCE:
                return None, obs
            if not succeeded and rng.random() < self.share:
                seen = {**obs, "rgb_obs": self.env.get_obs(render=True)["rgb_obs"]}
                moments.append((len(actions), seen, self._other_labels(obs, task, rng)))
            actions.append(np.clip(expert.act(obs), -1.0, 1.0))
            obs, _, _, info = self.env.step(disturber.disturb(actions[-1]))
            is_over = (succeeded and expert.done) or len(actions) >= interrupted_at
            succeeded = succeeded or self._oracle.done(task, start, info)
            if succeeded and expert.is_endless:
                actions += self._trial_actions(expert, obs)  # chunks continue, the desk stays as it is
                is_over = True
        own = [Label(task, _filled(actions[at : at + self.chunk], self.chunk)) for at, _, _ in moments]
        # An interrupted attempt shows no end: moments whose chunk would cross it have no label of their own.
        keep = [succeeded or at + self.chunk <= len(actions) for at, _, _ in moments]
        labelled = [
            Moment(seen, (*([mine] if kept else []), *others))
            for (_, seen, others), mine, kept in zip(moments, own, keep, strict=True)
        ]
        return [moment for moment in labelled if moment.labels], obs

    def _other_labels(self, obs: dict[str, Any], running: str, rng: np.random.Generator) -> list[Label]:
        """Return what the experts of other tasks would do from here, each on a desk of its own."""
        state = DeskState.of(obs, self.env.layout)
        positions = dict(zip(OBJECTS, object_positions(self.env.layout, obs["scene_obs"]), strict=True))
        enough = 2 + MOST * self._labelled.total() / len(self.tasks)
        wanted = [task for task in self._feasible(obs) if task != running and self._labelled[task] < enough]
        labels: list[Label] = []
        for task in self._draw(wanted, self.others, rng) if wanted else ():
            place = positions.get(object_of_task(task) or "")
            is_near = place is not None and float(np.linalg.norm(place - state.tcp)) < CLEAR
            if state.held_block is not None or not is_near:
                expert = self._expert(task, np.random.default_rng(0))
                labels.append(Label(task, np.stack(self._trial_actions(expert, obs))))
        return labels

    def _expert(self, task: str, rng: np.random.Generator) -> ScriptedExpert:
        return ScriptedExpert(self.env.layout, task, rng, QUIET, endless=True)

    def _trial_actions(self, expert: ScriptedExpert, obs: dict[str, Any]) -> list[Array]:
        """Return the next actions of ``expert`` from the current state, without changing the desk."""
        self._trial.load(self.env.save())
        actions: list[Array] = []
        for _ in range(self.chunk):
            actions.append(np.clip(expert.act(obs), -1.0, 1.0))
            obs, _, _, _ = self._trial.step(actions[-1])
        return actions


def _filled(actions: Sequence[Array], length: int) -> Array:
    """Return ``actions`` [n, 7] as [length, 7]: an expert that has finished does not move and keeps its gripper."""
    still = np.concatenate([np.zeros(6), actions[-1][6:]])
    return np.stack([*actions, *[still] * (length - len(actions))])

"""Episodes and chains of a model, its blind controls and the baselines; outcomes are stored and not run again."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common.command import progress_bar
from common.files import write_text
from common.statistics import Interval, average_length, paired_difference, wilson
from config.identity import settings_of
from config.loading import load_job
from config.schema import Job
from models.pretrained.model_io import build
from models.vision.magvitv2 import load_magvit
from policy_rollout.benchmarks import future_frames
from policy_rollout.benchmarks.future_frames import FutureFrames
from policy_rollout.benchmarks.processed import open_split
from policy_rollout.desk.task_sets import TaskSet, other_colour
from policy_rollout.policies.baselines import ConstantPolicy, RandomPolicy
from policy_rollout.policies.controls import ExchangedImages, action_change, with_images_of
from policy_rollout.policies.interface import Observation
from policy_rollout.policies.model_yaml import load_model_yaml, run_config
from policy_rollout.policies.upvla import Policy, UPVLAPolicy, pick_device
from training.data.episode_index import read_index

MODEL, EXPERTS, MEAN = "trained", "scripted experts", "mean training action"
WRONG = "trained, told another task"
COLOUR = "trained, told another colour"
FOREIGN = "trained, images of other frames"
FIXED = "trained, one fixed image"
UNTRAINED, RANDOM = "untrained", "random actions"
CONTROLS = (WRONG, COLOUR, FOREIGN, FIXED)
POLICIES = (MODEL, *CONTROLS, UNTRAINED, MEAN, RANDOM, EXPERTS)

FRAME_EPISODES = 3
"""Expert episodes of each task whose frames are exchanged by the controls."""


@dataclass(frozen=True)
class Outcome:
    """Results of one policy.

    ``done``: success of each episode; ``chains``: tasks completed in each chain, empty if none were run;
    ``indices``: numbers of the episodes, None: all from 0.
    """

    name: str
    done: list[bool]
    chains: list[int]
    indices: list[int] | None = None

    @property
    def by_episode(self) -> dict[int, bool]:
        return dict(zip(self.indices or range(len(self.done)), self.done, strict=True))

    @property
    def success(self) -> Interval:
        return wilson(sum(self.done), len(self.done))

    def length(self, chain_length: int) -> Interval | None:
        """Return the mean number of tasks completed in a chain; None if none were run."""
        return average_length(self.chains, chain_length) if self.chains else None

    def of_task(self, tasks: TaskSet, task: str) -> Interval:
        """Return the success rate of one task, not a number if it was not run."""
        number, count = tasks.tasks.index(task), len(tasks.tasks)
        successes = [done for index, done in self.by_episode.items() if index % count == number]
        return wilson(sum(successes), len(successes))

    def behind(self, other: Outcome) -> Interval:
        """Return by how much the success of ``other`` is higher in the same episodes, by a paired bootstrap."""
        mine, theirs = self.by_episode, other.by_episode
        both = [index for index in mine if index in theirs]
        first, second = (np.array([done[index] for index in both], float) for done in (theirs, mine))
        return paired_difference(first, second).interval


def available(tasks: TaskSet) -> tuple[str, ...]:
    """Return the policies that can be run on a task set: colours are exchanged only if its tasks name them."""
    return tuple(name for name in POLICIES if name != COLOUR or tasks.colour_tasks)


@dataclass(frozen=True)
class Evaluation:
    """Episodes and chains for the model in ``folder``; outcomes are stored in the folder ``stored``.

    ``action_decoder``: one of ``ACTION_DECODERS``; None: that of the run.
    """

    folder: Path
    device: str
    tasks: TaskSet
    episodes: int
    chains: int
    stored: Path
    action_decoder: str | None = None

    @property
    def config(self) -> Path | None:
        """The settings of the model's training run, None if the folder does not belong to a run."""
        return run_config(self.folder)

    @cached_property
    def job(self) -> Job:
        if self.config is None:
            return load_model_yaml(None, self.folder).job
        return load_job([f"config={self.config}"], None)

    @cached_property
    def trained(self) -> UPVLAPolicy:
        return UPVLAPolicy.from_config(self.config, self.device, self.folder, self.action_decoder)

    @cached_property
    def rules(self) -> TaskSet:
        """The task set with cameras of the size of the model's training images."""
        return self.tasks.with_cameras(self.trained.spec.data.cameras)

    @cached_property
    def frames(self) -> list[tuple[str, Observation]]:
        """(task, observation) of expert episodes that are not evaluated, in an order that mixes the tasks."""
        frames = self.rules.expert_frames(FRAME_EPISODES * len(self.tasks.tasks))
        order = np.random.default_rng(0).permutation(len(frames))
        return [frames[i] for i in order]

    def outcome(self, name: str) -> Outcome:
        """Return the outcome of one of ``POLICIES``, from its file if the same one was run before."""
        conditions, file = self.conditions(name), self.file(name)
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            if found["asked"] == conditions:
                return Outcome(name, found["done"], found["chains"], found.get("indices"))
        outcome = self._run(name)
        content = {"asked": conditions, "done": outcome.done, "chains": outcome.chains, "indices": outcome.indices}
        write_text(file, json.dumps(content) + "\n")
        return outcome

    def conditions(self, name: str) -> dict[str, Any]:
        """Return everything that a policy's outcome depends on, as plain JSON values."""
        rules = self.tasks if name == EXPERTS else self.rules
        found = {"episodes": self.episodes, "chains": self.chains, "rules": rules.rules(), **self._identity(name)}
        plain: dict[str, Any] = json.loads(json.dumps(found))
        return plain

    def file(self, name: str) -> Path:
        """Return the file that stores a policy's outcome."""
        return self.stored / f"{name.replace(',', '').replace(' ', '_')}.json"

    def sensitivity(self) -> dict[str, tuple[float, float]]:
        """Return the RMS change of the model's actions, and their RMS, for each part of the input that is exchanged.

        The observations are those of ``frames``; a part is exchanged with that of the next one of another task.
        """
        frames = self.frames
        true = [observation for _, observation in frames]
        other = [_next_of_another_task(frames, index) for index in range(len(frames))]
        pairs = list(zip(true, other, strict=True))
        parts = {
            "instruction of another task": (true, [replace(a, instruction=b.instruction) for a, b in pairs]),
            "images of another frame": (true, [with_images_of(a, b) for a, b in pairs]),
            "state of another frame": (true, [replace(a, robot_obs=b.robot_obs) for a, b in pairs]),
            "all of them": (true, other),
        }
        named = [(task, one) for task, one in frames if task in self.tasks.colour_tasks]
        if named:
            colours = [replace(one, instruction=other_colour(i, task)) for i, (task, one) in enumerate(named)]
            parts["colour in the instruction"] = ([one for _, one in named], colours)
        return {name: action_change(self.trained, *pair) for name, pair in parts.items()}

    def future_frames(self, held_out: Path) -> FutureFrames:
        """Return where the hand is in the model's predicted frames of a split that it was not trained on."""
        training = open_split(Path(self.job.dataset.params.train_pre_shards_path_or_url))
        return future_frames.evaluate(self.trained, training, open_split(held_out))

    def _identity(self, name: str) -> dict[str, Any]:
        """Return what identifies a policy: one with another identity is run again."""
        if name == MODEL or name in CONTROLS:
            assert self.trained.source is not None
            identity = {"weights": self.trained.source.weights_sha256, "image_tokenizer": self.trained.vq.weights_hash}
            return identity if self.action_decoder is None else {**identity, "action_decoder": self.action_decoder}
        if name == UNTRAINED:
            vq = load_magvit(self.job.model.vq_model.vq_model_name)
            settings = settings_of(self._untrained_job)  # they determine its random weights
            digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
            return {"settings": digest, "image_tokenizer": vq.weights_hash}
        if name == MEAN:
            return {"action": self._mean_action().tolist(), "act_step": self.job.act_step}
        return {} if name == EXPERTS else {"act_step": self.job.act_step}

    def _run(self, name: str) -> Outcome:
        if name == EXPERTS:
            print("scripted experts ...", file=sys.stderr)
            done = self.tasks.run_expert_episodes(self.episodes)
            return Outcome(name, done, self.tasks.run_expert_chains(self.chains))
        make: dict[str, Callable[[], Policy]] = {
            MODEL: lambda: self.trained,
            WRONG: lambda: self.trained,
            COLOUR: lambda: self.trained,
            FOREIGN: lambda: ExchangedImages(self.trained, [frame for _, frame in self.frames]),
            FIXED: lambda: ExchangedImages(self.trained, [frame for _, frame in self.frames[:1]]),
            UNTRAINED: self._untrained,
            MEAN: lambda: ConstantPolicy(self._mean_action(), self.job.act_step),
            RANDOM: lambda: RandomPolicy(self.job.act_step),
        }
        return self._run_policy(name, make[name]())

    def _run_policy(self, name: str, policy: Policy) -> Outcome:
        """Run all episodes, then all chains (none with a control: it would end at once, or has no meaning)."""
        rules, indices = self.rules, None
        episodes = rules.make_episodes(self.episodes)
        if name == WRONG:
            episodes = rules.make_episodes(self.episodes, rules.other_instruction)
        if name == COLOUR:
            kept = [one for one in episodes if one.task in rules.colour_tasks]
            episodes = [replace(one, instruction=other_colour(one.index, one.task)) for one in kept]
            indices = [one.index for one in episodes]
        chains = 0 if name in CONTROLS else self.chains
        with progress_bar(total=len(episodes) + chains, desc=name, unit="episode") as bar:
            rollout = rules.run_policy_episodes(policy, episodes, lambda _: _advance(bar))
            jobs = rules.make_chains(chains)
            lengths = rules.run_policy_chains(policy, jobs, lambda _: _advance(bar)) if jobs else []
        return Outcome(name, [record.success for record in rollout.records], lengths, indices)

    @property
    def _untrained_job(self) -> Job:
        """The run's job from random weights, also if it continued from another run."""
        showo = replace(self.job.model.showo, load_from_showo=False, pretrained_model_path=None)
        return replace(self.job, model=replace(self.job.model, showo=showo))

    def _untrained(self) -> Policy:
        vq = load_magvit(self.job.model.vq_model.vq_model_name)
        built = build(self._untrained_job, state=self.trained.spec.data.state_convention)
        return UPVLAPolicy(built, vq, device=pick_device(self.device))

    def _mean_action(self) -> np.ndarray:
        return mean_of_training(Path(self.job.dataset.params.train_pre_shards_path_or_url))


def mean_of_training(split: Path) -> np.ndarray:
    """Return the mean [7] over all actions of a processed split."""
    actions = np.asarray(read_index(split, images=False).actions[:], dtype=np.float64)
    mean: np.ndarray = actions.mean(axis=0).astype(np.float32)
    return mean


def _next_of_another_task(frames: list[tuple[str, Observation]], index: int) -> Observation:
    task = frames[index][0]
    following = (frames[(index + step) % len(frames)] for step in range(1, len(frames)))
    return next(observation for other, observation in following if other != task)


def _advance(bar: tqdm[None]) -> None:
    bar.update(1)

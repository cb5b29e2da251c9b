"""Task sets: tasks that small models are recorded on and trained on, and the rules of evaluation, on the desk or in the
real CALVIN."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from common.command import phase_bar, progress_bar
from policy_rollout.benchmarks.desk import DeskBenchmark
from policy_rollout.calvin.initial_states import initial_state
from policy_rollout.calvin.instructions import validation_instruction
from policy_rollout.calvin.sequences import CHAIN_LENGTH, desk_sequences
from policy_rollout.calvin.tasks import COLOURS, DOORS_AND_LIGHTS, TASK_NAMES
from policy_rollout.closed_loop.interface import ChainJob, ChainRecord, observation
from policy_rollout.closed_loop.runner import run_chains
from policy_rollout.closed_loop.single_task import Episode, EpisodeRecord, Rollout, run_episodes
from policy_rollout.desk.experts.evaluate import run_chain, run_episode
from policy_rollout.desk.experts.policy import QUIET, ScriptedExpert, task_resets
from policy_rollout.desk.experts.worlds import ExpertEnv
from policy_rollout.desk.layout import Layout
from policy_rollout.desk.play import PlainVideo
from policy_rollout.policies.interface import CAMERAS, Observation, Policy

if TYPE_CHECKING:
    from policy_rollout.calvin.scenes.benchmark import SceneBenchmark

FIRST_SEED = 1000
"""Seed of the first episode's reset; recordings draw theirs from 2^31 others."""
FRAME_SEED = 10**6
"""Seed of the first reset of ``TaskSet.expert_frames``."""
FRAME_INTERVAL = 10
PARALLEL = 16
"""Environments of the desk that one process runs at a time."""
_TASK_STRIDE = 10
"""Step between the wrong tasks of successive rounds, so that few rounds have tasks of several kinds."""

Progress = Callable[[object], None]


@dataclass(frozen=True)
class TaskSet:
    """Tasks in one scene, and how a policy is evaluated on them.

    ``chain_length``: tasks of a chain; no two are of one category. ``max_steps``: control steps (30 a second) for one
    task. ``episodes``, ``chains``: how many are run by default. ``static_size``, ``gripper_size``: pixels of the
    cameras. ``replan_every``, ``ensemble``: see ``ChunkPlayer``. ``environment``: "desk" or "calvin", with the
    ``renderer`` of the latter, "egl" or "tiny".
    """

    name: str
    tasks: tuple[str, ...]
    chain_length: int
    max_steps: int
    episodes: int
    chains: int
    scene: str = "D"
    static_size: int = 128
    gripper_size: int = 64
    replan_every: int = 5
    ensemble: float | None = None
    environment: str = "desk"
    renderer: str = "tiny"

    def benchmark(self) -> DeskBenchmark | SceneBenchmark:
        """Return the scene that the tasks are run in. Raises ``ValueError`` if calvin_env is needed and missing."""
        if self.environment == "desk":
            return self.desk
        from policy_rollout.calvin.scenes.benchmark import SceneBenchmark

        return SceneBenchmark(self.scene, self.renderer, self.static_size, self.gripper_size)

    def layout(self) -> Layout:
        """Return where the furniture of the scene is."""
        return self.benchmark().layout()

    @property
    def desk(self) -> DeskBenchmark:
        return DeskBenchmark(scene=self.scene, static_size=self.static_size, gripper_size=self.gripper_size)

    @property
    def _sizes(self) -> tuple[int, int]:
        return self.static_size, self.gripper_size

    @property
    def colour_tasks(self) -> tuple[str, ...]:
        """The tasks that name the colour of a block."""
        return tuple(task for task in self.tasks if any(colour in task.split("_") for colour in COLOURS))

    def with_cameras(self, cameras: Mapping[str, Sequence[int]]) -> TaskSet:
        """Return the task set with images of a model's training data: camera -> (height, width)."""
        static, gripper = (cameras.get(name, (size,))[0] for name, size in zip(CAMERAS, self._sizes, strict=True))
        return replace(self, static_size=int(static), gripper_size=int(gripper))

    def rules(self) -> dict[str, Any]:
        """Return everything that outcomes depend on, except the policy and the number of episodes."""
        return {
            "tasks": list(self.tasks),
            "chain_length": self.chain_length,
            "patience": self.max_steps,
            "replan_every": self.replan_every,
            "ensemble": self.ensemble,
            "first_seed": FIRST_SEED,
            self.environment: self.benchmark().stamp(),
        }

    def make_episodes(
        self, count: int, instruction_of: Callable[[int, str], str] = lambda _, task: validation_instruction(task)
    ) -> list[Episode]:
        """Return single tasks in turn, each from its own reset.

        ``instruction_of(index, task)``: the instruction of an episode; the default is one that recordings use.
        """
        found, layout = [], self.layout()
        for index in range(count):
            task = self.tasks[index % len(self.tasks)]
            robot, scene = task_resets(task, FIRST_SEED + index, layout)
            found.append(Episode(index, task, instruction_of(index, task), robot, scene))
        return found

    def make_chains(self, count: int) -> list[ChainJob]:
        """Return chains by CALVIN's rules and from its initial states; fewer are a prefix of more."""
        jobs = []
        for index, chain in enumerate(desk_sequences(count, self.tasks, length=self.chain_length)):
            robot, scene = initial_state(chain.state)
            jobs.append(ChainJob(index, chain.tasks, tuple(map(validation_instruction, chain.tasks)), robot, scene))
        return jobs

    def other_instruction(self, index: int, task: str) -> str:
        """Return the instruction of another task of the set; over the episodes of a task, each of the others."""
        count = len(self.tasks)
        offset = 1 + index // count * _TASK_STRIDE % (count - 1)
        return validation_instruction(self.tasks[(self.tasks.index(task) + offset) % count])

    def run_policy_episodes(
        self,
        policy: Policy,
        episodes: Sequence[Episode],
        progress: Progress = lambda record: None,
        film: Collection[int] = (),
    ) -> Rollout:
        """Run single tasks in closed loop; ``film``: indices of the episodes whose frames are kept."""
        benchmark = self.benchmark()
        return run_episodes(
            benchmark.make_env,
            policy,
            episodes,
            benchmark.oracle(),
            max_steps=self.max_steps,
            replan_every=self.replan_every,
            ensemble=self.ensemble,
            parallel=benchmark.envs_per_process or PARALLEL,
            record=film,
            progress=progress,
        )

    def run_policy_chains(
        self, policy: Policy, jobs: Sequence[ChainJob], progress: Progress = lambda record: None
    ) -> list[int]:
        """Return the number of tasks completed in each chain, in the order of ``jobs``."""
        done: dict[int, int] = {}

        def finished(record: ChainRecord) -> None:
            done[record.index] = record.completed
            progress(record)

        benchmark = self.benchmark()
        run_chains(
            benchmark,
            policy,
            jobs,
            finished,
            max_steps=self.max_steps,
            replan_every=self.replan_every,
            ensemble=self.ensemble,
            parallel=benchmark.envs_per_process or PARALLEL,
        )
        return [done[job.index] for job in jobs]

    def expert_frames(self, episodes: int) -> list[tuple[str, Observation]]:
        """Return (task, observation) of every tenth step of experts, in other episodes than those of ``make_episodes``.

        Both cameras are rendered. The instruction is the task's.
        """
        env = self.benchmark().make_env()
        frames: list[tuple[str, Observation]] = []
        try:
            for index in phase_bar(range(episodes), desc="frames of experts", unit="episode"):
                task = self.tasks[index % len(self.tasks)]
                frames += [(task, one) for one in _expert_frames(env, task, FRAME_SEED + index, self.max_steps)]
        finally:
            env.close()
        return frames

    def run_expert_episodes(self, count: int) -> list[bool]:
        """Return for each episode whether a scripted expert succeeds from the same reset within ``max_steps``."""
        env, oracle = self.benchmark().make_env(), self.benchmark().oracle()
        try:
            results = [
                run_episode(env, oracle, self.tasks[i % len(self.tasks)], FIRST_SEED + i, QUIET)
                for i in progress_bar(range(count), desc="experts", unit="episode")
            ]
        finally:
            env.close()
        return [result.success and result.steps <= self.max_steps for result in results]

    def film_expert(self, index: int) -> tuple[EpisodeRecord, list[NDArray[np.uint8]]]:
        """Run an expert in one of ``make_episodes`` on the desk; return its record and frames, uint8 [H, W, 3] each.

        The frames are those of every second step, with some of the end.
        """
        task, env = self.tasks[index % len(self.tasks)], self.desk.make_env()
        video = PlainVideo(env)
        try:
            found = run_episode(env, self.desk.oracle(), task, FIRST_SEED + index, QUIET, video)
        finally:
            env.close()
        success = found.success and found.steps <= self.max_steps
        return EpisodeRecord(index, task, validation_instruction(task), success, found.steps), video.frames

    def run_expert_chains(self, count: int) -> list[int]:
        """Return the number of tasks that the experts complete in each chain (with CALVIN's 360 steps for a task)."""
        env, oracle = self.benchmark().make_env(), self.benchmark().oracle()
        try:
            return [
                run_chain(env, oracle, chain, index, QUIET).done
                for index, chain in enumerate(
                    progress_bar(
                        desk_sequences(count, self.tasks, length=self.chain_length), desc="experts", unit="chain"
                    )
                )
            ]
        finally:
            env.close()


DOORS = TaskSet("doors_and_lights", DOORS_AND_LIGHTS, chain_length=3, max_steps=120, episodes=160, chains=60)
"""Drawer, sliding door and two lights, each in both directions. An expert needs 15 to 45 steps."""
ALL_TASKS = TaskSet("all", TASK_NAMES, CHAIN_LENGTH, max_steps=160, episodes=136, chains=40)
"""CALVIN's 34 tasks."""
TASK_SETS = {tasks.name: tasks for tasks in (DOORS, ALL_TASKS)}


def _expert_frames(env: ExpertEnv, task: str, seed: int, max_steps: int) -> Iterator[Observation]:
    """Yield observations while an expert does a task."""
    obs = env.reset(*task_resets(task, seed, env.layout))
    expert = ScriptedExpert(env.layout, task, np.random.default_rng(seed), QUIET)
    for step in range(max_steps):
        if step % FRAME_INTERVAL == 0:
            yield observation(env.get_obs(render=True), validation_instruction(task))
        obs = env.step(expert.act(obs), render=False)[0]
        if expert.done:
            return


def other_colour(index: int, task: str) -> str:
    """Return the instruction of a task with the colour of its block replaced by another one.

    Raises ``ValueError`` for a task that names no colour.
    """
    instruction = validation_instruction(task)
    named = next((colour for colour in COLOURS if colour in task.split("_")), None)
    if named is None or named not in instruction.split():
        raise ValueError(f"{task}: its instruction {instruction!r} names no colour of a block")
    others = [colour for colour in COLOURS if colour != named]
    return " ".join(others[index % 2] if word == named else word for word in instruction.split())

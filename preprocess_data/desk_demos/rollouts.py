"""Let a policy attempt tasks on the desk, with an expert's action for every visited state (DAgger, arXiv 1011.0686)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from policy_rollout.closed_loop.interface import binary_gripper, observation
from policy_rollout.desk.experts.policy import PLAY, QUIET, ScriptedExpert
from policy_rollout.desk.experts.worlds import ExpertEnv
from preprocess_data.desk_demos.play import GIVE_UP, PATIENCE, TAIL, EpisodeRun, Player, Settings, Sink, Window

if TYPE_CHECKING:
    from policy_rollout.policies.interface import Policy

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class RolloutSettings(Settings):
    """All settings that determine the bytes of relabelled rollouts, on one machine.

    ``model``: a model yaml or an output folder; ``weights``: the digest of its weights, which identifies it.
    ``policy_steps``: frames that the policy has for a task before the expert takes over; ``beta``: share of these in
    which the expert acts, in turns of ``replan_every`` frames; ``base``: what the recording before the rollouts is.
    """

    model: str = ""
    weights: str = ""
    policy_steps: int = 120
    replan_every: int = 5
    beta: float = 0.0
    base: str = ""

    @property
    def program(self) -> str:
        return "preprocess_data/relabel_rollouts.py"

    def player(self) -> RolloutPlayer:
        return RolloutPlayer(self)

    def as_dict(self) -> dict[str, Any]:
        return {key: value for key, value in super().as_dict().items() if key != "model"}


def load_policy(model: str) -> Policy:
    """Return the policy of a model yaml or of the output folder of a training run, on the CPU with one thread.

    Raises ValueError or FileNotFoundError naming the file.
    """
    import torch

    from policy_rollout.policies.interface import ActionConvention, require_calvin_state, require_same_convention
    from policy_rollout.policies.upvla import UPVLAPolicy

    torch.set_num_threads(1)  # the number of threads may change the last digits
    path = Path(model)
    config = path / "config.yaml" if path.is_dir() else path
    if not config.is_file():
        raise FileNotFoundError(f"--model {path}: {config} does not exist; give a model yaml or a run's output folder")
    policy = UPVLAPolicy.from_config(config, "cpu", checkpoint=path if path.is_dir() else None)
    require_same_convention(policy.convention, ActionConvention(), "the desk")
    require_calvin_state(policy, "the desk")
    return policy


class RolloutPlayer(Player):
    """Plays the rollouts of one policy. An episode depends on the settings, the policy and its number only."""

    settings: RolloutSettings

    def __init__(self, settings: RolloutSettings, policy: Policy | None = None) -> None:
        super().__init__(settings)
        self.policy = load_policy(settings.model) if policy is None else policy

    def make_run(self, env: ExpertEnv, episode: int, sink: Sink) -> Rollout:
        return Rollout(self, env, episode, sink)


class Rollout(EpisodeRun):
    """One episode: the policy attempts each task, and the expert finishes what the policy did not.

    The whole attempt is one window with the instruction, also where the policy fails: its label is the expert's.
    """

    settings: RolloutSettings

    def __init__(self, player: RolloutPlayer, env: ExpertEnv, episode: int, sink: Sink) -> None:
        super().__init__(player.settings, env, player.oracle, episode, sink)
        self.policy = player.policy
        self.turns = np.random.default_rng([self.settings.seed, 1, episode])
        self.policy_acts, self.instruction = True, ""

    def make_expert(self) -> ScriptedExpert:
        noise = PLAY if self.settings.noise else QUIET
        return ScriptedExpert(self.env.layout, self.first_task, self.hand, noise, restarts=True)

    def attempt(self, task: str) -> Window:
        first, success, by_policy, idle = self.count, None, False, 0
        tail = int(self.hand.integers(*TAIL))
        self.instruction, self.policy_acts = self.draw_instruction(task), True
        self._turn = self.settings.replan_every  # frames of the current turn so far: a new one starts
        self.expert.reset(task, self.obs)
        start, steps = self.env.get_info(), 0
        while True:
            info = self.step()
            steps += 1
            if success is None and self.oracle.done(task, start, info):
                success, by_policy = steps, self.policy_acts
                self.policy_acts = False
            if self.policy_acts and steps >= self.settings.policy_steps:
                self.policy_acts = False
                self.expert.restart()
            idle += self.expert.done and success is None and not self.policy_acts
            limit = self.settings.policy_steps + PATIENCE if success is None else success + tail
            if steps >= limit or idle > GIVE_UP:
                self.failed.extend([task] if success is None else [])
                return Window(first, self.count - 1, task, self.instruction, by_policy)

    def command(self, wanted: Array) -> Array:
        """Return the policy's action in its turn, the expert's otherwise."""
        if not self.policy_acts:
            return wanted
        if self._turn == self.settings.replan_every:
            self._turn = 0
            self._chunk = None
            if self.turns.random() >= self.settings.beta:
                self._chunk = self.policy.act([observation(self.obs, self.instruction)])[0]
        self._turn += 1
        return wanted if self._chunk is None else binary_gripper(self._chunk[self._turn - 1])

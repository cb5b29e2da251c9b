"""Evaluate a small model in closed loop on the desk, against uninformed baselines and the scripted experts.

    python -m scripts.evaluate_desk --model outputs/tiny_desk [--episodes 160] [--chains 60]

Runs the same single tasks and chains, from the same starts, with: the model; the model with another task's
instruction; the same network before training; the mean training action; random actions; and the scripted experts that
the model learned from. Writes summary.md and results.json. Outcomes are stored in MODEL/judged and not run again.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common.arguments import command_parser, path_argument, whole
from common.command import report_errors, run_command
from common.files import write_text
from common.folder_lock import hold_file
from common.statistics import Interval, average_length, paired_difference, wilson
from common.tables import interval_json, markdown_table, percent, points
from config.identity import settings_of
from config.loading import load_job
from config.schema import Job
from models.pretrained.model_io import build
from models.vision.magvitv2 import load_magvit
from policy_rollout.desk import doors_and_lights as desk
from policy_rollout.policies.upvla import ConstantPolicy, Policy, RandomPolicy, UPVLAPolicy, pick_device
from scripts.objective_comparison.evaluate import machine
from training.data.episode_index import read_index

ROOT = Path(__file__).resolve().parents[1]

MODEL, WRONG, EXPERTS = "trained", "trained, told another task", "scripted experts"
POLICIES = (MODEL, WRONG, "untrained", "mean training action", "random actions", EXPERTS)


@dataclass(frozen=True)
class Outcome:
    """Results of one policy.

    ``done``: success of each episode; ``chains``: tasks completed in each chain, empty if none were run.
    """

    name: str
    done: list[bool]
    chains: list[int]

    @property
    def success(self) -> Interval:
        return wilson(sum(self.done), len(self.done))

    @property
    def length(self) -> Interval | None:
        return average_length(self.chains, desk.CHAIN_LENGTH) if self.chains else None

    def of_task(self, task: str) -> Interval:
        successes = [done for i, done in enumerate(self.done) if desk.TASKS[i % len(desk.TASKS)] == task]
        return wilson(sum(successes), len(successes))


def run_policy(name: str, policy: Policy, episodes: int, chains: int, wrong_instruction: bool = False) -> Outcome:
    """Run all episodes, then all chains (with wrong instructions a chain has no meaning, and none is run)."""
    chains = 0 if wrong_instruction else chains
    with tqdm(total=episodes + chains, desc=name, unit="episode", dynamic_ncols=True) as bar:
        rollout = desk.run_policy_episodes(policy, desk.episodes(episodes, wrong_instruction), lambda _: _advance(bar))
        lengths = desk.run_policy_chains(policy, desk.chains(chains), lambda _: _advance(bar)) if chains else []
    return Outcome(name, [record.success for record in rollout.records], lengths)


def _advance(bar: tqdm[None]) -> None:
    bar.update(1)


@dataclass(frozen=True)
class Evaluation:
    """Episodes and chains for the run in ``folder``; outcomes are stored in the folder ``stored``."""

    folder: Path
    device: str
    episodes: int
    chains: int
    stored: Path

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @cached_property
    def job(self) -> Job:
        return load_job([f"config={self.config}"], None)

    @cached_property
    def trained(self) -> UPVLAPolicy:
        return UPVLAPolicy.from_config(self.config, self.device, checkpoint=self.folder)

    def untrained(self) -> Policy:
        vq = load_magvit(self.job.model.vq_model.vq_model_name)
        return UPVLAPolicy(build(self.job), vq, device=pick_device(self.device))

    def constant(self) -> Policy:
        data = self.job.dataset.params.train_pre_shards_path_or_url
        return ConstantPolicy(mean_of_training(Path(data)), self.job.act_step)

    def outcome(self, name: str) -> Outcome:
        """Return the outcome of one of ``POLICIES``, from its file if the same one was run before."""
        conditions, file = self.conditions(name), self.file(name)
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            if found["asked"] == conditions:
                return Outcome(name, found["done"], found["chains"])
        outcome = self._run(name)
        write_text(file, json.dumps({"asked": conditions, "done": outcome.done, "chains": outcome.chains}) + "\n")
        return outcome

    def conditions(self, name: str) -> dict[str, Any]:
        """Return everything that a policy's outcome depends on, as plain JSON values."""
        found = {"episodes": self.episodes, "chains": self.chains, "rules": desk.rules(), **self._policy_identity(name)}
        plain: dict[str, Any] = json.loads(json.dumps(found))
        return plain

    def file(self, name: str) -> Path:
        """Return the file that stores a policy's outcome."""
        return self.stored / f"{name.replace(',', '').replace(' ', '_')}.json"

    def _policy_identity(self, name: str) -> dict[str, Any]:
        """Return what identifies a policy: one with another identity is run again."""
        if name in (MODEL, WRONG):
            assert self.trained.source is not None
            return {"weights": self.trained.source.weights_sha256, "image_tokenizer": self.trained.vq.weights_hash}
        if name == "untrained":
            vq = load_magvit(self.job.model.vq_model.vq_model_name)
            settings = settings_of(self.job)  # they determine its random weights
            digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
            return {"settings": digest, "image_tokenizer": vq.weights_hash}
        if name == "mean training action":
            data = Path(self.job.dataset.params.train_pre_shards_path_or_url)
            return {"action": mean_of_training(data).tolist(), "act_step": self.job.act_step}
        return {} if name == EXPERTS else {"act_step": self.job.act_step}

    def _run(self, name: str) -> Outcome:
        if name == EXPERTS:
            print("scripted experts ...", file=sys.stderr)
            return Outcome(name, desk.run_expert_episodes(self.episodes), desk.run_expert_chains(self.chains))
        make: dict[str, Callable[[], Policy]] = {
            MODEL: lambda: self.trained,
            WRONG: lambda: self.trained,
            "untrained": self.untrained,
            "mean training action": self.constant,
            "random actions": lambda: RandomPolicy(self.job.act_step),
        }
        return run_policy(name, make[name](), self.episodes, self.chains, wrong_instruction=name == WRONG)


def mean_of_training(split: Path) -> np.ndarray:
    """Return the mean [7] over all actions of a processed split."""
    actions = np.asarray(read_index(split, images=False).actions[:], dtype=np.float64)
    mean: np.ndarray = actions.mean(axis=0).astype(np.float32)
    return mean


def summary(outcomes: Sequence[Outcome], folder: Path, where: str, command: str) -> str:
    """Return the report as Markdown. ``where``: the machine."""
    model = outcomes[0]
    rows = [
        [
            one.name,
            f"{sum(one.done)}/{len(one.done)}",
            percent(one.success),
            "–" if one.length is None else f"{one.length:.2f}",
            "–" if one is model else points(_ahead(model, one)),
        ]
        for one in outcomes
    ]
    head = [
        "policy",
        "tasks done",
        "success [95 %]",
        f"tasks in a row of {desk.CHAIN_LENGTH} [95 %]",
        "model ahead by",
    ]
    columns = (model, outcomes[1], outcomes[-1])
    by_task = [[task, *(percent(one.of_task(task)) for one in columns)] for task in desk.TASKS]
    return "\n".join(
        [
            "# A small model on the desk: doors and lights",
            "",
            f"{datetime.now(timezone.utc):%Y-%m-%d}; {where}; `{command}`.",
            "",
            f"{len(model.done)} single tasks ({len(desk.TASKS)} in turn, scene {desk.SCENE}, {desk.MAX_STEPS} "
            f"control steps, replanned every {desk.REPLAN_EVERY}), the same starts for all policies; "
            f"{len(model.chains)} chains of {desk.CHAIN_LENGTH} by CALVIN's rules. Wilson intervals for rates, "
            "bootstrap for lengths, paired bootstrap for how far the model is ahead (percentage points of success).",
            "",
            markdown_table(head, rows),
            "",
            markdown_table(["task", model.name, outcomes[1].name, outcomes[-1].name], by_task),
            "",
            f"Model: `{folder.name}`; its configuration is config.yaml in its folder.",
            "",
        ]
    )


def _ahead(model: Outcome, other: Outcome) -> Interval:
    return paired_difference(np.array(model.done, float), np.array(other.done, float)).interval


def results(outcomes: Sequence[Outcome]) -> dict[str, object]:
    """Return the report as JSON values."""
    return {
        "settings": {
            "scene": desk.SCENE,
            "static_size": desk.STATIC_SIZE,
            "tasks": list(desk.TASKS),
            "patience": desk.MAX_STEPS,
            "replan_every": desk.REPLAN_EVERY,
        },
        "policies": {
            one.name: {
                "success": interval_json(one.success),
                "done": one.done,
                "chains": one.chains,
            }
            for one in outcomes
        },
    }


@report_errors("evaluate_desk")
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--model", type=path_argument, required=True, help="output folder of a training run")
    add("--episodes", type=whole(1), default=160, help="single tasks (default: %(default)s)")
    add("--chains", type=whole(0), default=60, help="chains of three tasks (default: %(default)s)")
    add("--output-dir", type=path_argument, help="folder of summary.md and results.json (default: the model's)")
    add("--only", nargs="+", choices=POLICIES, help="run only these, store their outcomes, write no report")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    args = parser.parse_args(argv)
    if not (args.model / "config.yaml").is_file():
        file = args.model / "config.yaml"
        raise FileNotFoundError(f"{file} does not exist; --model is the output folder of a training run")
    evaluation = Evaluation(args.model, args.device, args.episodes, args.chains, args.model / "judged")
    names = args.only or POLICIES
    with ExitStack() as locks:
        for name in names:  # several commands may run different policies at the same time
            locks.enter_context(hold_file(evaluation.file(name), f"evaluate_desk, {name}", "--model "))
        outcomes = [evaluation.outcome(name) for name in names]
        made_with = {name: evaluation.conditions(name) for name in names}
    if args.only:
        for one in outcomes:
            print(f"{one.name}: {sum(one.done)}/{len(one.done)} done, chains {one.chains}")
        return 0
    folder = (args.output_dir or args.model).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "-m", "scripts.evaluate_desk", *(sys.argv[1:] if argv is None else argv)])
    text = summary(outcomes, args.model, machine(pick_device(args.device)), command)
    write_text(folder / "summary.md", text)
    write_text(folder / "results.json", json.dumps({**results(outcomes), "made_with": made_with}, indent=1) + "\n")
    print(text)
    print(f"written: {folder / 'summary.md'}, results.json")
    return 0


if __name__ == "__main__":
    run_command(main)

"""Does a small model act? Single tasks and chains on the desk, beside everybody who cannot know, and who can.

    python -m scripts.judge_desk --model outputs/tiny_desk [--episodes 160] [--chains 60]

The same episodes, from the same starts, for: the model; the model that is told another task's sentence; the same
network before training; the mean training action; random actions; and the scripted experts that the model learned from.
Writes summary.md and results.json. What somebody did is kept in MODEL/judged and not played again.
"""

from __future__ import annotations

import argparse
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

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from common.arguments import path_argument, whole  # noqa: E402
from common.atomic_file import replace_text  # noqa: E402
from common.command import run_command  # noqa: E402
from common.folder_lock import hold_file  # noqa: E402
from config.identity import settings_of  # noqa: E402
from config.loading import ConfigError, load_job  # noqa: E402
from config.schema import Job  # noqa: E402
from models.checkpoint import build  # noqa: E402
from models.magvit import load_magvit  # noqa: E402
from policy_rollout.intervals import Interval, average_length, paired_difference, wilson  # noqa: E402
from policy_rollout.paired import interval_json, markdown_table, percent, points  # noqa: E402
from policy_rollout.policy import ConstantPolicy, Policy, RandomPolicy, UPVLAPolicy, pick_device  # noqa: E402
from scripts import desk_trial as trial  # noqa: E402
from scripts.comparison.judge import machine  # noqa: E402
from training.data.processed import read_index  # noqa: E402

MODEL, ANOTHER, EXPERTS = "trained", "trained, told another task", "scripted experts"
EVERYBODY = (MODEL, ANOTHER, "untrained", "mean training action", "random actions", EXPERTS)


@dataclass(frozen=True)
class Outcome:
    """What one policy got: which episodes were done, by task; how many tasks of each chain (empty: played none)."""

    name: str
    done: list[bool]
    chains: list[int]

    @property
    def success(self) -> Interval:
        return wilson(sum(self.done), len(self.done))

    @property
    def length(self) -> Interval | None:
        return average_length(self.chains, trial.CHAIN_LENGTH) if self.chains else None

    def of_task(self, task: str) -> Interval:
        mine = [done for i, done in enumerate(self.done) if trial.TASKS[i % len(trial.TASKS)] == task]
        return wilson(sum(mine), len(mine))


def play(name: str, policy: Policy, episodes: int, chains: int, told_another: bool = False) -> Outcome:
    """All episodes, then all chains (not where the sentences are wrong: a chain of wrong sentences means nothing)."""
    chains = 0 if told_another else chains
    with tqdm(total=episodes + chains, desc=name, unit="episode", dynamic_ncols=True) as bar:
        rollout = trial.play_episodes(policy, trial.episodes(episodes, told_another), lambda _: _advance(bar))
        lengths = trial.play_chains(policy, trial.chains(chains), lambda _: _advance(bar)) if chains else []
    return Outcome(name, [record.success for record in rollout.records], lengths)


def _advance(bar: tqdm[None]) -> None:
    bar.update(1)


@dataclass(frozen=True)
class Trial:
    """What is asked of everybody, of the run in ``folder``; what somebody did is kept in ``kept``."""

    folder: Path
    device: str
    episodes: int
    chains: int
    kept: Path

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
        """Of somebody of ``EVERYBODY``; played, or read if it was played before."""
        asked, file = self.asked(name), self.file(name)
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            if found["asked"] == asked:
                return Outcome(name, found["done"], found["chains"])
        played = self._play(name)
        replace_text(file, json.dumps({"asked": asked, "done": played.done, "chains": played.chains}) + "\n")
        return played

    def asked(self, name: str) -> dict[str, Any]:
        """What the outcome of somebody depends on."""
        found = {"episodes": self.episodes, "chains": self.chains, "rules": trial.rules(), **self._player(name)}
        plain: dict[str, Any] = json.loads(json.dumps(found))
        return plain

    def file(self, name: str) -> Path:
        """Where what somebody did is kept."""
        return self.kept / f"{name.replace(',', '').replace(' ', '_')}.json"

    def _player(self, name: str) -> dict[str, Any]:
        """What somebody is known by: whoever is another one plays again."""
        if name in (MODEL, ANOTHER):
            assert self.trained.source is not None
            return {"weights": self.trained.source.weights_sha256, "image_tokenizer": self.trained.vq.weights_hash}
        if name == "untrained":
            vq = load_magvit(self.job.model.vq_model.vq_model_name)
            settings = settings_of(self.job)  # its random start is made of them
            digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
            return {"settings": digest, "image_tokenizer": vq.weights_hash}
        if name == "mean training action":
            data = Path(self.job.dataset.params.train_pre_shards_path_or_url)
            return {"action": mean_of_training(data).tolist(), "act_step": self.job.act_step}
        return {} if name == EXPERTS else {"act_step": self.job.act_step}

    def _play(self, name: str) -> Outcome:
        if name == EXPERTS:
            print("scripted experts ...", file=sys.stderr)
            return Outcome(name, trial.expert_episodes(self.episodes), trial.expert_chains(self.chains))
        make: dict[str, Callable[[], Policy]] = {
            MODEL: lambda: self.trained,
            ANOTHER: lambda: self.trained,
            "untrained": self.untrained,
            "mean training action": self.constant,
            "random actions": lambda: RandomPolicy(self.job.act_step),
        }
        return play(name, make[name](), self.episodes, self.chains, told_another=name == ANOTHER)


def mean_of_training(split: Path) -> np.ndarray:
    """[7] mean over all actions of a processed split."""
    actions = np.asarray(read_index(split, pictures=False).actions[:], dtype=np.float64)
    mean: np.ndarray = actions.mean(axis=0).astype(np.float32)
    return mean


# --- what is told ----------------------------------------------------------------------------------------------------


def summary(outcomes: Sequence[Outcome], folder: Path, where: str, command: str) -> str:
    """The report as markdown."""
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
        f"tasks in a row of {trial.CHAIN_LENGTH} [95 %]",
        "model ahead by",
    ]
    told = (model, outcomes[1], outcomes[-1])
    by_task = [[task, *(percent(one.of_task(task)) for one in told)] for task in trial.TASKS]
    return "\n".join(
        [
            "# A small model on the desk: doors and lights",
            "",
            f"{datetime.now(timezone.utc):%Y-%m-%d}; {where}; `{command}`.",
            "",
            f"{len(model.done)} single tasks ({len(trial.TASKS)} in turn, scene {trial.SCENE}, {trial.PATIENCE} "
            f"control steps, a new look every {trial.REPLAN_EVERY}), the same starts for everybody; "
            f"{len(model.chains)} chains of {trial.CHAIN_LENGTH} by CALVIN's rules. Wilson intervals for rates, "
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
    """The same for programs."""
    return {
        "settings": {
            "scene": trial.SCENE,
            "static_size": trial.STATIC_SIZE,
            "tasks": list(trial.TASKS),
            "patience": trial.PATIENCE,
            "replan_every": trial.REPLAN_EVERY,
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


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=path_argument, required=True, help="output folder of a training run")
    parser.add_argument("--episodes", type=whole(1), default=160, help="single tasks (default: %(default)s)")
    parser.add_argument("--chains", type=whole(0), default=60, help="chains of three tasks (default: %(default)s)")
    parser.add_argument(
        "--output-dir", type=path_argument, help="where summary.md and results.json go (default: the model's)"
    )
    parser.add_argument("--only", nargs="+", choices=EVERYBODY, help="play these, keep what they did, write no report")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    args = parser.parse_args(argv)
    try:
        if not (args.model / "config.yaml").is_file():
            raise FileNotFoundError(
                f"{args.model / 'config.yaml'} does not exist; --model is the output folder of a training run"
            )
        asked = Trial(args.model, args.device, args.episodes, args.chains, args.model / "judged")
        names = args.only or EVERYBODY
        with ExitStack() as held:
            for name in names:  # several commands may play different ones at the same time
                held.enter_context(hold_file(asked.file(name), f"judge_desk, {name}", "--model "))
            outcomes = [asked.outcome(name) for name in names]
            made_with = {name: asked.asked(name) for name in names}
    except (ConfigError, ValueError, OSError) as error:
        print(f"judge_desk: {error}", file=sys.stderr)
        return 2
    if args.only:
        for one in outcomes:
            print(f"{one.name}: {sum(one.done)}/{len(one.done)} done, chains {one.chains}")
        return 0
    folder = (args.output_dir or args.model).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "-m", "scripts.judge_desk", *(sys.argv[1:] if argv is None else argv)])
    text = summary(outcomes, args.model, machine(pick_device(args.device)), command)
    replace_text(folder / "summary.md", text)
    replace_text(folder / "results.json", json.dumps({**results(outcomes), "made_with": made_with}, indent=1) + "\n")
    print(text)
    print(f"written: {folder / 'summary.md'}, results.json")
    return 0


if __name__ == "__main__":
    run_command(main)

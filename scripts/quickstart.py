"""Run the whole system on this machine: record, train, evaluate, report.

    make quickstart [OBJECTIVE=ar]
    python -m scripts.quickstart [--objective ar] [--steps 400] [--output outputs/quickstart_ar]

Records scripted experts on the embedded desk in CALVIN's format (doors and lights); trains a small
vision-language-action model with proprioception (random weights, embedded tokenizers) on it with the action and text
losses; then compares it with the shipped model, with itself untrained, with the constant mean action and with the
experts, by action errors on held-out recordings and in closed loop. The shipped model also predicts future frames.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import train_upvla
from common.arguments import command_parser, path_argument, whole
from common.command import as_parts, print_next, progress_bar, report_errors, run_command
from common.files import write_text
from common.folder_lock import hold
from common.tables import markdown_table
from config.identity import difference, settings_in, settings_of
from config.loading import load_job
from config.schema import Job, Objective
from models.objectives import text_objective
from models.pretrained.model_io import build
from models.vision.magvitv2 import load_magvit
from policy_rollout.benchmarks.offline import evaluate, list_samples, mean_action
from policy_rollout.desk.task_sets import DOORS
from policy_rollout.policies.baselines import ConstantPolicy
from policy_rollout.policies.upvla import Policy, UPVLAPolicy
from preprocess_data import make_desk_demos, process_calvin, tokenize_images
from scripts.quickstart_report import evidence
from scripts.quickstart_report.evidence import EXPERTS, SHIPPED, TRAINED, Evidence, Result
from scripts.quickstart_report.page import COLUMNS, Facts, write_page
from training.data.calvin import CalvinSplit

ROOT = Path(__file__).resolve().parents[1]

SETTINGS = "quickstart.json"
REMEDY = "give another --output, or delete it"
TOKENIZER = {"--tokenizer": ROOT / "assets/tiny_magvit", "--resolution": 96, "--views": 1}
WORKERS = max(1, min(4, os.cpu_count() or 1))
SHIPPED_YAML = ROOT / "policy_rollout/desk_model.yaml"
NAMES = {"ar": "arvla", "mdm": "mdmvla", "bd": "bdvla"}
SETTINGS_OF_TRAINING = (
    "model.showo.llm_model_path=./assets/nano_phi",
    "model.vla.proprioception=pose",
    "optimizer.params.learning_rate=1.5e-3",
    "optimizer.params.beta2=0.98",
    "lr_scheduler.params.warmup_steps=100",
    "training.pre_coeff=0",  # more than half of a step; the shipped model shows what it is for
    "training.mmu_coeff=0.1",
    "training.batch_size_pre=32",
    "training.batch_size_mmu=1",
    "experiment.eval_every=600",
    "experiment.generate_every=600",
    "experiment.save_every=600",
    "experiment.checkpoints_total_limit=1",
)
"""Differences from config/tiny_*.yaml: those of config/tiny_desk.yaml, and little text beside the actions."""


@dataclass(frozen=True)
class Size:
    """Amounts of data and training; the default fits ten minutes on two cores, installation included."""

    training_episodes: int = 64
    validation_episodes: int = 4
    steps: int = 1200
    offline_samples: int = 240
    rollouts: int = 16


def record(folder: Path, size: Size) -> None:
    """Record demonstrations of both splits in CALVIN's format, process them to `dataset_info.json`, encode images."""
    for split, episodes in (("training", size.training_episodes), ("validation", size.validation_episodes)):
        arguments = {
            "--out": folder / "desk",
            "--episodes": episodes,
            "--split": split,
            "--scenes": DOORS.scene,
            "--static-size": DOORS.static_size,
            "--gripper-size": DOORS.gripper_size,
            "--workers": WORKERS,
            "--tasks": DOORS.name,
        }
        _run(make_desk_demos.main, arguments)
        arguments = {"--source-split-dir": folder / "desk" / split, "--output-dir": folder / f"processed_{split}"}
        _run(process_calvin.main, arguments)
    _run(tokenize_images.main, {"--data": folder / "processed_training", "--processes": WORKERS, **TOKENIZER})


def _run(command: Callable[[Sequence[str]], int | None], arguments: dict[str, object]) -> None:
    code = command([str(word) for pair in arguments.items() for word in pair])
    if code:
        raise SystemExit(code)


def training_arguments(objective: str, folder: Path, size: Size) -> list[str]:
    """Return the arguments of `python train_upvla.py`."""
    return [
        f"config={ROOT / 'config' / f'tiny_{NAMES[objective]}.yaml'}",
        f"dataset.params.train_pre_shards_path_or_url={folder / 'processed_training'}",
        f"dataset.params.validation_pre_shards_path_or_url={folder / 'processed_validation'}",
        f"experiment.output_dir={folder / 'run'}",
        f"training.max_train_steps={size.steps}",
        *SETTINGS_OF_TRAINING,
    ]


def policies(job: Job, folder: Path, mean: NDArray[np.float32]) -> dict[str, Policy]:
    """Return the shipped policy, the trained one, the same network before training, and the mean training action."""
    trained = UPVLAPolicy.from_config(folder / "run/config.yaml", checkpoint=folder / "run")
    network = build(job, state=trained.spec.data.state_convention)
    untrained = UPVLAPolicy(network, load_magvit(job.model.vq_model.vq_model_name), device=trained.device)
    constant = ConstantPolicy(mean, act_step=trained.act_step, convention=trained.convention)
    shipped = UPVLAPolicy.from_config(SHIPPED_YAML)
    return {SHIPPED: shipped, TRAINED: trained, "untrained": untrained, "mean action": constant}


def evaluate_policy(name: str, policy: Policy, split: CalvinSplit, size: Size) -> Result:
    """Measure action errors on held-out recordings, and run the same tasks from the same states in closed loop."""
    samples = list_samples(split.annotations, policy.act_step)
    chosen = [samples[i] for i in np.linspace(0, len(samples) - 1, min(size.offline_samples, len(samples))).astype(int)]
    with progress_bar(total=len(chosen), desc=f"{name}: offline", unit="sample") as bar:
        report = evaluate(split, policy, chosen, progress=lambda count: _advance(bar, count))
    with progress_bar(total=size.rollouts, desc=f"{name}: closed loop", unit="episode") as bar:
        rollout = DOORS.run_policy_episodes(
            policy,
            DOORS.make_episodes(size.rollouts),
            progress=lambda _: _advance(bar, 1),
            film=range(size.rollouts) if name in (TRAINED, SHIPPED) else (),
        )
    return Result(name, [record.success for record in rollout.records], report.overall, rollout)


def _advance(bar: tqdm[None], count: int) -> None:
    bar.update(count)


def rows_of(results: Sequence[Result]) -> list[list[str]]:
    """Return a formatted row for each policy."""
    rows = []
    for result in results:
        success = result.success
        closed = f"{sum(result.done)}/{len(result.done)}  [{success.low:.2f}, {success.high:.2f}]"
        errors = ["–" if result.errors is None else f"{result.errors[key]:.4f}" for key in COLUMNS.values()]
        rows.append([result.name, *errors, closed])
    return rows


def check_settings(folder: Path, objective: str, size: Size) -> None:
    """Write the folder's settings, or compare them with those that it was made with.

    A finished run in the folder is not trained again. Raises ValueError if settings differ.
    """
    file, mine = folder / SETTINGS, {"objective": objective, **asdict(size)}
    stored = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for name, old in stored.items():
        if mine.get(name) != old:
            raise ValueError(f"--output {folder} was made with {name} {old}, now it is {mine.get(name)}; {REMEDY}")
    write_text(file, json.dumps(mine, indent=1) + "\n")


def require_same_run(folder: Path, job: Job) -> None:
    """Raise ValueError if the folder's run was trained with other settings than those of ``job``."""
    stored = settings_in(folder / "run/config.yaml")
    other = None if stored is None else difference(stored, settings_of(job))
    if other is not None:
        raise ValueError(f"--output {folder}: the run there was trained with {other}; {REMEDY}")


def collect(
    trained: UPVLAPolicy, shipped: UPVLAPolicy, results: Sequence[Result], job: Job, split: CalvinSplit
) -> Evidence:
    """Film, predict and ask for the report."""
    questions = job.dataset.params.validation_mmu_shards_path_or_url
    return Evidence(
        evidence.films(DOORS, {result.name: result for result in results}),
        evidence.sight(trained, split),
        evidence.futures(shipped, split),
        shipped.act_step,
        evidence.answers(trained, job, Path(questions)) if questions else [],
    )


def write_results(results: Sequence[Result], folder: Path) -> None:
    """Print the table; write `results.json`."""
    header = ["policy", *COLUMNS, "closed loop (95 % interval)"]
    table = markdown_table(header, rows_of(results))
    print(f"Held-out recordings of the desk (lower errors are better)\n{table}")
    numbers = {
        result.name: {**(result.errors or {}), "closed_loop_success": sum(result.done) / len(result.done)}
        for result in results
    }
    write_text(folder / "results.json", json.dumps(numbers, indent=2) + "\n")


def print_outputs(folder: Path, report: Path, seconds: float) -> None:
    """Print where the outputs are, and what to do next."""
    print(f"done in {seconds:.0f} s; results:")
    for what, where in (
        ("report", report),
        ("films, frames", folder / "pictures"),
        ("curves, answers, frames", f"tensorboard --logdir {folder / 'run'}"),
        ("the model", folder / "run"),
    ):
        print(f"  {what:25} {where}")
    print_next("open {report} in a browser; it shows the model and lists the next commands", report=report)


def run(objective: Objective, folder: Path, size: Size, started: float) -> None:
    """Record, train, evaluate, report."""
    print(f"1/3 recording demonstrations on the embedded desk, scene {DOORS.scene}")
    with as_parts():
        record(folder, size)
    print("2/3 training")
    arguments = training_arguments(objective, folder, size)
    job = load_job(arguments, objective)
    require_same_run(folder, job)
    with as_parts():
        train_upvla.main(objective, arguments)
    print("3/3 evaluating on held-out recordings")
    training, validation = (CalvinSplit(folder / "desk" / split) for split in ("training", "validation"))
    mean = mean_action(training, list_samples(training.annotations, job.act_step))
    evaluated = policies(job, folder, mean)
    results = [evaluate_policy(name, policy, validation, size) for name, policy in evaluated.items()]
    results.append(Result(EXPERTS, DOORS.run_expert_episodes(size.rollouts)))
    write_results(results, folder)
    trained, shipped = (evaluated[name] for name in (TRAINED, SHIPPED))
    assert isinstance(trained, UPVLAPolicy)
    assert isinstance(shipped, UPVLAPolicy)
    assert trained.source is not None
    print("writing the report: films, predicted frames, answers")
    shown = collect(trained, shipped, results, job, validation)
    made_with = {"objective": objective, **asdict(size), "weights_sha256": trained.source.weights_sha256}
    seconds = time.monotonic() - started
    facts = Facts(DOORS.scene, DOORS.max_steps, made_with, seconds)
    print_outputs(folder, write_page(folder, facts, results, shown), seconds)


@report_errors("quickstart")
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--objective", choices=list(NAMES), default="ar", help="text objective (default: ar)")
    add(
        "--output-dir",
        "--output",
        dest="output",
        type=path_argument,
        help="folder for everything (default: outputs/quickstart_<objective>)",
    )
    add("--steps", type=whole(1), default=Size.steps, help=f"training steps (default: {Size.steps})")
    add("--episodes", type=whole(1), default=Size.training_episodes, help="demonstration episodes to record")
    args = parser.parse_args(argv)
    started = time.monotonic()
    folder = (args.output or Path("outputs") / f"quickstart_{args.objective}").resolve()
    size = Size(steps=args.steps, training_episodes=args.episodes)
    text_objective(args.objective)
    with hold(folder, "quickstart", "--output "):
        check_settings(folder, args.objective, size)
        run(args.objective, folder, size, started)
    return 0


if __name__ == "__main__":
    run_command(main)

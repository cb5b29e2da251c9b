"""See the whole system work on this machine: record, train, judge, look.

    make quickstart [OBJECTIVE=ar]
    python -m scripts.quickstart [--objective ar] [--steps 400] [--output outputs/quickstart_ar]

Scripted experts play on the embedded desk and are recorded as CALVIN records; a small vision-language-action model
(random start, embedded tokenizers) is trained on it with all three losses; then it is compared on held-out play with
the same model untrained and with the constant mean action, by its action errors and in closed loop.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import train_upvla  # noqa: E402
from common.arguments import path_argument, whole  # noqa: E402
from common.atomic_file import replace_text  # noqa: E402
from common.command import run_command  # noqa: E402
from common.folder_lock import hold  # noqa: E402
from config.identity import difference, settings_in, settings_of  # noqa: E402
from config.loading import ConfigError, load_job  # noqa: E402
from config.schema import Job  # noqa: E402
from models.checkpoint import build  # noqa: E402
from models.magvit import load_magvit  # noqa: E402
from models.objectives import text_objective  # noqa: E402
from policy_rollout.benchmarks.offline import evaluate, list_samples, mean_action  # noqa: E402
from policy_rollout.pictures import GREEN, RED, beside, captioned, sheet, write_gif, write_png  # noqa: E402
from policy_rollout.policy import ConstantPolicy, Observation, Policy, UPVLAPolicy  # noqa: E402
from policy_rollout.rollout import Rollout  # noqa: E402
from preprocess_data import make_desk_demos, process_calvin  # noqa: E402
from scripts import desk_trial as trial  # noqa: E402
from training.data.calvin import CalvinSplit  # noqa: E402

SETTINGS = "quickstart.json"
ANOTHER = "give another --output, or delete it"
NAMES = {"ar": "arvla", "mdm": "mdmvla", "bd": "bdvla"}


@dataclass(frozen=True)
class Size:
    """How much of everything; the default fits ten minutes on two cores, installation included."""

    training_episodes: int = 20
    validation_episodes: int = 4
    steps: int = 400
    offline_samples: int = 240
    rollouts: int = 16


@dataclass(frozen=True)
class Verdict:
    """What one policy got: errors on held-out play, and tasks done in closed loop."""

    name: str
    errors: dict[str, float]
    rollout: Rollout


def record(folder: Path, size: Size) -> None:
    """Demonstrations of both splits in CALVIN's format, then as `dataset_info.json`."""
    for split, episodes in (("training", size.training_episodes), ("validation", size.validation_episodes)):
        arguments = {
            "--out": folder / "desk",
            "--episodes": episodes,
            "--split": split,
            "--scenes": trial.SCENE,
            "--static-size": trial.STATIC_SIZE,
            "--workers": max(1, min(4, os.cpu_count() or 1)),
            "--tasks": "doors_and_lights",
        }
        _run(make_desk_demos.main, arguments)
        arguments = {"--source-split-dir": folder / "desk" / split, "--output-dir": folder / f"processed_{split}"}
        _run(process_calvin.main, arguments)


def _run(command: Callable[[Sequence[str]], int | None], arguments: dict[str, object]) -> None:
    code = command([str(word) for pair in arguments.items() for word in pair])
    if code:
        raise SystemExit(code)


def training_arguments(objective: str, folder: Path, size: Size) -> list[str]:
    """What a user would type after `python train_upvla.py`."""
    return [
        f"config={ROOT / 'config' / f'tiny_{NAMES[objective]}.yaml'}",
        f"dataset.params.train_pre_shards_path_or_url={folder / 'processed_training'}",
        f"dataset.params.validation_pre_shards_path_or_url={folder / 'processed_validation'}",
        f"experiment.output_dir={folder / 'run'}",
        f"training.max_train_steps={size.steps}",
    ]


def policies(job: Job, folder: Path, mean: NDArray[np.float32]) -> dict[str, Policy]:
    """Trained, the same network before training, and the training actions' mean."""
    trained = UPVLAPolicy.from_config(folder / "run/config.yaml", checkpoint=folder / "run")
    untrained = UPVLAPolicy(build(job), load_magvit(job.model.vq_model.vq_model_name), device=trained.device)
    constant = ConstantPolicy(mean, act_step=trained.act_step, convention=trained.convention)
    return {"trained": trained, "untrained": untrained, "mean action": constant}


def judge(name: str, policy: Policy, split: CalvinSplit, size: Size) -> Verdict:
    """Action errors on held-out play, and the same tasks from the same states in closed loop for every policy."""
    samples = list_samples(split.annotations, policy.act_step)
    chosen = [samples[i] for i in np.linspace(0, len(samples) - 1, min(size.offline_samples, len(samples))).astype(int)]
    with tqdm(total=len(chosen), desc=f"{name}: offline", unit="sample") as bar:
        report = evaluate(split, policy, chosen, progress=lambda done: _advance_to(bar, done))
    with tqdm(total=size.rollouts, desc=f"{name}: closed loop", unit="episode") as bar:
        rollout = trial.play_episodes(
            policy,
            trial.episodes(size.rollouts),
            progress=lambda _: _advance_to(bar, bar.n + 1),
            film=range(4) if name == "trained" else (),
        )
    return Verdict(name, report.overall, rollout)


def _advance_to(bar: tqdm[None], done: int) -> None:
    bar.update(done - bar.n)


def picture_futures(policy: UPVLAPolicy, split: CalvinSplit, path: Path, rows: int = 4) -> None:
    """A sheet of now | predicted | true, T steps ahead, for held-out frames."""
    windows = [w for w in split.annotations if w.end - w.start >= policy.act_step][:rows]
    cells = []
    for window in windows:
        moments = (window.start, window.start + policy.act_step)
        now, later = (split.frame(moment, ("rgb_static",))["rgb_static"] for moment in moments)
        predicted = policy.predict_future([Observation(now, window.instruction)])[0, 0]
        row = beside([now, predicted, later], height=192)
        cells.append(captioned(row, window.instruction, f"now | predicted | true, {policy.act_step} steps ahead"))
    write_png(path, sheet(cells, columns=1))


COLUMNS = {
    "MAE": "mae_all",
    "RMSE": "rmse_all",
    "MAE position": "mae_pos",
    "MAE rotation": "mae_rot",
}


def rows_of(verdicts: Sequence[Verdict]) -> list[list[str]]:
    """One row a policy, formatted."""
    rows = []
    for verdict in verdicts:
        success = verdict.rollout.success()
        done = sum(record.success for record in verdict.rollout.records)
        closed = f"{done}/{len(verdict.rollout.records)}  [{success.low:.2f}, {success.high:.2f}]"
        rows.append([verdict.name, *(f"{verdict.errors[key]:.4f}" for key in COLUMNS.values()), closed])
    return rows


def settle(folder: Path, objective: str, size: Size) -> None:
    """Write down what the folder is made with, or see that it is what it was made with before: what is trained there
    is not trained again. Raises ValueError where it differs."""
    file, mine = folder / SETTINGS, {"objective": objective, **asdict(size)}
    held = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for name, old in held.items():
        if mine.get(name) != old:
            raise ValueError(f"--output {folder} was made with {name} {old}, now it is {mine.get(name)}; {ANOTHER}")
    replace_text(file, json.dumps(mine, indent=1) + "\n")


def require_same_run(folder: Path, job: Job) -> None:
    """Raises ValueError where the folder's run was trained with other settings than ``job`` has."""
    held = settings_in(folder / "run/config.yaml")
    other = None if held is None else difference(held, settings_of(job))
    if other is not None:
        raise ValueError(f"--output {folder}: the run there was trained with {other}; {ANOTHER}")


def tell(
    verdicts: Sequence[Verdict], folder: Path, pictures: Sequence[Path], made_with: dict[str, Any], seconds: float
) -> None:
    """The table on the screen and in `report.md`, numbers in `results.json`, and where to look."""
    header = ["policy", *COLUMNS, "closed loop (95 % interval)"]
    table = Table(title="Held-out play on the desk (lower errors are better)")
    for title in header:
        table.add_column(title, justify="left" if title == "policy" else "right")
    for row in rows_of(verdicts):
        table.add_row(*row)
    console = Console()
    console.print(table)
    lines = ["| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows_of(verdicts)]]
    note = (
        "Embedded models (random start), a few minutes of training: this shows that everything works, not how good "
        "the method is."
    )
    told = ", ".join(f"{name} {value}" for name, value in made_with.items())
    links = "\n".join(f"![{p.stem}](pictures/{p.name})" for p in pictures)
    replace_text(
        folder / "report.md", "\n".join(["# Quickstart", "", *lines, "", note, "", f"Made with {told}.", "", links, ""])
    )
    results = {
        verdict.name: {**verdict.errors, "closed_loop_success": verdict.rollout.success().point} for verdict in verdicts
    }
    replace_text(folder / "results.json", json.dumps(results, indent=2) + "\n")
    console.print(f"[bold]done in {seconds:.0f} s[/bold]; look at:")
    for what, where in (
        ("report", folder / "report.md"),
        ("predicted frames and rollouts", folder / "pictures"),
        ("curves, answers, frames", f"tensorboard --logdir {folder / 'run'}"),
        ("the model", folder / "run"),
    ):
        console.print(f"  {what:30} {where}", soft_wrap=True)


def run(objective: str, folder: Path, size: Size, started: float) -> None:
    """Record, train, judge, report."""
    print(f"1/3 recording demonstrations on the embedded desk, scene {trial.SCENE}")
    record(folder, size)
    print("2/3 training")
    arguments = training_arguments(objective, folder, size)
    job = load_job(arguments, objective)
    require_same_run(folder, job)
    train_upvla.main(objective, arguments)
    print("3/3 judging on held-out play")
    training, validation = (CalvinSplit(folder / "desk" / split) for split in ("training", "validation"))
    mean = mean_action(training, list_samples(training.annotations, job.act_step))
    judged = policies(job, folder, mean)
    verdicts = [judge(name, policy, validation, size) for name, policy in judged.items()]
    trained = judged["trained"]
    assert isinstance(trained, UPVLAPolicy)
    assert trained.source is not None
    pictures = [folder / "pictures/now_predicted_true.png"]
    picture_futures(trained, validation, pictures[0])
    for index, frames in verdicts[0].rollout.frames.items():
        outcome = verdicts[0].rollout.records[index]
        ending, colour = ("done", GREEN) if outcome.success else (f"not done in {trial.PATIENCE} steps", RED)
        told = [captioned(frame, outcome.instruction, ending, colour) for frame in frames]
        pictures.append(folder / f"pictures/rollout_{index}_{outcome.task}.gif")
        write_gif(pictures[-1], told)
    made_with = {"objective": objective, **asdict(size), "weights_sha256": trained.source.weights_sha256}
    tell(verdicts, folder, pictures, made_with, time.monotonic() - started)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objective", choices=list(NAMES), default="ar", help="text objective (default: ar)")
    parser.add_argument(
        "--output", type=path_argument, help="folder for everything (default: outputs/quickstart_<objective>)"
    )
    parser.add_argument("--steps", type=whole(1), default=Size.steps, help=f"training steps (default: {Size.steps})")
    parser.add_argument(
        "--episodes", type=whole(1), default=Size.training_episodes, help="demonstration episodes to record"
    )
    args = parser.parse_args(argv)
    started = time.monotonic()
    folder = (args.output or Path("outputs") / f"quickstart_{args.objective}").resolve()
    size = Size(steps=args.steps, training_episodes=args.episodes)
    try:
        text_objective(args.objective)
        with hold(folder, "quickstart", "--output "):
            settle(folder, args.objective, size)
            run(args.objective, folder, size, started)
    except (ConfigError, ValueError, OSError) as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    run_command(main)

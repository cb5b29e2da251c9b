"""Run one training step and one prediction with the embedded models, to check the installation.

python scripts/smoke_upvla_minimal.py --dataset-path ./dummy_data/calvin_processed_training
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import train_upvla
from common.arguments import command_parser, path_argument
from common.command import report_errors, run_command
from policy_rollout.policies.upvla import Observation, UPVLAPolicy
from training.future_view_prediction_w_action_dataset import DataProvider

DESCRIPTION = """\
Runs the training script for one step on bundled data with the embedded models (config/debug_*_1step.yaml, the same
code as a full run), prints the losses, loads the checkpoint, predicts actions for one frame of the data, and ends with
smoke_ok=True. Takes under a minute on two CPU cores; exits with 1 if a result is wrong."""
ROOT = Path(__file__).resolve().parents[1]
LOSSES = ("image/loss", "action/loss", "text/loss", "action_bd/loss", "total/loss")
NAMES = {"ar": "arvla", "mdm": "mdmvla", "bd": "bdvla"}


def train_one_step(objective: str, dataset: Path, output_dir: Path, overrides: Sequence[str]) -> dict[str, float]:
    """Train one step; return the losses that the run logged."""
    argv = [
        f"config={ROOT / 'config' / f'debug_{NAMES[objective]}_1step.yaml'}",
        f"dataset.params.train_pre_shards_path_or_url={dataset}",
        f"experiment.output_dir={output_dir}",
        "experiment.tracker=none",
        *overrides,
    ]
    train_upvla.main(objective, argv)  # type: ignore[arg-type]
    lines = (output_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return {name: record[name] for record in records for name in LOSSES if name in record}


def act_once(dataset: Path, output_dir: Path) -> list[int]:
    """Return the shape of the action chunk that the checkpoint predicts for a frame of the data."""
    policy = UPVLAPolicy.from_config(output_dir / "config.yaml", checkpoint=output_dir / "checkpoint-1")
    spec = policy.spec
    sample = DataProvider(dataset, act_step=spec.act_step, resolution=spec.resolution, num_view=spec.num_view)[0]
    views = [view.permute(1, 2, 0).numpy() for view in sample.views]
    gripper, state = views[1] if len(views) > 1 else None, None if sample.state is None else sample.state.numpy()
    observation = Observation(views[0], sample.instruction, gripper, state)
    return list(policy.act([observation]).shape)


def parser() -> argparse.ArgumentParser:
    made = command_parser(DESCRIPTION)
    made.add_argument(
        "--dataset-path",
        type=path_argument,
        default=ROOT / "dummy_data" / "calvin_processed_training",
        help="robot demonstrations: folder with dataset_info.json (default: the bundled ones)",
    )
    made.add_argument("--objective", choices=tuple(NAMES), default="ar", help="text objective (default: ar)")
    made.add_argument("--output-dir", type=path_argument, help="folder of the run (default: a temporary folder)")
    made.add_argument("overrides", nargs="*", metavar="section.key=value", help="further configuration keys")
    return made


@report_errors("smoke_upvla_minimal")
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    started = time.perf_counter()
    dataset = options.dataset_path.resolve()
    with tempfile.TemporaryDirectory(prefix="blockdiff_smoke_", ignore_cleanup_errors=True) as scratch:
        output_dir = options.output_dir or Path(scratch) / "run"
        losses = train_one_step(options.objective, dataset, output_dir, options.overrides)
        shape = act_once(dataset, output_dir)
    for name, value in losses.items():
        print(f"{name}={value:.6f}")
    print(f"action_chunk={shape}")
    print(f"seconds={time.perf_counter() - started:.1f}")
    healthy = "total/loss" in losses and all(map(math.isfinite, losses.values())) and len(shape) == 3
    print(f"smoke_ok={healthy}")
    return 0 if healthy else 1


if __name__ == "__main__":
    run_command(main)

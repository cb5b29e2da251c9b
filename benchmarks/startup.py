"""Measure the time before the first batch of training, before the first policy call, and of ``--help``.

Starts fresh processes with the embedded models, and reports the CPU time of each stage: Python itself, imports, the
networks, the first batch of training data; the same for a policy up to its first call; and wall time of --help of the
commands.

Examples:
  python -m benchmarks.startup --out benchmarks/results/startup.json
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.record import ROOT, Parser, write
from benchmarks.harness.timing import Spread
from common.command import progress_bar, run_command
from config.loading import load_job
from models.pretrained.model_io import build, save_folder

CONFIG = ROOT / "config" / "tiny_bdvla.yaml"
CLOCK = """
import json, sys, time
stages, last = {}, 0.0
def stage(name):
    global last
    now = time.process_time()
    stages[name], last = now - last, now
stage("python")
"""
TRAINING = """
import torch
stage("import torch")
from config.loading import load_job
from training.run import open_run
from training.build import setup
from training.batch_to_tasks import bundle
stage("import the rest")
job = load_job(sys.argv[1:], None)
with open_run(job) as run:
    parts = setup(run)
    stage("networks and data")
    next(iter(parts.data))
    stage("first batch")
print(json.dumps(stages))
"""
ACTING = """
import torch
stage("import torch")
import numpy
from policy_rollout.policies.upvla import Observation, UPVLAPolicy
stage("import the rest")
policy = UPVLAPolicy.from_config(sys.argv[1], "cpu")
stage("networks")
seen = [Observation(numpy.zeros((96, 96, 3), numpy.uint8), "open the drawer")]
policy.act(seen)
stage("first call")
policy.act(seen)
stage("second call")
print(json.dumps(stages))
"""
HELPS = ("train_upvla.py", "scripts/generate_text.py", "scripts/eval_upvla_offline_actions.py")


def stages_of(script: str, *given: str) -> dict[str, float]:
    """Return the CPU seconds of each stage of a fresh process."""
    command = [sys.executable, "-c", CLOCK + script, *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, encoding="utf-8")
    if done.returncode:
        raise SystemExit(f"a process failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found | {"in all": sum(found.values())}


def help_of(script: str) -> dict[str, float]:
    """Return the wall time of ``--help``."""
    began = time.perf_counter()
    subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, check=True)
    return {"wall": time.perf_counter() - began}


def save_policy(folder: Path) -> Path:
    """Save the embedded networks with random weights; return the model yaml."""
    job = load_job([f"config={CONFIG}"], None)
    built = build(job)
    save_folder(built.model, built.prompter, folder / "model")
    file = folder / "model.yaml"
    vq = job.model.vq_model.vq_model_name
    file.write_text(
        f"model:\n  vq_model:\n    vq_model_name: {vq}\n  showo:\n    tuned_model_path: {folder / 'model'}\n",
        encoding="utf-8",
    )
    return file


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = Parser("startup", __doc__, rounds=5).parse(argv)
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        yaml = str(save_policy(Path(name)))
        training = [f"config={CONFIG}", f"experiment.output_dir={name}/run", "experiment.tracker=none"]
        for _ in progress_bar(range(args.rounds), desc="starting", unit="round"):
            found.setdefault("training", []).append(stages_of(TRAINING, *training))
            found.setdefault("acting", []).append(stages_of(ACTING, yaml))
            for script in HELPS:
                found.setdefault(f"{script} --help", []).append(help_of(script))
    results = {
        what: {stage: Spread.of([run[stage] for run in runs]) for stage in runs[0]} for what, runs in found.items()
    }
    for what, stages in results.items():
        print(f"  {what:<48} " + ", ".join(f"{stage} {spread.median:.2f} s" for stage, spread in stages.items()))
    write(args, {"results": results})
    return results


if __name__ == "__main__":
    run_command(main)

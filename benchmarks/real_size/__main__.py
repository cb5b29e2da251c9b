"""Rehearse training, resuming, acting, answering and serving with models of the released sizes and random weights.

    python -m benchmarks.real_size --work /tmp/real_size                 # hours on two cores, about 30 GB of disk
    python -m benchmarks.real_size --work /tmp/small --layers 2          # a trial with two layers of the backbone

Writes folders as the released models have them (UP-VLA on Phi-1.5 6.1 GB of float32, MAGVITv2, CLIP ViT-L/14-336,
Qwen3-1.7B in bfloat16), and runs the shipped run files with preset=24gb in float32 at 512 pixels, one sample of each
kind, adapters only: one step with a checkpoint, a second step after resuming, one action, one answer, one served call.
The memory of every process is read four times a second and compared with the estimate of scripts/estimate_memory.py.
What breaks at this size is found here. A step that is done is not run again; --only runs some steps.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.harness.record import Parser, write
from benchmarks.real_size.folders import make_folders, qwen_settings, settings
from benchmarks.real_size.serving import serve_one_call
from benchmarks.real_size.watch import Watched, watch
from common.arguments import path_argument, whole
from common.command import progress_bar, run_command
from common.files import write_text
from common.tables import markdown_table

GIB = 1 << 30
TRAINED = {
    "ar": ("train_upvla.py", "arvla_action_tuning"),
    "mdm": ("train_mdm_vla.py", "mdmvla_action_tuning"),
    "bd": ("train_blockdiff_vla.py", "bdvla_action_tuning"),
    "qwen3": ("train_blockdiff_vla.py", "bdvla_action_tuning_qwen3_elastic"),
}
"""Name -> entry point, run file."""
IMAGE = Path("dummy_data/llava")


@dataclass(frozen=True)
class Step:
    """One command of the rehearsal. ``phase``: returns what the command does now."""

    name: str
    command: list[str]
    phase: Callable[[], str] = lambda: "run"


def training(name: str, work: Path, steps: int) -> list[str]:
    """Return the arguments of a run of ``steps`` steps."""
    _, run = TRAINED[name]
    folders = work / "models"
    return [
        f"config=config/{run}.yaml",
        "preset=24gb",
        *(qwen_settings(folders) if name == "qwen3" else settings(folders)),
        f"experiment.output_dir={work / name}",
        "experiment.save_every=1",
        "experiment.checkpoints_total_limit=1",
        "experiment.eval_every=0",
        "experiment.generate_every=0",
        "experiment.log_every=1",
        "experiment.log_grad_norm_every=0",
        "training.mixed_precision=no",
        "training.batch_size_pre=1",
        "training.batch_size_mmu=1",
        "training.gradient_accumulation_steps=1",
        f"training.max_train_steps={steps}",
        "lr_scheduler.params.warmup_steps=0",
        "dataset.params.num_workers=1",
    ]


def phase_of_training(work: Path, name: str, steps: int) -> Callable[[], str]:
    """Return a function that returns "loading", "step" or "saving", from the files of the run."""
    log, metrics = work / "logs" / f"{name} {steps}.log", work / name / "metrics.jsonl"

    def phase() -> str:
        text = metrics.read_text(encoding="utf-8") if metrics.is_file() else ""
        if any(json.loads(line).get("step") == steps for line in text.splitlines()):
            return "saving"
        return "step" if "speed/mfu" in log.read_text(encoding="utf-8", errors="replace") else "loading"

    return phase


def steps_of(names: Sequence[str], work: Path) -> list[Step]:
    """Return all commands, in order."""
    found = []
    for name in names:
        for count, title in ((1, "train"), (2, "resume")):
            command = [sys.executable, TRAINED[name][0], *training(name, work, count)]
            found.append(Step(f"{title} {name}", command, phase_of_training(work, name, count)))
        picture = str(next(path for path in sorted(IMAGE.rglob("*")) if path.suffix in (".jpg", ".png")))
        model = ["--checkpoint", str(work / name), "--device", "cpu"]
        act = ["scripts/eval_upvla_offline_actions.py", "--dataset-root", "dummy_data/calvin", "--max-samples", "1"]
        found.append(Step(f"act {name}", [sys.executable, *act, *model]))
        answer = ["scripts/generate_text.py", "--picture", picture, "--question", "What is this?", *model]
        found.append(Step(f"answer {name}", [sys.executable, *answer, "--max-new-tokens", "16"]))
        serve = ["-m", "policy_rollout.serve", "--port", "0", *model]
        found.append(Step(f"serve {name}", [sys.executable, *serve]))
    return found


def run(step: Step, work: Path) -> Watched:
    """Run a step and return what it needed; its output is in ``work``/logs."""
    _, _, name = step.name.partition(" ")
    if step.name.startswith(("train", "resume")):
        count = 1 if step.name.startswith("train") else 2
        return watch(step.command, work / "logs" / f"{name} {count}.log", step.phase)
    log = work / "logs" / f"{step.name}.log"
    return serve_one_call(step.command, log) if step.name.startswith("serve") else watch(step.command, log)


def estimated(name: str, work: Path) -> float:
    """Return the estimated gigabytes (2^30 bytes) of a training step."""
    log = work / "logs" / f"estimate {name}.log"
    watch([sys.executable, "scripts/estimate_memory.py", *training(name, work, 1)], log)
    found = re.search(r"total\s+([\d.]+) (GB|MB)", log.read_text(encoding="utf-8"))
    if found is None:
        raise ValueError(f"{log}: no total; scripts/estimate_memory.py failed")
    return float(found[1]) / (1 if found[2] == "GB" else 1024)


def page(results: dict[str, dict[str, object]], command: str) -> str:
    """Return the report in markdown."""
    rows = []
    for name, result in results.items():
        anonymous: dict[str, int] = result["anonymous"]  # type: ignore[assignment]
        peaks = ", ".join(f"{phase} {size / GIB:.1f}" for phase, size in anonymous.items())
        estimate = result.get("estimate")
        shown = f"{estimate:.1f}" if isinstance(estimate, float) else "–"
        ending = "ended well" if result["code"] == 0 else f"**exit code {result['code']}**"
        seconds, cpu = result["seconds"], result["cpu_seconds"]
        rows.append([name, f"{seconds:.0f}", f"{cpu:.0f}", peaks, shown, ending])
    head = ["step", "seconds", "CPU seconds", "peak memory of its own by phase, GB", "estimate, GB", ""]
    return f"# Released sizes, random weights\n\n`{command}`\n\n{markdown_table(head, rows)}\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("real_size", __doc__, rounds=1)
    parser.add_argument("--work", type=path_argument, required=True, help="folder of the models, runs and logs")
    parser.add_argument("--layers", type=whole(1), help="layers of the language models (default: as released)")
    parser.add_argument("--models", default=",".join(TRAINED), help="which runs, by commas (%(default)s)")
    parser.add_argument("--only", default="", help="only steps whose name begins so, such as 'train bd'")
    args = parser.parse(argv)
    work: Path = args.work.resolve()
    names = parser.split("--models", args.models, list(TRAINED))
    make_folders(work / "models", args.layers)
    stored = work / "results.json"
    results = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else {}
    steps = [step for step in steps_of(names, work) if step.name.startswith(args.only)]
    bar = progress_bar([step for step in steps if results.get(step.name, {}).get("code") != 0], unit="step")
    for step in bar:
        kind, _, name = step.name.partition(" ")
        if kind == "train":
            shutil.rmtree(work / name, ignore_errors=True)
        bar.write(f"{step.name} ...")
        expected = {"estimate": estimated(name, work)} if kind == "train" else {}
        results[step.name] = found = asdict(run(step, work)) | expected
        write_text(stored, json.dumps(results, indent=1) + "\n")
        memory = f"{max(found['anonymous'].values()) / GIB:.1f} GB"
        bar.write(f"  exit code {found['code']}, {found['seconds']:.0f} s, {memory}")
    command = shlex.join(["python", "-m", "benchmarks.real_size", *args.argv])
    write(args, {"layers": args.layers or "as released", "steps": results})
    write_text(args.out.with_suffix(".md"), page(results, command))
    print(f"written: {args.out}, {args.out.with_suffix('.md').name}; output of the steps in {work / 'logs'}")
    return int(any(result["code"] for result in results.values()))


if __name__ == "__main__":
    run_command(main)

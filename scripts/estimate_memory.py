"""Estimate the device memory that one training step takes, without a GPU and without computing anything.

python scripts/estimate_memory.py config=./config/bdvla_action_tuning.yaml preset=24gb --device-gb 24
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from common.arguments import command_parser, path_argument, real
from common.command import report_errors, run_command
from config.loading import load_job
from config.schema import Job

DESCRIPTION = """\
Estimates the memory on the device of one process at the peak of a training step, on the longest rows that the
configuration allows. The arguments are those of the training scripts; no weights of the language model are read.
Takes seconds for the embedded models, up to a minute or two for some billion parameters.

Counted: weights, gradients, optimizer state, weight average, frozen networks, activations. A GB is 2^30 bytes.
Not counted: the CUDA context and its libraries (about 0.5 GB), fragmentation, evaluation, generated answers, and
copies made while a checkpoint is written. Keep 7 % of a device free for the first two."""
EPILOG = """\
examples:
  python scripts/estimate_memory.py config=./config/tiny_bdvla.yaml
  python scripts/estimate_memory.py config=./config/upvla_action_tuning.yaml preset=48gb --device-gb 48
  python scripts/estimate_memory.py config=./config/upvla_action_tuning.yaml training.batch_size_pre=4 lora.rank=32
  python scripts/estimate_memory.py config=./config/upvla_action_tuning.yaml \\
      --launch accelerate_configs/8_gpus_deepspeed_zero2.yaml

With --device-gb the exit code is 1 if the estimate is above 93 % of the device."""
GIB = 1 << 30
USABLE = 0.93
"""Fraction of a device that tensors can use; the rest is the CUDA context and fragmentation."""


def remedies(job: Job) -> str:
    """Return the settings that make a run smaller and that it does not use yet."""
    settings = job.training
    found = [
        ("model.gradient_checkpointing=true", not job.model.gradient_checkpointing),
        ("training.mixed_precision=bf16", settings.mixed_precision == "no"),
        (f"training.batch_size_pre={settings.batch_size_pre // 2}", settings.batch_size_pre > 1),
        (f"training.batch_size_mmu={settings.batch_size_mmu // 2}", settings.batch_size_mmu > 1),
        ("optimizer.name=adamw_8bit", job.optimizer.name == "adamw" and job.lora.rank == 0),
        ("lora.rank=32", job.lora.rank == 0),
    ]
    return ", ".join([*(text for text, helps in found if helps), "or a preset (preset=24gb)"])


def size_text(size: int) -> str:
    """Return a number of bytes in GB or MB."""
    return f"{size / GIB:.1f} GB" if size >= GIB else f"{size / (1 << 20):.0f} MB"


@report_errors("estimate_memory")
def main(argv: Sequence[str] | None = None) -> int:
    """Print the estimate; return 1 if it does not fit on the device that was given."""
    parser = command_parser(DESCRIPTION, EPILOG)
    parser.add_argument("job", nargs="+", metavar="config=FILE | section.key=value", help="as for train_*.py")
    parser.add_argument("--launch", type=path_argument, metavar="FILE", help="launch file of accelerate")
    parser.add_argument("--device-gb", type=real(above=0), metavar="GB", help="memory of the device to compare with")
    options = parser.parse_args(argv)
    job = load_job(options.job)
    from training.memory import Sharding, build_shapes, estimate, read_launch  # loads torch

    sharding = Sharding() if options.launch is None else read_launch(options.launch, job)
    found = estimate(build_shapes(job), sharding)
    for name, size in asdict(found).items():
        print(f"{name:12}{size_text(size):>10}")
    print(f"{'total':12}{size_text(found.total):>10} per process, at the longest rows")
    if options.device_gb is None or found.total <= USABLE * options.device_gb * GIB:
        return 0
    print(f"This will probably not fit into {options.device_gb:g} GB. Smaller: {remedies(job)}")
    return 1


if __name__ == "__main__":
    run_command(main)

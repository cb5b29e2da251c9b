r"""Offline action metrics of a policy on recorded CALVIN frames. No simulator is needed.

    python scripts/eval_upvla_offline_actions.py --dataset-root /path/to/calvin --split validation \
        --checkpoint outputs/tiny_arvla --device cuda:0 --stride 10 --output-json results/arvla.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from common.arguments import command_parser, path_argument
from common.command import print_next, report_errors, run_command
from policy_rollout.policies.interface import ACTION_DECODERS, ACTION_KEYS
from policy_rollout.policies.model_options import add_model_options, require_model_options

DESCRIPTION = """\
Runs a policy on recorded frames and compares its actions with the demonstrated ones: mean absolute error and root mean
square error over all seven dimensions, position (xyz), rotation (Euler) and gripper, and how often the gripper's sign
is right; overall and per task. A sample is a frame of an annotated window; the chunk is compared up to the
end of the window."""
EPILOG = """\
examples:
  one sample per annotation, on the CPU:
    python scripts/eval_upvla_offline_actions.py --dataset-root $CALVIN/task_ABC_D --checkpoint outputs/mine \\
        --device cpu --start-only --output-json results/mine.json
  the same with block-diffusion actions (a model trained with block_diffusion.action_enabled=true):
    python scripts/eval_upvla_offline_actions.py --dataset-root $CALVIN/task_ABC_D --checkpoint outputs/mine \\
        --device cpu --start-only --action-decoder block_diffusion --output-json results/mine_bd.json
  the same from cached image codes, without opening frames:
    python preprocess_data/tokenize_images.py --data $CALVIN/task_ABC_D/validation --tokenizer showlab/magvitv2 \\
        --resolution 512 --output caches
    python scripts/eval_upvla_offline_actions.py ... --token-cache caches
  a constant action on the same samples:
    python scripts/eval_upvla_offline_actions.py --dataset-root $CALVIN/task_ABC_D --baseline mean --start-only \\
        --output-json results/mean.json
  both in one table:
    python scripts/summarize_offline_eval_json.py --inputs results/mine.json results/mean.json

--model-config is needed for other frozen networks or decoding than the checkpoint's own: copy one of
policy_rollout/*_model.yaml and pass the copy; its model.showo.tuned_model_path names a checkpoint, too."""


def parser() -> argparse.ArgumentParser:
    made = command_parser(DESCRIPTION, EPILOG)
    add = made.add_argument_group("data").add_argument
    add(
        "--dataset-root",
        type=path_argument,
        required=True,
        help="folder with training/ and validation/ (CALVIN or processed)",
    )
    add("--split", default="validation", help="folder in it to evaluate (default: validation)")
    add("--start-only", action="store_true", help="only the first frame of each annotation")
    add("--stride", type=int, default=1, help="frames from one sample to the next (default: 1)")
    add("--max-samples", type=int, default=0, help="take the first that many samples (default: 0, all)")
    add("--action-key", choices=ACTION_KEYS, default=ACTION_KEYS[0], help="recorded actions to use")
    add("--clip-action", action="store_true", help="cut predicted actions to [-1, 1]")
    cache = "image codes of the split, made by preprocess_data/tokenize_images.py; no frame is opened"
    add("--token-cache", type=path_argument, metavar="DIR", help=cache)
    policy = made.add_argument_group("policy: a model, or a baseline")
    add_model_options(policy)
    policy.add_argument("--baseline", choices=("mean", "zero"), help="a constant: mean training action, or zero")
    add = made.add_argument
    add(
        "--action-decoder",
        choices=ACTION_DECODERS,
        help="source of a model's actions: the regression head, or block-diffusion action tokens "
        "(default: block_diffusion.action_infer_enabled of the model yaml, else of the training run)",
    )
    add("--device", default="auto", help="auto, cpu, cuda or cuda:<n>; without CUDA the CPU is used")
    add("--batch-size", type=int, default=0, help="samples per forward (default: 0, as many as fit)")
    mean = "split, raw or processed, whose mean action is taken (default: training)"
    add("--train-split", type=path_argument, help=mean)
    add("--act-step", type=int, default=10, help="chunk length of a baseline (default: 10)")
    add("--output-json", type=path_argument, help="file of the results")
    return made


@report_errors("eval_upvla_offline_actions")
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    if options.baseline is None:
        require_model_options(options)
    elif options.checkpoint is not None or options.model_config is not None:
        raise ValueError(f"--baseline {options.baseline} is no model; leave out --checkpoint and --model-config")
    # Imported here: --help and errors on the command line come before torch and transformers are loaded.
    from policy_rollout.benchmarks.offline_cli import run

    run(options)
    if options.output_json is None:
        print_next("give --output-json FILE to keep these results and to compare them")
    else:
        print_next("blockdiff-vla eval table --inputs {file} OTHER", file=options.output_json)
    return 0


if __name__ == "__main__":
    run_command(main)

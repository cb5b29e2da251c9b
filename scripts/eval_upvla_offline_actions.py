r"""Offline action metrics of a policy on recorded CALVIN frames. No simulator is needed.

    python scripts/eval_upvla_offline_actions.py --dataset-root /path/to/calvin --split validation \
        --model-config policy_rollout/arvla_model.yaml --device cuda:0 --stride 10 --output-json results/arvla.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from common.arguments import path_argument
from common.command import run_command
from policy_rollout.policies.interface import ACTION_DECODERS, ACTION_KEYS
from policy_rollout.policies.model_yaml import load_model_yaml

DESCRIPTION = """\
Runs a policy on recorded frames and compares its actions with the demonstrated ones: mean absolute error and root mean
square error over all seven dimensions, position (xyz), rotation (Euler) and gripper, and how often the gripper's sign
is right; overall and per task. A sample is a frame of an annotated window; the chunk is compared up to the
end of the window."""
EPILOG = """\
examples:
  one sample per annotation, on the CPU:
    python scripts/eval_upvla_offline_actions.py --dataset-root $CALVIN/task_ABC_D --model-config my_model.yaml \\
        --device cpu --start-only --output-json results/mine.json
  the same with block-diffusion actions (a model trained with block_diffusion.action_enabled=true):
    python scripts/eval_upvla_offline_actions.py --dataset-root $CALVIN/task_ABC_D --model-config my_model.yaml \\
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

The model yaml has the checkpoint in model.showo.tuned_model_path; copy one of policy_rollout/*_model.yaml, set the key
and pass the copy."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = made.add_argument_group("data")
    data.add_argument(
        "--dataset-root",
        type=path_argument,
        required=True,
        help="folder with training/ and validation/: CALVIN's, or processed splits (dataset_info.json)",
    )
    data.add_argument("--split", default="validation", help="folder in it to evaluate (default: validation)")
    data.add_argument("--start-only", action="store_true", help="only the first frame of each annotation")
    data.add_argument("--stride", type=int, default=1, help="frames from one sample to the next (default: 1)")
    data.add_argument("--max-samples", type=int, default=0, help="take the first that many samples (default: 0, all)")
    data.add_argument("--action-key", choices=ACTION_KEYS, default=ACTION_KEYS[0], help="recorded actions to use")
    data.add_argument("--clip-action", action="store_true", help="cut predicted actions to [-1, 1]")
    data.add_argument(
        "--token-cache",
        type=path_argument,
        metavar="DIR",
        help="image codes of the split, made by preprocess_data/tokenize_images.py; no frame is opened",
    )
    policy = made.add_argument_group("policy (one of --model-config and --baseline)")
    policy = policy.add_mutually_exclusive_group(required=True)
    policy.add_argument("--model-config", help="model yaml, e.g. policy_rollout/arvla_model.yaml")
    made.add_argument(
        "--action-decoder",
        choices=ACTION_DECODERS,
        help="source of the actions of --model-config: the regression head, or block-diffusion action tokens "
        "(default: as block_diffusion.action_infer_enabled says in the model yaml, else in the training run)",
    )
    policy.add_argument("--baseline", choices=("mean", "zero"), help="a constant: mean training action, or zero")
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<n>; without CUDA the CPU is used")
    made.add_argument("--batch-size", type=int, default=0, help="samples per forward (default: 0, as many as fit)")
    made.add_argument(
        "--train-split",
        type=path_argument,
        help="split, raw or processed, whose mean action is taken (default: training)",
    )
    made.add_argument("--act-step", type=int, default=10, help="chunk length of a baseline (default: 10)")
    made.add_argument("--output-json", type=path_argument, help="where the results are written")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    try:
        if options.model_config is not None:
            load_model_yaml(options.model_config).require_checkpoint()
        # Imported here: --help and errors on the command line come before torch and transformers are loaded.
        from policy_rollout.benchmarks.offline_cli import run

        run(options)
    except (ValueError, OSError) as error:
        print(f"eval_upvla_offline_actions: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    run_command(main)

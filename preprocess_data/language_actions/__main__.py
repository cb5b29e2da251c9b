"""Write the actions of demonstrations as sentences, as conversations that any text objective learns.

    python -m preprocess_data.language_actions --split SPLIT --output-dir outputs/language_actions --act-step 10

Every question shows a frame of the static camera and states the instruction; the answer is the sum of the next actions
in words, such as "left 4 cm, down 2 cm, close" (policy_rollout/policies/language_actions.py has the grammar). Prints
what the sentences lose of the recorded actions, in millimetres and degrees. Train with
dataset.params.train_mmu_shards_path_or_url=<output-dir>, act with --action-decoder language.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from common.arguments import command_parser, path_argument, real, whole
from common.command import print_next, report_errors, run_command


@report_errors("language_actions")
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser(__doc__, prog="python -m preprocess_data.language_actions")
    add = parser.add_argument
    add("--split", type=path_argument, required=True, help="processed split, or raw CALVIN split with annotations")
    add("--output-dir", type=path_argument, required=True, help="folder of the conversations; the same one resumes")
    add("--act-step", type=whole(1), required=True, help="actions per chunk; that of the model (act_step)")
    add("--stride", type=whole(1), help="steps between two frames of a window (default: half of --act-step)")
    add("--mm", type=real(above=0), default=5.0, help="resolution of positions in millimetres (default: %(default)g)")
    add("--degrees", type=real(above=0), default=2.0, help="resolution of rotations (default: %(default)g)")
    add("--max-samples", type=whole(0), default=0, help="evenly chosen frames (default: 0, all)")
    options = parser.parse_args(argv)
    # Imported here: --help and errors on the command line come before numpy and the data sets are loaded.
    from config.schema import MMU_INDEX
    from policy_rollout.benchmarks.processed import open_split
    from preprocess_data.jobs.resume import output_folder
    from preprocess_data.language_actions.conversations import Settings, write_conversations

    stride = options.stride or max(options.act_step // 2, 1)
    settings = Settings(options.act_step, stride, options.mm, options.degrees, options.max_samples)
    split = open_split(options.split)
    with output_folder(options.output_dir, "language_actions"):
        found = write_conversations(split, options.output_dir, settings)
    sentence, count = found.most_frequent
    print(found.errors)
    print(f"{found.sentences} different sentences; the most frequent, {count} times: {json.dumps(sentence)}")
    print(f"{found.conversations} conversations in {options.output_dir / MMU_INDEX}")
    print_next("train with dataset.params.train_mmu_shards_path_or_url={folder}", folder=options.output_dir)
    return 0


if __name__ == "__main__":
    run_command(main)

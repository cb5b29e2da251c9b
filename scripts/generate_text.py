"""Generate a model's answers to questions about images, with their cost and a trace of decoding.

python scripts/generate_text.py --checkpoint outputs/tiny_bdvla --picture table.jpg --question "Where is the red toy?"
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from common.arguments import command_parser, path_argument, whole
from common.command import report_errors, run_command
from policy_rollout.policies.model_yaml import load_model_yaml
from policy_rollout.text_generation.cli_options import ACCEPT_HELP, add_decoding, add_model

DESCRIPTION = """\
Asks a trained model questions about images and prints each answer as it grows, then its cost: forwards of the
backbone, tokens per forward, tokens per second, time to the first token. Every question is asked about every image, all
of them in one batch. A model decodes as it was trained (ar, mdm or bd) by default."""
EPILOG = (
    """\
examples:
  python scripts/generate_text.py --checkpoint outputs/tiny_bdvla --picture table.jpg \\
      --question "Where is the red toy? *** What colour is the ball?"
  how the answer fills in, in the terminal and as an animation:
    python scripts/generate_text.py --checkpoint outputs/tiny_bdvla --trace --trace-gif outputs/answer.gif
  more tokens per forward, and the same answer as next-token prediction:
    python scripts/generate_text.py --checkpoint outputs/tiny_bdvla --accept threshold:0.6
    python scripts/generate_text.py --checkpoint outputs/tiny_bdvla --speculative
  reproducible sampling:
    python scripts/generate_text.py --checkpoint outputs/tiny_arvla --temperature 0.8 --top-p 0.95 --seed 7
  for another program:
    python scripts/generate_text.py --checkpoint outputs/tiny_mdmvla --json | jq .answers

"""
    + ACCEPT_HELP
)
QUESTION = "Name the toys on the table."


def parser() -> argparse.ArgumentParser:
    made = command_parser(DESCRIPTION, EPILOG)
    add_model(made)
    group = made.add_argument_group("questions")
    group.add_argument("--picture", type=path_argument, nargs="+", help="files or folders (default: a bundled image)")
    group.add_argument("--no-picture", action="store_true", help="ask without an image")
    group.add_argument("--question", default=QUESTION, help="several are separated by ' *** ' (default: %(default)s)")
    group.add_argument("--max-new-tokens", type=int, default=64, help="longest answer (default: 64)")
    how = add_decoding(made)
    how.add_argument("--temperature", type=float, default=0.0, help="0 (default): always the most likely token")
    how.add_argument("--top-k", type=int, help="sample from that many tokens at most")
    how.add_argument("--top-p", type=float, help="sample from the likeliest tokens with this total probability")
    how.add_argument("--seed", type=whole(0), default=0, help="seed of sampling (default: 0)")
    output = made.add_argument_group("output")
    output.add_argument("--trace", action="store_true", help="print the tokens that every forward fills in")
    output.add_argument("--trace-gif", type=path_argument, metavar="FILE", help="write them as an animation")
    output.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return made


@report_errors("generate_text")
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    if options.model_config is not None:
        load_model_yaml(options.model_config, options.checkpoint).require_checkpoint()
    # Imported here: --help and errors on the command line come before torch and transformers are loaded.
    from rich.console import Console

    from policy_rollout.text_generation.generate_cli import run

    run(options, Console())
    return 0


if __name__ == "__main__":
    run_command(main)

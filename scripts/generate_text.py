"""Ask a model about images: the answer, what it cost, and how it filled in.

python scripts/generate_text.py --checkpoint outputs/tiny_bdvla --picture table.jpg --question "Where is the red toy?"
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from common.arguments import path_argument, whole
from common.command import run_command
from policy_rollout.policies.model_yaml import load_model_yaml
from scripts.answering_options import ACCEPT_HELP, add_decoding, add_who

DESCRIPTION = """\
Asks a trained model questions about images and prints each answer as it comes, then what it cost: forwards of the
backbone, tokens per forward, tokens per second, time to the first word. Every question is asked of every image, all
of them in one batch. A model decodes as it was trained (ar, mdm or bd) unless told otherwise."""
EPILOG = (
    """\
examples:
  python scripts/generate_text.py --checkpoint outputs/tiny_bdvla --picture table.jpg \\
      --question "Where is the red toy? *** What colour is the ball?"
  how the answer fills in, in the terminal and as an animated image:
    python scripts/generate_text.py --checkpoint outputs/tiny_bdvla --trace --trace-gif outputs/answer.gif
  more words per forward, and the same answer as next-token prediction gives:
    python scripts/generate_text.py --checkpoint outputs/tiny_bdvla --accept threshold:0.6
    python scripts/generate_text.py --checkpoint outputs/tiny_bdvla --speculative
  several samples that can be repeated:
    python scripts/generate_text.py --checkpoint outputs/tiny_arvla --temperature 0.8 --top-p 0.95 --seed 7
  for another program:
    python scripts/generate_text.py --checkpoint outputs/tiny_mdmvla --json | jq .answers

"""
    + ACCEPT_HELP
)
QUESTION = "Name the toys on the table."


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_who(made)
    what = made.add_argument_group("what is asked")
    what.add_argument("--picture", type=path_argument, nargs="+", help="files or folders (default: a bundled image)")
    what.add_argument("--no-picture", action="store_true", help="ask without an image")
    what.add_argument("--question", default=QUESTION, help="several are split by ' *** ' (default: %(default)s)")
    what.add_argument("--max-new-tokens", type=int, default=64, help="longest answer (default: 64)")
    how = add_decoding(made)
    how.add_argument("--temperature", type=float, default=0.0, help="0 (default): always the most likely word")
    how.add_argument("--top-k", type=int, help="draw from that many words at most")
    how.add_argument("--top-p", type=float, help="draw from the likeliest words that hold this probability")
    how.add_argument("--seed", type=whole(0), default=0, help="of what is drawn (default: 0)")
    show = made.add_argument_group("what is shown")
    show.add_argument("--trace", action="store_true", help="print what every forward filled in")
    show.add_argument("--trace-gif", type=path_argument, metavar="FILE", help="the same as an animated image")
    show.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    try:
        if options.model_config is not None:
            load_model_yaml(options.model_config, options.checkpoint).require_checkpoint()
        # Imported here: --help and a mistake on the command line are answered before torch and transformers are loaded.
        from rich.console import Console

        from scripts.asking import ask

        ask(options, Console())
    except BrokenPipeError:  # of stdout: see run_command
        raise
    except (ValueError, OSError) as error:
        print(f"generate_text: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    run_command(main)

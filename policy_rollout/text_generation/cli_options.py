"""Options of every command that generates answers. Nothing heavy is imported, so that ``--help`` is fast."""

from __future__ import annotations

import argparse

from policy_rollout.policies.model_options import add_model_options

TYPE_NAMES = ("float32", "bfloat16")
ACCEPT_HELP = """\
rules of --accept (which of the proposed tokens of a block a forward keeps; at least one):
  threshold:0.9  all that are more probable than this        static:2       the two most probable
  factor:1.0     the more at once, the more probable each    first-hitting  one slot, picked at random"""


def add_model(made: argparse.ArgumentParser) -> None:
    model = made.add_argument_group("model (default: the embedded one with random weights)")
    add_model_options(model)
    model.add_argument("--clip", help="CLIP tower (default: the one that the run or the yaml names)")
    model.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<n>; without CUDA the CPU is used")
    model.add_argument("--dtype", choices=TYPE_NAMES, default="float32", help="arithmetic (default: float32)")


def add_decoding(made: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = made.add_argument_group("decoding")
    group.add_argument("--objective", choices=("ar", "mdm", "bd"), help="(default: as the model was trained)")
    group.add_argument("--anyway", action="store_true", help="also decode in a way that the model is not trained for")
    group.add_argument("--accept", help="which tokens a forward keeps, see below (default: threshold:0.9)")
    group.add_argument("--block-size", type=int, help="of bd; of mdm: the part of the canvas that is filled first")
    group.add_argument("--whole-canvas", action="store_true", help="mdm: fill any slot at any time")
    group.add_argument(
        "--speculative", action="store_true", help="bd drafts, the clean stream verifies: the answer of ar"
    )
    return group

"""Options of every command that asks a model. Nothing heavy is imported: ``--help`` answers at once."""

from __future__ import annotations

import argparse

TYPE_NAMES = ("float32", "bfloat16")
ACCEPT_HELP = """\
rules of --accept (which of the proposed words of a block a forward keeps; at least one):
  threshold:0.9  all that are more probable than this        static:2       the two surest
  factor:1.0     the more at once, the surer each must be    first-hitting  one slot, picked at random"""


def add_who(made: argparse.ArgumentParser) -> None:
    who = made.add_argument_group("who is asked (default: the embedded model with random weights)")
    who.add_argument("--checkpoint", help="output folder of a run, checkpoint-<step>, or a weights file")
    who.add_argument("--model-config", help="model yaml that names one, e.g. policy_rollout/bdvla_model.yaml")
    who.add_argument("--clip", help="CLIP tower (default: the one that the run or the yaml names)")
    who.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<n>; without CUDA the CPU is used")
    who.add_argument("--dtype", choices=TYPE_NAMES, default="float32", help="arithmetic (default: float32)")


def add_decoding(made: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    how = made.add_argument_group("how the answer is decoded")
    how.add_argument("--objective", choices=("ar", "mdm", "bd"), help="(default: as the model was trained)")
    how.add_argument("--anyway", action="store_true", help="also in a way that the model never learned")
    how.add_argument("--accept", help="which words a forward keeps, see below (default: threshold:0.9)")
    how.add_argument("--block-size", type=int, help="of bd; of mdm the part of the canvas that is filled first")
    how.add_argument("--whole-canvas", action="store_true", help="mdm: fill any slot at any time")
    how.add_argument("--speculative", action="store_true", help="bd drafts, the clean stream verifies: ar's answer")
    return how

"""Merge the records of several evaluations: of array jobs, of two clusters, of an evaluation continued elsewhere.

python -m policy_rollout.merge rollout_outputs/a rollout_outputs/b --into rollout_outputs/all
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from common.arguments import path_argument
from common.command import print_next, run_command
from policy_rollout.closed_loop.records import RESULTS_FILE, merge_results

DESCRIPTION = """\
Copies the records of closed-loop evaluations into one folder. A chain that several of them have counts once, and
merging again changes nothing. Folders of different checkpoints, settings, simulators or versions are refused, and the
setting that differs is named. If no chain is missing, results.json is written; else the folder is a log_dir like any
other: an evaluation that is started with it runs the missing chains."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m policy_rollout.merge",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", type=path_argument, nargs="+", metavar="FOLDER", help="the log_dir of an evaluation")
    parser.add_argument(
        "--output-dir",
        "--into",
        dest="into",
        type=path_argument,
        required=True,
        metavar="FOLDER",
        help="made if it does not exist",
    )
    args = parser.parse_args(argv)
    try:
        print(merge_results(args.folders, args.into))
        if (args.into / RESULTS_FILE).is_file():
            print_next("blockdiff-vla report {into}", into=args.into)
    except (ValueError, OSError) as error:
        print(f"merge: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run_command(main)

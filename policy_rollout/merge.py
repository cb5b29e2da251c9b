"""Records of several folders in one: of array jobs, of two clusters, of an evaluation that went on elsewhere.

python -m policy_rollout.merge rollout_outputs/a rollout_outputs/b --into rollout_outputs/all
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.arguments import path_argument
from common.command import run_command
from policy_rollout.closed_loop import records
from policy_rollout.reports.results import FILE, read_results

DESCRIPTION = """\
Copies the records of closed-loop evaluations into one folder. A chain that several of them have counts once, and
merging again changes nothing. Folders of different checkpoints, settings, simulators or versions are refused, and the
setting that differs is named. Where no chain is missing, results.json is written; else the folder is a log_dir like any
other: an evaluation that is started with it plays what is missing."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m policy_rollout.merge",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", type=path_argument, nargs="+", metavar="FOLDER", help="the log_dir of an evaluation")
    parser.add_argument("--into", type=path_argument, required=True, metavar="FOLDER", help="made if it is not there")
    args = parser.parse_args(argv)
    try:
        print(merged(args.folders, args.into))
    except (ValueError, OSError) as error:
        print(f"merge: {error}", file=sys.stderr)
        sys.exit(2)


def merged(folders: Sequence[Path], into: Path) -> str:
    """Does it, and says what is there now."""
    found = records.merge(folders, into)
    if not found:
        raise ValueError(f"no record of a chain in {', '.join(map(str, folders))}")
    missing = sorted(set(range(max(found) + 1)) - set(found))
    if missing:
        some = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        there = f"{len(found)} chains in {into}; {len(missing)} before the last are missing ({some})"
        return f"{there}: an evaluation with log_dir={into} plays them"
    results = records.write_results(
        into, [found[index] for index in sorted(found)], records.settings_of(into), **_origin([*folders, into])
    )
    mean = results["average_length"]
    return (
        f"average length {mean['value']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}] over {len(found)} chains; "
        f"results in {into / 'results.json'}"
    )


def _origin(folders: Sequence[Path]) -> dict[str, Any]:
    """Return what the results in these folders tell of the policy, with the cut instructions of all of them."""
    found = [read_results(folder) for folder in folders if (folder / FILE).is_file()]
    told = [run.content["policy_from"] for run in found if isinstance(run.content.get("policy_from"), Mapping)]
    cut = dict.fromkeys(text for run in found for text in run.cut_instructions)
    return {"policy_from": {**told[0], "cut_instructions": list(cut)}} if told else {}


if __name__ == "__main__":
    run_command(main)

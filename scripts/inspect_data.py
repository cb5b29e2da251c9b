"""Inspect a data set: print a summary, and write an HTML page with images, instructions and action curves.

python -m scripts.inspect_data dummy_data/calvin_processed_training
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.arguments import command_parser, path_argument
from common.command import print_next, report_errors, run_command
from preprocess_data.dataset_viewer.interface import Source

DESCRIPTION = """\
Inspects a data set: a processed split (dataset_info.json), a raw CALVIN split (folder, or inside its zip), BridgeData
(raw folders or RLDS files), LeRobot (v2.1, v3.0), conversations (llava_v1_5_mix665k.json, or another json file), or the
recorded rollouts of a closed-loop evaluation (results.json and videos).
Prints a summary and writes one HTML file, which needs no other file and no network: tasks and sentences, the
distribution of actions, and episodes to play with their action curves. With --rerun, one episode opens in rerun
instead."""

EPILOG = """\
examples:
  python -m scripts.inspect_data dummy_data/calvin_processed_training
  python -m scripts.inspect_data task_D_D.zip/task_D_D/validation --count 24 --out d_validation.html
  python -m scripts.inspect_data data/task_D_D_training --task open_drawer --search "blue"
  python -m scripts.inspect_data dummy_data/llava --episodes 0 17 200
  python -m scripts.inspect_data data/task_D_D_training --text           only the summary
  python -m scripts.inspect_data data/task_D_D_training --sheet d.png    a contact sheet as well
  python -m scripts.inspect_data data/task_D_D_training --episodes 3 --rerun              in rerun's viewer
  python -m scripts.inspect_data outputs/demo/2026-11-30_12-00-00 --rerun rollout.rrd     a file for it"""


def chosen(source: Source, options: argparse.Namespace) -> list[int]:
    """Return the episodes to show: the given ones, or ``--count`` of as many different tasks as possible."""
    if options.episodes:
        for number in options.episodes:
            if not 0 <= number < len(source):
                raise ValueError(f"--episodes {number}: {source.path} has 0 to {len(source) - 1}")
        return list(options.episodes)
    if options.count < 1:
        raise ValueError(f"--count must be at least 1, is {options.count}")
    if options.task is None and options.search is None:
        from preprocess_data.dataset_viewer.contact_sheet import select_varied

        return select_varied(source, options.count)
    words = (options.search or "").casefold()
    found = [
        number
        for number, label in enumerate(source.labels())
        if options.task in (None, label.task) and words in label.instruction.casefold()
    ]
    if not found:
        what = " ".join(
            f"--{name} {value!r}" for name, value in vars(options).items() if name in ("task", "search") and value
        )
        raise ValueError(f"{source.path} has no episode with {what}")
    step = max(len(found) / options.count, 1)
    return [found[int(number * step)] for number in range(min(options.count, len(found)))]


def parser() -> argparse.ArgumentParser:
    made = command_parser(DESCRIPTION, EPILOG, prog="inspect_data")
    made.add_argument("path", type=path_argument, help="the data set")
    made.add_argument(
        "--output",
        "--out",
        dest="out",
        type=path_argument,
        help="HTML file to write (default outputs/inspect/<name>.html)",
    )
    made.add_argument("--count", type=int, default=12, help="episodes on the page (default 12)")
    made.add_argument("--episodes", type=int, nargs="+", metavar="N", help="these episodes, counted from 0")
    made.add_argument("--task", help="only episodes of this task")
    made.add_argument("--search", metavar="WORDS", help="only episodes whose instruction contains this")
    made.add_argument("--moments", type=int, default=16, help="images of each episode and camera (default 16)")
    made.add_argument("--sheet", type=path_argument, metavar="PNG", help="write a contact sheet too")
    rerun = "open one episode in rerun (the first of --episodes), or write it to a file for rerun"
    made.add_argument("--rerun", type=path_argument, nargs="?", const=True, metavar="FILE.rrd", help=rerun)
    made.add_argument("--text", action="store_true", help="only print the summary")
    return made


@report_errors("inspect_data")
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    if options.moments < 1:
        raise ValueError(f"--moments must be at least 1, is {options.moments}")
    recording = options.rerun if isinstance(options.rerun, Path) else None  # True: no file
    if options.rerun is not None:
        from preprocess_data.dataset_viewer.rerun_log import log_episode, require_rerun

        require_rerun(recording)
    # These import torch and matplotlib.
    from preprocess_data.dataset_viewer.contact_sheet import draw_sheet
    from preprocess_data.dataset_viewer.page import write_page
    from preprocess_data.dataset_viewer.sources import open_source
    from preprocess_data.dataset_viewer.stats import Facts

    source = open_source(options.path)
    facts = Facts.of(source)
    print(facts.text())
    if options.sheet is not None:
        draw_sheet(source, facts, options.sheet)
        print(f"contact sheet: {options.sheet}")
    if options.rerun is not None:
        number = chosen(source, options)[0]
        log_episode(source, number, recording)
        print(f"episode {number}: in {recording or 'rerun'}")
        if recording is not None:
            print_next("rerun {recording}", recording=recording)
        return 0
    if options.text:
        return 0
    absolute = source.path.absolute()
    out = options.out or Path("outputs/inspect") / f"{absolute.parent.name}_{absolute.name}.html"
    faults = write_page(source, facts, chosen(source, options), options.moments, out, progress=sys.stderr.isatty())
    for fault in faults:
        print(f"not shown: {fault}", file=sys.stderr)
    print(f"written: {out} ({out.stat().st_size / 1e6:.1f} MB, needs no other file)")
    print_next("open {out} in a browser", out=out)
    return 1 if faults else 0


if __name__ == "__main__":
    run_command(main)

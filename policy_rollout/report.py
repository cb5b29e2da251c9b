"""Write closed-loop evaluations as one HTML file that needs no other file and no network.

python -m policy_rollout.report rollout_outputs/mine
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.arguments import path_argument, real
from common.command import print_next, run_command
from common.files import write_text
from policy_rollout.reports.comparison import Side, compare, sides_of
from policy_rollout.reports.results import names_of, read_results

FILE = "report.html"
MEGABYTES = 48
"""Default size limit of the videos and images in a page, before base64, which adds a third."""
DESCRIPTION = """\
Make report.html out of a closed-loop evaluation: average chain length, 1/5 .. 5/5 and every task with intervals,
charts, videos of chains, predicted and true frames, settings. With two or three evaluations of the same chains (names
and seeds as in policy_rollout.compare) the page compares them. The file needs no other and no network."""
EPILOG = """\
examples:
  python -m policy_rollout.report rollout_outputs/mine
  python -m policy_rollout.report rollout_outputs/ar rollout_outputs/bd --output results/ar_or_bd.html"""


def write_report(folder: Path, megabytes: float = MEGABYTES) -> Path:
    """Write ``report.html`` into the folder of one evaluation and return its path.

    Raises:
        FileNotFoundError: If the folder has no ``results.json``.
        ValueError: If it is not readable.
    """
    from policy_rollout.reports.html_report import render_report  # imports matplotlib

    results = read_results(folder)
    side = Side(names_of([results.file])[0], (results,))
    path = results.folder / FILE
    write_text(path, render_report([side], None, path, megabytes))
    return path


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m policy_rollout.report",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "results", nargs="+", help="log_dir of an evaluation; several are compared (name=a,b: runs of one)"
    )
    made.add_argument("--output", type=path_argument, metavar="FILE", help="default: report.html in the (first) folder")
    made.add_argument("--anyway", action="store_true", help="compare results of other settings, too")
    made.add_argument("--common", action="store_true", help="compare the chains that all have played")
    made.add_argument(
        "--megabytes", type=real(above=0), default=MEGABYTES, help=f"of videos and images (default: {MEGABYTES})"
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    from policy_rollout.reports.html_report import render_report  # imports matplotlib

    try:
        sides = sides_of(options.results)
        found = compare(sides, options.anyway, options.common) if len(sides) > 1 else None
        path = options.output or sides[0].runs[0].folder / ("comparison.html" if found else FILE)
        shown = found.sides if found else sides
        write_text(path, render_report(shown, found, path, options.megabytes))
    except (ValueError, OSError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    print(f"written to {path} ({path.stat().st_size / 1e6:.1f} MB)")
    print_next("open {path} in a browser", path=path)
    return 0


if __name__ == "__main__":
    run_command(main)

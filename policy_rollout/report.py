"""A closed-loop evaluation as one HTML file: tables, curves, films and settings inside it, nothing from outside.

python -m policy_rollout.report rollout_outputs/mine
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.arguments import path_argument, real
from common.command import run_command
from policy_rollout.compare import Comparison, Side, compare, sides_of, verdict
from policy_rollout.reporting.figures import charts_section, headline, rates_section, task_section
from policy_rollout.reporting.films import film_section, image_section
from policy_rollout.reporting.markup import Html, el, join, page, write_page
from policy_rollout.reporting.media import ROOM, Room
from policy_rollout.reporting.records_table import chains_section, settings_section
from policy_rollout.reports.results import names_of, read_results

FILE = "report.html"
DESCRIPTION = """\
Makes report.html out of a closed-loop evaluation: average chain length, 1/5 .. 5/5 and every task with intervals,
curves, filmed chains, predicted beside true frames, settings. With two or three evaluations of the same chains (names
and seeds as in policy_rollout.compare) the page compares them. The file needs no other and no network."""
EPILOG = """\
examples:
  python -m policy_rollout.report rollout_outputs/mine
  python -m policy_rollout.report rollout_outputs/ar rollout_outputs/bd --output results/ar_or_bd.html"""


def write_report(folder: Path, megabytes: float = ROOM) -> Path:
    """``report.html`` in the folder of one evaluation. Raises ``ValueError`` or ``FileNotFoundError`` where there is no
    readable ``results.json``."""
    results = read_results(folder)
    side = Side(names_of([results.file])[0], (results,))
    path = results.folder / FILE
    return write_page(path, report([side], None, Room(megabytes, path)))


def report(sides: Sequence[Side], found: Comparison | None, room: Room) -> Html:
    """The page; ``found``: what comparing the sides said, where there are several."""
    names = [side.name for side in sides]
    title = " against ".join(names)
    files = ", ".join(str(run.file) for side in sides for run in side.runs)
    cut = [el("p", note) for side in sides for run in side.runs if (note := run.cut_note()) is not None]
    head = el("header", el("h1", title), el("p", "Closed loop · ", files, class_="path"), *cut)
    answer = None
    if found is not None:
        lines = [*map(verdict, found.lengths), *found.notes]
        answer = el("div", *(el("p", line) for line in lines), class_="answer")
    body = [
        head,
        answer,
        headline(sides),
        charts_section(sides),
        rates_section(sides, found),
        task_section(sides),
        film_section(sides, room),
        image_section(sides, room),
        settings_section(sides),
        chains_section(sides),
    ]
    left_out = f"{room.outside} films and images did not fit and lie beside it. " if room.outside else ""
    foot = "Brackets and whiskers are 95 % intervals: Wilson's for rates, a bootstrap over the chains for averages. "
    if any(run.completed().min() == run.completed().max() for side in sides for run in side.runs):
        foot += "Where all chains ended alike, the sum of Wilson's ends for at least 1, 2, ... tasks. "
    made = f"Made by policy_rollout.report; this file needs no other. {left_out}"
    return page(f"{title} · closed loop", join(body), el("footer", foot, made))


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
    made.add_argument("--megabytes", type=real(above=0), default=ROOM, help=f"of films and images (default: {ROOM})")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    try:
        sides = sides_of(options.results)
        found = compare(sides, options.anyway, options.common) if len(sides) > 1 else None
        path = options.output or sides[0].runs[0].folder / ("comparison.html" if found else FILE)
        shown = found.sides if found else sides
        write_page(path, report(shown, found, Room(options.megabytes, path)))
    except (ValueError, OSError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    print(f"written to {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    run_command(main)

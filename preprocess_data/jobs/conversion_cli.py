"""Options that converters share: source and output, and those that verify or summarise data."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from common.arguments import command_parser, path_argument, real, whole
from preprocess_data.formats.verify import Report, print_reports, verify
from preprocess_data.jobs.convert import is_processed

Group = argparse._ArgumentGroup  # noqa: SLF001 - the type of a public method's result


def conversion_parser(
    description: str, epilog: str, source: str, verified: str, units: tuple[float, float]
) -> tuple[argparse.ArgumentParser, Group]:
    """Return the parser of a converter, and its group for further options.

    Args:
        description: Text above the options.
        epilog: Text below the options.
        source: Help of ``--source``.
        verified: Formats that ``--verify`` accepts.
        units: Defaults of ``--position-unit`` (metres) and ``--rotation-unit`` (radians).
    """
    made = command_parser(description, epilog)
    group = made.add_argument_group("make a processed split")
    add, (metres, radians) = group.add_argument, units
    add("--source", type=path_argument, metavar="PATH", help=source)
    output_options(group, "episodes")
    add("--position-unit", type=real(above=0), default=metres, metavar="M", help=f"metres of 1.0 (default {metres})")
    add("--rotation-unit", type=real(above=0), default=radians, metavar="RAD", help=f"of 1.0 (default {radians})")
    add("--default-instruction", default="", metavar="TEXT", help="for episodes without one")
    verify_options(made, verified)
    return made, group


def output_options(group: Group, items: str) -> None:
    """Add ``--output-dir``, ``--skip-bad`` (of ``items``) and ``--workers``."""
    group.add_argument("--output-dir", type=path_argument, metavar="PATH", help="folder to write; made if missing")
    group.add_argument("--skip-bad", action="store_true", help=f"leave out bad {items} and list them")
    workers = min(os.cpu_count() or 1, 8)
    group.add_argument("--workers", type=whole(1), default=workers, help="processes (default: cores, at most 8)")


def verify_options(made: argparse.ArgumentParser, formats: str) -> Group:
    """Add ``--verify`` (of ``formats``), ``--report``, ``--summary`` and ``--sheet`` as a group, and return it."""
    group = made.add_argument_group("inspect data")
    add = group.add_argument
    add("--verify", type=path_argument, metavar="PATH", help=f"check {formats} or a processed split")
    add("--report", type=path_argument, metavar="JSON", help="with --verify: write all problems to this file")
    add("--summary", type=path_argument, metavar="PATH", help="print statistics of a source or a processed split")
    add("--sheet", type=path_argument, metavar="PNG", help="with --summary: draw a contact sheet as well")
    return group


def run_verify(options: argparse.Namespace, verify_source: Callable[[Path], Report]) -> int | None:
    """Verify or summarise if the options ask for it, and return the exit code; None for a conversion.

    Raises ValueError if the options ask for neither.
    """
    if options.verify is not None:
        if is_processed(options.verify):
            return verify(options.verify, True, options.workers, options.report)
        return print_reports([verify_source(options.verify)], options.report)
    if options.summary is not None:
        summarise(options.summary, options.sheet)
        return 0
    if options.source is None or options.output_dir is None:
        raise ValueError("give --source and --output-dir, or --verify or --summary; --help shows examples")
    return None


def summarise(root: Path, sheet: Path | None) -> None:
    """Print statistics of a data set, and draw its contact sheet if a file is given."""
    from preprocess_data.dataset_viewer.contact_sheet import draw_sheet
    from preprocess_data.dataset_viewer.sources import open_source
    from preprocess_data.dataset_viewer.stats import Facts  # draws, which worker processes do not need

    source = open_source(root)
    facts = Facts.of(source)
    print(facts.text())
    if sheet is not None:
        draw_sheet(source, facts, sheet)
        print(f"contact sheet: {sheet}")

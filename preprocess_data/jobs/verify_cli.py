"""Options of every converter that check a source, or a split made from it, and summarise it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from common.arguments import path_argument
from preprocess_data.formats.verify import Report, tell, verify
from preprocess_data.jobs.convert import is_processed


def verify_options(made: argparse.ArgumentParser, formats: str) -> None:
    """Add ``--verify`` (of ``formats``), ``--report``, ``--summary`` and ``--sheet`` as a group of their own."""
    look = made.add_argument_group("look at what is there")
    look.add_argument("--verify", type=path_argument, metavar="PATH", help=f"check {formats} or a processed split")
    look.add_argument("--report", type=path_argument, metavar="JSON", help="with --verify: write all problems here")
    look.add_argument(
        "--summary", type=path_argument, metavar="PATH", help="say what a processed split, or a source, holds"
    )
    look.add_argument("--sheet", type=path_argument, metavar="PNG", help="draw it as well")


def run_verify(options: argparse.Namespace, verify_source: Callable[[Path], Report]) -> int | None:
    """Verify or summarise as the options ask, and return the exit code; None if a conversion is asked for.

    Raises ValueError if the options ask for neither.
    """
    if options.verify is not None:
        if is_processed(options.verify):
            return verify(options.verify, True, options.workers, options.report)
        return tell([verify_source(options.verify)], options.report)
    if options.summary is not None:
        summarise(options.summary, options.sheet)
        return 0
    if options.source is None or options.output_dir is None:
        raise ValueError("give --source and --output-dir, or --verify or --summary; --help shows examples")
    return None


def summarise(root: Path, sheet: Path | None) -> None:
    """Print what a data set contains; draw it too if a file for the sheet is given."""
    from preprocess_data.dataset_viewer.contact_sheet import draw_sheet
    from preprocess_data.dataset_viewer.sources import open_source
    from preprocess_data.dataset_viewer.stats import Facts  # drawing, which worker processes need not load

    source = open_source(root)
    facts = Facts.of(source)
    print(facts.text())
    if sheet is not None:
        draw_sheet(source, facts, sheet)
        print(f"drawn: {sheet}")

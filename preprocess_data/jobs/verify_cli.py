"""What every converter can also do: check a source or what was made of it, and say what it holds."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from common.arguments import path_argument
from preprocess_data.formats.verify import Report, tell, verify
from preprocess_data.jobs.convert import is_processed


def add_options(made: argparse.ArgumentParser, formats: str) -> None:
    """``--verify`` (of ``formats``), ``--report``, ``--summary`` and ``--sheet``, as a group of their own."""
    look = made.add_argument_group("look at what is there")
    look.add_argument("--verify", type=path_argument, metavar="PATH", help=f"check {formats} or a processed split")
    look.add_argument("--report", type=path_argument, metavar="JSON", help="with --verify: write all problems here")
    look.add_argument(
        "--summary", type=path_argument, metavar="PATH", help="say what a processed split, or a source, holds"
    )
    look.add_argument("--sheet", type=path_argument, metavar="PNG", help="draw it as well")


def looked(options: argparse.Namespace, verify_source: Callable[[Path], Report]) -> int | None:
    """Do what was asked for and return the exit code; None: nobody wants to look, something is to be made.

    Raises ``ValueError`` where neither looking nor making was asked for.
    """
    if options.verify is not None:
        if is_processed(options.verify):
            return verify(options.verify, True, options.workers, options.report)
        return tell([verify_source(options.verify)], options.report)
    if options.summary is not None:
        from preprocess_data.process_calvin import summarise  # draws, which workers need not load

        summarise(options.summary, options.sheet)
        return 0
    if options.source is None or options.output_dir is None:
        raise ValueError("give --source and --output-dir, or --verify or --summary; --help shows examples")
    return None

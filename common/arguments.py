"""Parsers of commands, and types of their arguments: paths with `~`, and numbers with bounds."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from common.files import expand_home


def command_parser(
    description: str | None, epilog: str | None = None, prog: str | None = None
) -> argparse.ArgumentParser:
    """Return a parser whose help keeps the line breaks of ``description`` and ``epilog``."""
    return argparse.ArgumentParser(
        prog=prog, description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def output_dir_option(made: argparse.ArgumentParser, help: str) -> None:
    """Add ``--output-dir DIR``, which is required; ``--out`` is its older name, and ``out`` that of the result."""
    names = ("--output-dir", "--out")
    made.add_argument(*names, dest="out", type=path_argument, required=True, metavar="DIR", help=help)


def path_argument(text: str) -> Path:
    """Return a path with `~` expanded."""
    try:
        return expand_home(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def whole(at_least: int | None = None, at_most: int | None = None) -> Callable[[str], int]:
    """Return a type for whole numbers within inclusive bounds."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not _within(value, at_least, at_most):
            raise argparse.ArgumentTypeError(f"{text}: expected a whole number{_bounds(at_least, at_most)}")
        return value

    return convert


def real(
    at_least: float | None = None, at_most: float | None = None, above: float | None = None
) -> Callable[[str], float]:
    """Return a type for finite numbers within inclusive bounds, or strictly above one."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not _within(value, at_least, at_most) or (above is not None and value <= above):
            bounds = f" > {above:g}" if above is not None else ""
            raise argparse.ArgumentTypeError(f"{text}: expected a number{bounds}{_bounds(at_least, at_most)}")
        return value

    return convert


def name_list(option: str, text: str, allowed: Sequence[str]) -> tuple[str, ...]:
    """Return the names in a comma-separated text, each once. Raise ValueError naming one that is not allowed."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    wrong = [name for name in names if name not in allowed]
    if wrong or not names:
        raise ValueError(f"{option} {text!r}: {wrong[0] if wrong else 'nothing'!r} is not one of {', '.join(allowed)}")
    return names


def _within(value: float, at_least: float | None, at_most: float | None) -> bool:
    return (at_least is None or value >= at_least) and (at_most is None or value <= at_most)


def _bounds(at_least: float | None, at_most: float | None) -> str:
    found = [f"{sign} {bound:g}" for sign, bound in ((">=", at_least), ("<=", at_most)) if bound is not None]
    return f" {' and '.join(found)}" if found else ""

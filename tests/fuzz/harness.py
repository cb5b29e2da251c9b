"""Damages files and reads them: each read gives the content, or one clear error that names the file.

What may come out of reading a damaged file:
  same       the damage is where nobody looks, and the content is what it was
  refused    ValueError or FileNotFoundError, one line, with the file's name in it
  changed    other content, read without complaint; unavoidable where a format has no checksums (a digit in JSON, a
             pixel in a JPEG), and a failure where it has them
Everything else is a failure: another exception, an error that does not name the file, a hang, a crash.
"""

from __future__ import annotations

import faulthandler
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from tests.fuzz.damage import DAMAGES
from tests.fuzz.kinds import Kind

LIMIT = 20.0  # seconds for one read


class Hang(BaseException):
    """Not an Exception: nobody who catches too much may take it for an answer."""


@dataclass
class Outcome:
    """Of one kind."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0  # seconds


def try_kind(kind: Kind, others: dict[str, bytes], count: int, seed: int) -> Outcome:
    """Read ``count`` damaged files of a kind; trial t of a seed is the same whatever the count."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        good = _content(kind, Path(name), kind.good)
        for trial in range(count):
            rng = np.random.default_rng([seed, trial, *kind.name.encode()])
            how = sorted(DAMAGES)[trial % len(DAMAGES)]
            damaged = DAMAGES[how](kind.good, rng, others)
            began = time.perf_counter()
            what = _read(kind, Path(name), damaged, good)
            outcome.slowest = max(outcome.slowest, time.perf_counter() - began)
            if what == "changed" and kind.checked and how != "another kind":
                what = "FAILED: changed without complaint, though the format has checksums"
            if what.startswith("FAILED"):
                outcome.failures.append(f"{kind.name}, {how}, seed {seed}, trial {trial}: {what}")
                what = "FAILED"
            outcome.counts[what] += 1
    return outcome


def _read(kind: Kind, folder: Path, damaged: bytes, good: Any) -> str:
    try:
        content = _content(kind, folder, damaged)
    except (ValueError, FileNotFoundError) as error:
        said = str(error)
        if kind.file not in said and not (kind.also and kind.also in said):
            return f"FAILED: does not name the file: {said[:300]!r}"
        if "\n" in said.strip() or len(said) > 2000:
            return f"FAILED: not one line: {said[:300]!r}"
        return "refused"
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return f"FAILED: {type(error).__name__}: {str(error)[:300]!r}"
    return "same" if same(content, good) else "changed"


def _content(kind: Kind, folder: Path, content: bytes) -> Any:
    """What the kind's reader makes of these bytes."""
    if kind.prepare is not None:
        kind.prepare(folder)
    path = folder / kind.file
    path.unlink(missing_ok=True)  # a new file, for readers that keep one open
    path.write_bytes(content)
    with limited(LIMIT):
        return kind.read(path)


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise Hang after so long; end the process where even that does not help (a loop in C)."""

    def late(number: int, frame: FrameType | None) -> None:
        raise Hang(f"still reading after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    try:
        faulthandler.dump_traceback_later(3 * seconds, exit=True, file=sys.__stderr__)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        alike = isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and one.dtype == other.dtype
        return (
            alike
            and one.shape == other.shape
            and bool((one == other).all() if one.dtype.kind != "f" else np.array_equal(one, other, equal_nan=True))
        )
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(type(one) is type(other) and one == other)


def table(outcomes: Sequence[tuple[str, Outcome]]) -> str:
    columns = ("refused", "same", "changed", "FAILED")
    rows = [("kind", "tried", *columns, "slowest")]
    for name, outcome in outcomes:
        counts = [outcome.counts[column] for column in columns]
        rows.append((name, f"{sum(counts):,}", *(f"{count:,}" for count in counts), f"{outcome.slowest:.2f} s"))
    total = [sum(outcome.counts[column] for _, outcome in outcomes) for column in columns]
    rows.append(("all", f"{sum(total):,}", *(f"{count:,}" for count in total), ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )

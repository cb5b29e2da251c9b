"""python -m tests.fuzz --count 1000 --seed 0: damage and read so many files of every kind, print what came out."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence

from tests.fuzz.harness import Outcome, table, try_kind
from tests.fuzz.kinds import kinds


def main(argv: Sequence[str] | None = None) -> int:
    made = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    made.add_argument("--count", type=int, default=1000, help="damaged files of every kind (default 1000)")
    made.add_argument("--seed", type=int, default=0, help="other damage for another seed (default 0)")
    made.add_argument("--only", default="", metavar="TEXT", help="only kinds whose name holds this")
    options = made.parse_args(argv)
    everything = kinds()
    others = {kind.name: kind.good for kind in everything}
    outcomes: list[tuple[str, Outcome]] = []
    began = time.perf_counter()
    for kind in everything:
        if options.only in kind.name:
            outcomes.append((kind.name, try_kind(kind, others, options.count, options.seed)))
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    for _, outcome in outcomes:
        for failure in outcome.failures[:10]:
            print(failure)
    print(table(outcomes))
    print(f"seed {options.seed}, {time.perf_counter() - began:.0f} s")
    return 1 if any(outcome.failures for _, outcome in outcomes) else 0


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # some readers say that they leave something out
    sys.exit(main())

"""Try faults on real training runs and count what is survived:

    python -m tests.faults                    # everything: half an hour on two idle cores
    python -m tests.faults --short            # minutes
    python -m tests.faults --only kill disk   # some kinds: matrix kill writes stop rank data files disk zero

Ends with a table of faults tried and survived; exit code 1 if a promise did not hold.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults import kinds, matrix
from tests.faults.fleet import ALONE, DDP, ZERO2, load_everything
from tests.faults.world import Broken, Count, Small
from tests.training.world import build_world

KINDS = ("matrix", "kill", "writes", "stop", "rank", "data", "files", "disk", "zero")
Trial = tuple[str, str, Callable[[], Count]]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="few faults of each kind, without DeepSpeed")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, help="what is tried")
    parser.add_argument("--kills", type=int, help="kills of each of the four kill -9 loops (default: 12, short: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    given = parser.parse_args(arguments)
    load_everything([ALONE] if given.short else [ALONE, ZERO2])
    started, counts = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        root = Path(folder)
        (root / "world").mkdir()
        world = build_world(root / "world")
        for kind, name, trial in trials(root, world, given):
            if kind not in given.only:
                continue
            before = time.monotonic()
            try:
                count = trial()
            except (Broken, TimeoutError) as error:
                count = Count(name, tried=1, broken=[str(error)])
                print(f"BROKEN {name}: {error}", flush=True)
            counts.append(count)
            print(f"{time.monotonic() - before:5.0f} s  {count.row()}", flush=True)
    return _report(counts, time.monotonic() - started)


def trials(root: Path, world: Path, given: argparse.Namespace) -> list[Trial]:
    """(kind, name, trial) of everything that is tried."""
    kills = given.kills or (3 if given.short else 12)
    references: dict[str, kinds.Reference] = {}

    def of(small: Small) -> kinds.Reference:
        """The undisturbed run of this kind, made once."""
        key = f"{small.objective} {small.launch.describe()}"
        if key not in references:
            quiet = Small(world, root / f"quiet-{len(references)}", small.objective, small.launch)
            quiet.finish()
            references[key] = quiet.left()
        return references[key]

    rng = random.Random(given.seed)
    alone, pair = Small(world, root / "alone"), Small(world, root / "pair", launch=DDP)
    zero = Small(world, root / "zero", launch=ZERO2)
    with_workers = [Small(world, root / "busy", workers=2), Small(world, root / "busy-pair", launch=DDP, workers=1)]
    few = 2 if given.short else 6
    launches = (ALONE, DDP) if given.short else (ALONE, DDP, ZERO2)
    found: list[Trial] = [
        ("matrix", "every objective and launch", lambda: matrix.exact(root, world, 1, rng, launches)),
        ("matrix", "other processes", lambda: matrix.other_processes(Small(world, root / "other"), matrix.ORDERS)),
    ]
    for small in (alone, pair, *with_workers):
        name = f"{small.launch.describe()}, {small.workers} workers"
        found.append(("kill", f"kill -9, {name}", lambda s=small: kinds.kill_at_random(s, of(s), kills, rng)))  # type: ignore[misc]
    found.append(
        ("writes", "kill -9 at writes", lambda: kinds.kill_at_every_write(alone, of(alone), 9 if given.short else 1))
    )
    for small in (alone, *with_workers):
        name = f"{small.launch.describe()}, {small.workers} workers"
        found.append(("stop", f"signals, {name}", lambda s=small: kinds.ask_to_stop(s, of(s), few, rng)))  # type: ignore[misc]
    found.append(("rank", "a rank lost", lambda: kinds.lose_a_rank(pair, of(pair), few, rng)))
    found.append(("data", "damaged data", lambda: kinds.damage_the_data(pair, few, rng)))
    found.append(("files", "damaged files", lambda: kinds.damage_files(alone, of(alone), rng, 1 if given.short else 5)))
    found.append(("disk", "disk full", lambda: kinds.fill_the_disk(alone, of(alone), 3 if given.short else 10)))
    found.append(
        ("disk", "disk full, two processes", lambda: kinds.fill_the_disk(pair, of(pair), 1 if given.short else 4))
    )
    found.append(
        (
            "disk",
            "disk filled between checkpoints",
            lambda: kinds.fill_the_disk_while_metrics_are_written(alone, of(alone), few, rng),
        )
    )
    if not given.short:
        found.append(("zero", "kill -9, ZeRO-2", lambda: kinds.kill_at_random(zero, of(zero), 4, rng)))
        found.append(("zero", "signals, ZeRO-2", lambda: kinds.ask_to_stop(zero, of(zero), 2, rng)))
        found.append(("zero", "a rank lost, ZeRO-2", lambda: kinds.lose_a_rank(zero, of(zero), 2, rng)))
    return found


def _report(counts: list[Count], seconds: float) -> int:
    tried, survived = sum(c.tried for c in counts), sum(c.survived for c in counts)
    print("\n| fault | tried | survived | of these |\n|---|---|---|---|")
    for count in counts:
        print(count.row())
    print(f"| **all** | **{tried}** | **{survived}** | {seconds:.0f} s |")
    return 0 if tried == survived else 1


if __name__ == "__main__":
    sys.exit(main())

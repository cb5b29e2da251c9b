"""Measure what the index of a large processed split costs to open, in memory of each data worker, and per sample.

Makes up a split of --frames frames (no images except the first and the last), and opens it in fresh processes as
training does; then forked workers, as a DataLoader has them, read random samples without their images.

Examples:
  python -m benchmarks.index --frames 5000000
  python -m benchmarks.index --frames 1000000 --json     write the json too, and make its index from it
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.memory import smaps_rollup
from benchmarks.harness.record import Parser, write
from benchmarks.harness.timing import Spread
from common.arguments import whole
from common.command import progress_bar, run_command
from training.data.episode_index import BINARY_NAME, INDEX_NAME, NUMBERS, TEXTS, build_index, gather
from training.future_view_prediction_w_action_dataset import DataProvider

EPISODE = 64  # frames


def records(frames: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield episodes of made-up frames, as dataset_info.json lists them."""
    rng = np.random.default_rng(seed)
    for start in range(0, frames, EPISODE):
        actions = np.round(rng.uniform(-1, 1, (min(EPISODE, frames - start), 7)), 6).tolist()
        yield {
            "instruction": f"do thing {start // EPISODE % 400}",
            "task": f"thing_{start // EPISODE % 34}",
            "frames": [
                {"dir": f"../raw/training/episode_{start + at:07d}.npz", "rel_action": action, "abs_action": action}
                for at, action in enumerate(actions)
            ],
        }


def make_split(folder: Path, frames: int, from_json: bool, progress: bool) -> float:
    """Write a processed split under ``folder``/split; return the seconds that the index took."""
    root, raw = folder / "split", folder / "raw" / "training"
    root.mkdir()
    raw.mkdir(parents=True)
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    for number in (0, frames - 1):
        np.savez(raw / f"episode_{number:07d}.npz", rgb_static=image, rgb_gripper=image)
    path = root / INDEX_NAME
    if from_json:
        with path.open("w", encoding="utf-8") as file:
            for number, record in enumerate(records(frames)):
                file.write(("," if number else "[") + json.dumps(record))
            file.write("]")
        began = time.perf_counter()
        build_index(root, progress=progress)
        return time.perf_counter() - began
    path.write_text("[]", encoding="utf-8")  # in place of gigabytes of text, which opening does not read
    state = path.stat()
    began = time.perf_counter()
    with progress_bar(
        desc="making the index", total=frames, unit=" frames", unit_scale=True, disable=not progress
    ) as bar:
        writer = gather(path, records(frames), root, bar.update)
    with (root / BINARY_NAME).open("wb") as file:
        source = {"bytes": state.st_size, "modified_ns": state.st_mtime_ns, "blake2b": ""}
        writer.write(file, {"source": source, "columns": [*NUMBERS, *TEXTS]})
    return time.perf_counter() - began


def private_kb() -> int:
    """Return the memory that only this process has written; pages of a mapped file on disk are clean."""
    return smaps_rollup()["Private_Dirty"]


@dataclass(frozen=True)
class Worker:
    """Results of one forked worker."""

    private_before_kb: int
    private_after_kb: int
    microseconds_at_start: float  # of a sample among the first hundredth of the frames
    microseconds_at_end: float  # and among the last


@dataclass(frozen=True)
class Opened:
    """Results of one fresh process."""

    seconds: float  # until the provider is ready
    private_kb: int  # growth by then
    workers: tuple[Worker, ...]


def sample(provider: DataProvider, index: int) -> None:
    """Read a sample without its images."""
    future, _, _ = provider.chunk(index)
    provider.data.instruction(int(provider.data.episode_of[index]))
    provider.data.frame_path(index), provider.data.frame_path(future)


def _work(provider: DataProvider, seed: int, samples: int, results: Any) -> None:
    rng = np.random.default_rng(seed)
    before, n = private_kb(), len(provider)
    times = []
    for low, high in ((0, n // 100), (n - n // 100, n)):
        laps = []
        for index in rng.integers(low, high, samples // 2).tolist():
            began = time.perf_counter()
            sample(provider, index)
            laps.append(time.perf_counter() - began)
        times.append(statistics.median(laps) * 1e6)
    for index in rng.integers(0, n, samples).tolist():
        sample(provider, index)
    results.put(Worker(before, private_kb(), *times))


def _open(root: Path, workers: int, samples: int, results: Any) -> None:
    before, began = private_kb(), time.perf_counter()
    provider = DataProvider(root, act_step=10, resolution=8, num_view=1)
    seconds, private = time.perf_counter() - began, private_kb() - before
    fork = multiprocessing.get_context("fork")
    inner = fork.SimpleQueue()
    children = [fork.Process(target=_work, args=(provider, seed, samples, inner)) for seed in range(workers)]
    for child in children:
        child.start()
    reports = tuple(inner.get() for _ in children)
    for child in children:
        child.join()
    results.put(Opened(seconds, private, reports))


def measure(root: Path, rounds: int, workers: int, samples: int) -> list[Opened]:
    """Open the split in ``rounds`` fresh processes."""
    spawn = multiprocessing.get_context("spawn")
    found = []
    for _ in range(rounds):
        results = spawn.SimpleQueue()
        process = spawn.Process(target=_open, args=(root, workers, samples, results))
        process.start()
        found.append(results.get())
        process.join()
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("index", __doc__)
    parser.add_argument("--frames", type=whole(1), default=5_000_000, help="frames of the split (5 million)")
    parser.add_argument("--workers", type=whole(1), default=2, help="forked data workers (2)")
    parser.add_argument("--samples", type=whole(1), default=20_000, help="samples that each worker reads (20000)")
    parser.add_argument("--json", action="store_true", help="make the index from a real dataset_info.json")
    args = parser.parse(argv)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        seconds = make_split(Path(name), args.frames, args.json, progress=True)
        root = Path(name) / "split"
        with (root / BINARY_NAME).open("rb") as file:  # otherwise its pages, not yet on disk, count as written memory
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        opened = measure(root, args.rounds, args.workers, args.samples)
    workers = [worker for one in opened for worker in one.workers]
    spreads = {
        "open_seconds": Spread.of([one.seconds for one in opened]),
        "open_private_mb": Spread.of([one.private_kb / 1024 for one in opened]),
        "worker_private_growth_mb": Spread.of([(w.private_after_kb - w.private_before_kb) / 1024 for w in workers]),
        "sample_us_at_start": Spread.of([worker.microseconds_at_start for worker in workers]),
        "sample_us_at_end": Spread.of([worker.microseconds_at_end for worker in workers]),
    }
    print(f"{args.frames:,} frames, an index of {size / 1e6:.0f} MB, made in {seconds:.0f} s (peak {peak_mb:.0f} MB)")
    for key, spread in spreads.items():
        print(f"  {key:<26} {spread}   (median and quartiles)")
    making = {"seconds": seconds, "from_json": args.json, "peak_mb_of_the_process": peak_mb}
    runs = [asdict(one) for one in opened]
    write(args, {"frames": args.frames, "index_bytes": size, "making": making, **spreads, "runs": runs})
    return 0


if __name__ == "__main__":
    run_command(main)

"""How long the index of a large processed split takes to open, what it costs each data worker, and each sample.

A split of --frames frames is made up (no images but the first and the last), and opened by fresh processes as
training opens it; then forked workers, as a DataLoader has them, ask for random samples without their images.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.record import arguments, parser, write
from benchmarks.timing import Spread
from common.arguments import whole
from common.command import run_command
from training.data.episode_index import BINARY_NAME, INDEX_NAME, NUMBERS, TEXTS, build_index, gather
from training.future_view_prediction_w_action_dataset import DataProvider

LENGTH = 64  # frames of an episode
DESCRIPTION = __doc__
EPILOG = """\
examples:
  python -m benchmarks.index --frames 5000000
  python -m benchmarks.index --frames 1000000 --json     also: the json is written, and its index made from it"""


def records(frames: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Episodes of made-up frames, as dataset_info.json lists them."""
    rng = np.random.default_rng(seed)
    for start in range(0, frames, LENGTH):
        actions = np.round(rng.uniform(-1, 1, (min(LENGTH, frames - start), 7)), 6).tolist()
        yield {
            "instruction": f"do thing {start // LENGTH % 400}",
            "task": f"thing_{start // LENGTH % 34}",
            "frames": [
                {"dir": f"../raw/training/episode_{start + at:07d}.npz", "rel_action": action, "abs_action": action}
                for at, action in enumerate(actions)
            ],
        }


def make_split(folder: Path, frames: int, from_json: bool, progress: bool) -> float:
    """A processed split of so many frames under ``folder``/split; returns the seconds that the index took."""
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
    path.write_text("[]", encoding="utf-8")  # stands in for gigabytes of text: opening never looks into it
    state = path.stat()
    began = time.perf_counter()
    with tqdm(desc="making the index", total=frames, unit=" frames", unit_scale=True, disable=not progress) as bar:
        writer = gather(path, records(frames), root, bar.update)
    with (root / BINARY_NAME).open("wb") as file:
        source = {"bytes": state.st_size, "modified_ns": state.st_mtime_ns, "blake2b": ""}
        writer.write(file, {"source": source, "columns": [*NUMBERS, *TEXTS]})
    return time.perf_counter() - began


def private_kb() -> int:
    """Memory that this process alone has written. (Pages of the mapped index are the page cache's, and clean.)"""
    with open("/proc/self/smaps_rollup", encoding="utf-8") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_Dirty"))


@dataclass(frozen=True)
class Worker:
    """What one forked worker reports."""

    private_before_kb: int
    private_after_kb: int
    microseconds_at_start: float  # of a sample among the first hundredth of the frames
    microseconds_at_end: float  # and among the last


@dataclass(frozen=True)
class Opened:
    """What one fresh process reports."""

    seconds: float  # from nothing to a provider that gives samples
    private_kb: int  # that it has more by then
    workers: tuple[Worker, ...]


def sample(provider: DataProvider, index: int) -> None:
    """All of a sample but its images."""
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
    made = parser("index", DESCRIPTION or "", EPILOG)
    made.add_argument("--frames", type=whole(1), default=5_000_000, help="of the made-up split (default 5 million)")
    made.add_argument("--workers", type=whole(1), default=2, help="forked data workers (default 2)")
    made.add_argument("--samples", type=whole(1), default=20_000, help="asked of each worker (default 20000)")
    made.add_argument("--json", action="store_true", help="make the index from a real dataset_info.json")
    options = made.parse_args(argv)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        took = make_split(Path(name), options.frames, options.json, progress=True)
        root = Path(name) / "split"
        size = (root / BINARY_NAME).stat().st_size
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        opened = measure(root, options.rounds, options.workers, options.samples)
    workers = [worker for one in opened for worker in one.workers]
    content = {
        "frames": options.frames,
        "index_bytes": size,
        "making": {"seconds": took, "from_json": options.json, "peak_mb_of_the_process": peak_mb},
        "open_seconds": Spread.of([one.seconds for one in opened]),
        "open_private_mb": Spread.of([one.private_kb / 1024 for one in opened]),
        "worker_private_growth_mb": Spread.of([(w.private_after_kb - w.private_before_kb) / 1024 for w in workers]),
        "sample_us_at_start": Spread.of([worker.microseconds_at_start for worker in workers]),
        "sample_us_at_end": Spread.of([worker.microseconds_at_end for worker in workers]),
        "runs": [asdict(one) for one in opened],
    }
    print(f"{options.frames:,} frames, an index of {size / 1e6:.0f} MB, made in {took:.0f} s (peak {peak_mb:.0f} MB)")
    for key in (
        "open_seconds",
        "open_private_mb",
        "worker_private_growth_mb",
        "sample_us_at_start",
        "sample_us_at_end",
    ):
        print(f"  {key:<26} {content[key]}   (median and quartiles)")
    write(options.out, "index", arguments(argv), torch.device("cpu"), options.threads, content)
    return 0


if __name__ == "__main__":
    run_command(main)

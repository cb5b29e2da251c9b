"""Robot samples a second: the original's way, from frames as recorded, from packed shards, from the token cache.

A split of --frames frames like CALVIN's is made up (two cameras of 200 and 84 pixels, depth and tactile images,
compressed), packed by preprocess_data/repack.py, and given codes. Then every way makes batches of the same samples in
turn. All are first shown to give the same images and actions. The reference is tests/benchmarks/naive_data.py: four
files opened for a sample, a search from the first episode on, floats of every image.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from benchmarks.record import arguments, parser, write
from benchmarks.timing import Spread, alternate, ratio
from common.arguments import path_argument, whole
from common.command import run_command
from models.processing.image import normalise
from preprocess_data import repack
from preprocess_data.jobs.frame_sources import ProcessedFrames
from tests.benchmarks.naive_data import CAMERAS, NaiveData
from training.data.batch import RobotBatch, collate_robot
from training.data.caches.token_cache import TokenCache
from training.data.episode_index import INDEX_NAME
from training.data.formats.shards import Plan, ShardWriter, begin, finish, write_frames
from training.future_view_prediction_w_action_dataset import DataProvider

NAME = "data_items"
DESCRIPTION = __doc__
EPILOG = """\
examples:
  python -m benchmarks.data_items                                  512 pixels, one camera
  python -m benchmarks.data_items --resolution 256 --views 2

Time is CPU time of one thread. "the floor" is what cannot be left out: inflating the arrays of the cameras in use and
PIL's bicubic resize of them (whose pixels the released checkpoints expect), or, for codes, copying their bytes."""
LENGTH = 64  # frames of an episode
T = 10
STRIDE = 16  # pixels of a code
NAIVE, FILES, PACKED, SIZED, ONE, GATHERED = (
    "the original's way",
    "frames as recorded",
    "packed as they are",
    "packed at the size of training",
    "codes, sample by sample",
    "codes, gathered",
)


def synthetic_image(rng: np.random.Generator, side: int) -> NDArray[np.uint8]:
    """uint8 [side, side, 3] that deflates about as an image of CALVIN's does: patches of colour, a little noise."""
    patches = rng.integers(0, 256, (side // 20 + 1, side // 20 + 1, 3))
    smooth = np.kron(patches, np.ones((20, 20, 1), dtype=np.int64))[:side, :side]
    noisy: NDArray[np.uint8] = np.clip(smooth + rng.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)
    return noisy


def make_raw(folder: Path, frames: int, tick: Callable[[], object]) -> Path:
    """A raw split of so many frames in annotated windows of 64."""
    split = folder / "raw" / "training"
    (split / "lang_annotations").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(frames):
        np.savez_compressed(
            split / f"episode_{number:07d}.npz",
            rgb_static=synthetic_image(rng, 200),
            rgb_gripper=synthetic_image(rng, 84),
            rgb_tactile=rng.integers(0, 256, (160, 120, 6), dtype=np.uint8) // 64,
            depth_static=rng.normal(4, 0.1, (200, 200)).astype(np.float32),
            depth_gripper=rng.normal(0.2, 0.1, (84, 84)).astype(np.float32),
            actions=rng.uniform(-1, 1, 7),
            rel_actions=rng.uniform(-1, 1, 7),
            robot_obs=rng.uniform(-1, 1, 15),
            scene_obs=rng.uniform(-1, 1, 24),
        )
        tick()
    windows = [(start, min(start + LENGTH, frames) - 1) for start in range(0, frames, LENGTH)]
    held = {"language": {"ann": [f"thing {n}" for n in range(len(windows))]}, "info": {"indx": windows}}
    np.save(split / "lang_annotations" / "auto_lang_ann.npy", np.array(held, dtype=object), allow_pickle=True)
    return split


def make_processed(folder: Path, split: Path, frames: int) -> Path:
    """A processed split that names these frames."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    actions = np.round(rng.uniform(-1, 1, (frames, 7)), 4).tolist()
    episodes = []
    for start in range(0, frames, LENGTH):
        listed = [
            {"dir": str(split / f"episode_{n:07d}.npz"), "rel_action": actions[n], "abs_action": actions[n]}
            for n in range(start, min(start + LENGTH, frames))
        ]
        episodes.append({"instruction": f"do thing {start // LENGTH}", "frames": listed})
    (folder / INDEX_NAME).write_text(json.dumps(episodes), encoding="utf-8")
    return folder


def make_codes(folder: Path, root: Path, resolution: int, views: int) -> TokenCache:
    """A token cache of made-up codes: what they say takes no time."""
    source = ProcessedFrames(root, resolution, views)
    plan = Plan.of(len(source), {"codes": ("<i2", (views, (resolution // STRIDE) ** 2))}, {"views": views})
    begin(folder, plan)
    write_frames(folder, source.rows())
    rng = np.random.default_rng(2)
    for shard in range(plan.shards):
        writer = ShardWriter(folder, plan, shard)
        shape = (len(plan.rows_of(shard)), *plan.columns["codes"][1])
        writer.add({"codes": rng.integers(0, 8192, shape, dtype=np.int16)})
        writer.close({})
    finish(folder, plan)
    return TokenCache(folder, plan)


def floor(split: Path, resolution: int, views: int, batch: int) -> Callable[[], None]:
    """The work on a batch's images that nobody can leave out: inflate, resize."""
    with np.load(split / "episode_0000000.npz") as frame:
        arrays = [frame[camera] for camera in CAMERAS[:views]]
    packed = [zlib.compress(array.tobytes()) for array in arrays]
    images = [Image.fromarray(array) for array in arrays]

    def run() -> None:
        for _ in range(2 * batch):
            for content, image in zip(packed, images, strict=True):
                zlib.decompress(content)
                image.resize((resolution, resolution), Image.Resampling.BICUBIC)

    return run


def copy_floor(cache: TokenCache, batch: int, views: int) -> Callable[[], None]:
    """Copying the codes of a batch, and no more."""
    held = np.zeros((4 * batch, views, cache.plan.columns["codes"][1][1]), dtype=np.int16)
    out = np.empty((2 * batch, *held.shape[1:]), dtype=np.int16)

    def run() -> None:
        np.take(held, np.arange(2 * batch) * 2, axis=0, out=out)

    return run


def same(naive: NaiveData, made: dict[str, RobotBatch], indices: list[int], views: int) -> None:
    """Raises AssertionError where a way gives other images or actions."""
    now, later, actions = naive.batch(indices)
    for name in (FILES, PACKED, SIZED):
        batch = made[name]
        assert torch.equal(normalise(batch.views), now[:, :views]), name
        assert torch.equal(normalise(batch.future_views), later[:, :views]), name
    for name, batch in made.items():
        assert torch.equal(batch.actions, actions), name
    assert torch.equal(made[ONE].views, made[GATHERED].views)
    assert torch.equal(made[ONE].future_views, made[GATHERED].future_views)


def measure(folder: Path, args: Any) -> dict[str, Any]:
    with tqdm(total=args.frames, desc="making frames", unit="frame") as bar:
        split = make_raw(folder, args.frames, bar.update)
    for name, words in (("packed", []), ("sized", ["--resolution", str(args.resolution)])):
        assert repack.main(["--source-split-dir", str(split), "--output-dir", str(folder / name), *words]) == 0
    sources = {FILES: split, PACKED: folder / "packed", SIZED: folder / "sized"}
    roots = {n: make_processed(folder / f"from_{i}", s, args.frames) for i, (n, s) in enumerate(sources.items())}
    cache = make_codes(folder / "codes", roots[FILES], args.resolution, args.views)
    naive = NaiveData(roots[FILES], T, args.resolution)
    providers = {name: DataProvider(root, T, args.resolution, args.views) for name, root in roots.items()}
    coded = DataProvider(roots[FILES], T, args.resolution, args.views, tokens=cache)
    rng = np.random.default_rng(3)
    indices = rng.permutation(args.frames)[: args.batch].tolist()
    ways: dict[str, Callable[[], Any]] = {NAIVE: lambda: naive.batch(indices)}
    for name, provider in providers.items():
        ways[name] = partial(collated, provider, indices)
    ways[ONE] = partial(collated, coded, indices)
    ways[GATHERED] = lambda: coded.batch(indices)
    same(naive, {name: way() for name, way in ways.items() if name != NAIVE}, indices, args.views)
    # What takes microseconds is done often enough to be measured.
    often = {ONE: 20, GATHERED: 100, "the floor of codes": 1000}
    ways |= {
        "the floor of images": floor(split, args.resolution, args.views, args.batch),
        "the floor of codes": copy_floor(cache, args.batch, args.views),
    }
    repeated = {name: _times(way, often.get(name, 1)) for name, way in ways.items()}
    with tqdm(total=args.rounds * len(ways), desc=NAME, unit="run") as bar:
        laps = alternate(repeated, args.rounds, args.device, tick=bar.update)
    found: dict[str, Any] = {}
    for name, runs in laps.items():
        count = often.get(name, 1)
        seconds = Spread.of([lap.cpu / count / args.batch for lap in runs])
        times = ratio(laps[NAIVE], runs, "cpu")
        faster = Spread(times.median * count, times.low * count, times.high * count, times.count)
        found[name] = {"seconds_per_item": seconds, "items_per_second": 1 / seconds.median, "times_faster": faster}
    return found


def collated(provider: DataProvider, indices: Sequence[int]) -> RobotBatch:
    return collate_robot([provider[index] for index in indices])


def _times(way: Callable[[], Any], count: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(count):
            way()

    return run


def table(found: dict[str, Any]) -> str:
    rows = ["| way | items/s | ms an item | times the original's |", "|---|---|---|---|"]
    for name, figures in found.items():
        milliseconds = 1e3 * figures["seconds_per_item"].median
        rows.append(f"| {name} | {figures['items_per_second']:,.0f} | {milliseconds:.3g} | {figures['times_faster']} |")
    return "\n".join(rows)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    made = parser(NAME, DESCRIPTION, EPILOG)
    made.add_argument("--frames", type=whole(1), default=512, help="frames of the split (default 512)")
    made.add_argument("--batch", type=whole(1), default=16, help="samples of a batch (default 16)")
    made.add_argument("--resolution", type=whole(1), default=512, help="side of the images in pixels (default 512)")
    made.add_argument("--views", type=int, choices=(1, 2), default=1, help="cameras (default 1, as the shipped runs)")
    made.add_argument("--folder", type=path_argument, help="where the split is made (default: a temporary folder)")
    args = made.parse_args(argv)
    if args.resolution % STRIDE or args.batch > args.frames:
        made.error(f"--resolution must be a multiple of {STRIDE}, --batch at most --frames")
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(dir=args.folder, ignore_cleanup_errors=True) as folder:
        found = measure(Path(folder), args)
    print(table(found))
    settings = {name: getattr(args, name) for name in ("frames", "batch", "resolution", "views", "rounds")}
    content = {"settings": settings, "ways": found}
    write(args.out, NAME, arguments(argv), args.device, args.threads, content)
    return content


if __name__ == "__main__":
    run_command(main)

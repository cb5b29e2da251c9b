"""Time robot samples: the original's way, from frames as recorded, from packed shards, and from the token cache.

Makes up a split of --frames frames like CALVIN's (two cameras of 200 and 84 pixels, depth and tactile images,
compressed), packs it by preprocess_data/repack.py, and gives it codes. Then all ways make batches of the same samples,
alternating, after it is checked that they give the same images and actions. "the floor" is the work that cannot be
avoided: inflating the arrays of the used cameras and PIL's bicubic resize of them (whose pixels the released
checkpoints expect), or, for codes, copying their bytes. Time is CPU time of one thread. The reference is
tests/benchmarks/naive_data.py: four files opened for a sample, a search from the first episode on, floats of every
image. Then the image of a conversation (a JPEG file of 640 x 480 pixels) becomes CLIP's input, by the package and by
the processor class of transformers that the original calls; both give the same numbers. At last frames of a LeRobot
video (h264, a key frame every two frames, as lerobot writes them) are read in order and at random, and compared with
decoding the whole file, with opening it for each frame, and with images that were unpacked from it.

Examples:
  python -m benchmarks.data_items                                  512 pixels, one camera
  python -m benchmarks.data_items --resolution 256 --views 2
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import zlib
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from benchmarks.harness.problems import CLIP_FIELDS
from benchmarks.harness.record import Parser, settings_of, write
from benchmarks.harness.recordings import WINDOW, write_raw_split
from benchmarks.harness.timing import Spread, alternate
from common.arguments import path_argument, whole
from common.command import run_command
from common.tables import markdown_table
from models.processing.image import ClipImageSpec, clip_pixels, normalise
from preprocess_data import export_lerobot, process_lerobot, repack
from preprocess_data.formats.lerobot import LerobotData
from preprocess_data.jobs.frame_sources import ProcessedFrames
from tests.benchmarks.naive_data import CAMERAS, NaiveData, naive_clip
from training.data.batch import RobotBatch, collate_robot
from training.data.caches.token_cache import TokenCache
from training.data.episode_index import INDEX_NAME
from training.data.formats.shards import Plan, ShardWriter, begin, finish, write_frames
from training.data.formats.video_frames import Video, video_frame
from training.data.readers import read_image_bytes
from training.future_view_prediction_w_action_dataset import DataProvider

ACT_STEP = 10
STRIDE = 16  # pixels of a code
NAIVE, FILES, PACKED, SIZED, ONE, GATHERED = (
    "the original's way",
    "frames as recorded",
    "packed as they are",
    "packed at the size of training",
    "codes, sample by sample",
    "codes, gathered",
)
OURS, JPEG_SIZE = "ours", (640, 480)
WHOLE, IN_ORDER, RANDOM, REOPENED, UNPACKED = (
    "whole video",
    "frames of a video in order",
    "frames of a video at random",
    "a video opened for each frame",
    "unpacked images at random",
)
IMAGE_FLOOR, CODE_FLOOR = "the floor of images", "the floor of codes"
VIDEO_FRAMES = 256
"""Frames that are read of a video in one run."""
REPEATS = {ONE: 20, GATHERED: 100, CODE_FLOOR: 1000}
"""How often ways that take microseconds are repeated in one run."""


def make_processed(folder: Path, split: Path, frames: int) -> Path:
    """Write a processed split of the frames in ``split``."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    actions = np.round(rng.uniform(-1, 1, (frames, 7)), 4).tolist()
    episodes = []
    for start in range(0, frames, WINDOW):
        listed = [
            {"dir": str(split / f"episode_{n:07d}.npz"), "rel_action": actions[n], "abs_action": actions[n]}
            for n in range(start, min(start + WINDOW, frames))
        ]
        episodes.append({"instruction": f"do thing {start // WINDOW}", "frames": listed})
    (folder / INDEX_NAME).write_text(json.dumps(episodes), encoding="utf-8")
    return folder


def make_codes(folder: Path, root: Path, resolution: int, views: int) -> TokenCache:
    """Write a token cache of random codes."""
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


def image_floor(split: Path, resolution: int, views: int, batch: int) -> Callable[[], None]:
    """Return the work on a batch's images that cannot be avoided: inflate and resize."""
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


def code_floor(resolution: int, views: int, batch: int) -> Callable[[], object]:
    """Return the copy of a batch's codes."""
    source = np.zeros((4 * batch, views, (resolution // STRIDE) ** 2), dtype=np.int16)
    target = np.empty((2 * batch, *source.shape[1:]), dtype=np.int16)
    return lambda: np.take(source, np.arange(2 * batch) * 2, axis=0, out=target)


def conversations(args: argparse.Namespace) -> dict[str, Any]:
    """Time decoding and CLIP preprocessing of a conversation's image, after a check that both ways agree."""
    rng = np.random.default_rng(4)
    coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    file = io.BytesIO()
    coarse.resize(JPEG_SIZE, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    content, spec = file.getvalue(), ClipImageSpec.from_fields(CLIP_FIELDS)
    theirs = naive_clip(CLIP_FIELDS)
    ways: dict[str, Callable[[], Any]] = {
        NAIVE: lambda: theirs(content),
        OURS: lambda: clip_pixels(read_image_bytes(content, "an image"), spec),
    }
    assert torch.allclose(ways[NAIVE](), ways[OURS](), atol=1e-6, rtol=0)
    repeated = {name: _repeat(way, args.batch) for name, way in ways.items()}
    timings = alternate(repeated, args.rounds, torch.device("cpu"), name="conversations")
    return {
        "ms_an_item": {name: 1e3 * timings.seconds(name).median / args.batch for name in ways},
        "times_faster": timings.ratio(NAIVE, OURS),
    }


def videos(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Time reading the frames of one camera of a LeRobot data set, after a check that they are those of its video."""
    split, made = folder / "raw" / "training", folder / "lerobot"
    assert export_lerobot.main(["--source-split-dir", str(split), "--output-dir", str(made)]) == 0
    providers = []
    for name, options in (("kept", ["--keep-videos"]), ("unpacked", [])):
        words = ["--source", str(made), "--output-dir", str(folder / name), "--workers", "1", *options]
        assert process_lerobot.main(words) == 0
        providers.append(DataProvider(folder / name, ACT_STEP, args.resolution, 1))
    kept, unpacked = providers
    data = LerobotData(made)
    path = data.episodes[0].videos[data.cameras[0]][0]
    frames = range(min(len(kept), VIDEO_FRAMES))
    order = np.random.default_rng(5).permutation(frames).tolist()
    names = [video_frame(kept.data.frame_path(frame)) for frame in order]

    def whole() -> list[Any]:
        with av.open(str(path)) as video:
            video.streams.video[0].codec_context.thread_count = 1
            return [frame.to_ndarray(format="rgb24") for frame, _ in zip(video.decode(video=0), frames, strict=False)]

    def reopened() -> None:
        for video, seconds in filter(None, names):
            with closing(Video(video)) as opened:
                opened.frame(seconds)

    assert all(np.array_equal(kept.images(n)[0], image) for n, image in enumerate(whole()))
    ways: dict[str, Callable[[], Any]] = {
        WHOLE: whole,
        IN_ORDER: lambda: [kept.images(frame) for frame in frames],
        RANDOM: lambda: [kept.images(frame) for frame in order],
        REOPENED: reopened,
        UNPACKED: lambda: [unpacked.images(frame) for frame in order],
    }
    timings = alternate(ways, args.rounds, torch.device("cpu"), name="videos")
    return {
        name: {"frames_per_second": timings.rate(name, len(frames)), "times_the_whole": timings.ratio(name, WHOLE)}
        for name in ways
    }


def check_equal(naive: NaiveData, batches: dict[str, RobotBatch], indices: list[int], views: int) -> None:
    """Raise AssertionError if a way gives other images or actions."""
    now, later, actions = naive.batch(indices)
    for name in (FILES, PACKED, SIZED):
        batch = batches[name]
        assert torch.equal(normalise(batch.views), now[:, :views]), name
        assert torch.equal(normalise(batch.future_views), later[:, :views]), name
    for name, batch in batches.items():
        assert torch.equal(batch.actions, actions), name
    assert torch.equal(batches[ONE].views, batches[GATHERED].views)
    assert torch.equal(batches[ONE].future_views, batches[GATHERED].future_views)


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Prepare the data of all ways, and time them."""
    split, resolution, views = folder / "raw" / "training", args.resolution, args.views
    write_raw_split(split, args.frames, ["do something"])
    for name, options in (("packed", []), ("sized", ["--resolution", str(resolution)])):
        assert repack.main(["--source-split-dir", str(split), "--output-dir", str(folder / name), *options]) == 0
    sources = {FILES: split, PACKED: folder / "packed", SIZED: folder / "sized"}
    roots = {n: make_processed(folder / f"from_{i}", s, args.frames) for i, (n, s) in enumerate(sources.items())}
    naive = NaiveData(roots[FILES], ACT_STEP, resolution)
    cache = make_codes(folder / "codes", roots[FILES], resolution, views)
    coded = DataProvider(roots[FILES], ACT_STEP, resolution, views, tokens=cache)
    indices = np.random.default_rng(3).permutation(args.frames)[: args.batch].tolist()

    ways: dict[str, Callable[[], Any]] = {
        name: partial(DataProvider(root, ACT_STEP, resolution, views).batch, indices) for name, root in roots.items()
    }
    ways |= {
        ONE: lambda: collate_robot([coded[index] for index in indices]),
        GATHERED: lambda: coded.batch(indices),
    }
    check_equal(naive, {name: way() for name, way in ways.items()}, indices, views)
    ways = {NAIVE: lambda: naive.batch(indices), **ways}
    ways[IMAGE_FLOOR] = image_floor(split, resolution, views, args.batch)
    ways[CODE_FLOOR] = code_floor(resolution, views, args.batch)
    repeated = {name: _repeat(way, REPEATS.get(name, 1)) for name, way in ways.items()}
    timings = alternate(repeated, args.rounds, torch.device("cpu"), name="data_items")
    found: dict[str, Any] = {}
    for name in ways:
        repeats = REPEATS.get(name, 1)
        seconds = Spread.of([value / repeats / args.batch for value in timings.values(name)])
        faster = timings.ratio(NAIVE, name, repeats)
        found[name] = {"seconds_per_item": seconds, "items_per_second": 1 / seconds.median, "times_faster": faster}
    return found


def _repeat(way: Callable[[], Any], count: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(count):
            way()

    return run


def table(found: dict[str, Any]) -> str:
    """Return the results as a Markdown table."""
    rows = [
        (
            name,
            f"{figures['items_per_second']:,.0f}",
            f"{1e3 * figures['seconds_per_item'].median:.3g}",
            str(figures["times_faster"]),
        )
        for name, figures in found.items()
    ]
    return markdown_table(("way", "items/s", "ms an item", "times the original's"), rows)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = Parser("data_items", __doc__)
    parser.add_argument("--frames", type=whole(1), default=512, help="frames of the split (512)")
    parser.add_argument("--batch", type=whole(1), default=16, help="samples of a batch (16)")
    parser.add_argument("--resolution", type=whole(1), default=512, help="side of the images in pixels (512)")
    parser.add_argument("--views", type=int, choices=(1, 2), default=1, help="cameras (1, as in the shipped runs)")
    parser.add_argument("--folder", type=path_argument, help="where the split is made (a temporary folder)")
    args = parser.parse(argv)
    if args.resolution % STRIDE or args.batch > args.frames:
        parser.error(f"--resolution must be a multiple of {STRIDE}, --batch at most --frames")
    with tempfile.TemporaryDirectory(dir=args.folder, ignore_cleanup_errors=True) as folder:
        found = measure(Path(folder), args)
        filmed = videos(Path(folder), args)
    print(table(found))
    rows = [(name, str(row["frames_per_second"]), str(row["times_the_whole"])) for name, row in filmed.items()]
    print(markdown_table(("way", "frames/s", "time, times that of the whole video"), rows))
    clip = conversations(args)
    print(f"the image of a conversation: {clip['times_faster']} times as fast as by the processor of transformers")
    settings = settings_of(args, "frames", "batch", "resolution", "views", "rounds")
    content = {"settings": settings, "ways": found, "conversations": clip, "videos": filmed}
    write(args, content)
    return content


if __name__ == "__main__":
    run_command(main)

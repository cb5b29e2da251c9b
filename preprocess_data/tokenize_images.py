"""Encode the images of a data set once, into a token cache from which training reads image codes.

python preprocess_data/tokenize_images.py --config config/tiny_arvla.yaml
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common.arguments import real, whole
from common.command import print_next, progress_bar, report_errors, run_command
from common.constants import CODEBOOK_SIZE
from common.files import reason_of
from models.processing.image import normalise
from models.vision.magvitv2 import MagVITv2, load_magvit
from preprocess_data.jobs.frame_sources import Source, open_source
from preprocess_data.jobs.shard_writer import (
    ShardTask,
    cache_parser,
    lock_plan,
    process_device,
    rank_and_world,
    read_batches,
    require_at_least,
    run_job,
    write_shards,
)
from training.data.caches.token_cache import FIT, FOLDER
from training.data.formats.shards import FRAMES, Plan, Rows, ShardWriter, begin, is_whole, write_frames

DESCRIPTION = """\
Write the token cache of a data set: the MagVITv2 codes of every frame and view, 2 bytes per code (2 kB for an image of
512 pixels), each distinct frame once even if windows overlap. Training then finds them
(dataset.params.token_cache=auto), opens no image of the robot, and does not run the tokenizer. Data sets are processed
splits (dataset_info.json), and raw CALVIN splits (a folder, or inside its zip) for offline evaluation. A killed command
resumes when started again. A cache belongs to one data set, one tokenizer and one resolution; it is refused for others,
with the command that makes theirs."""

EPILOG = """\
examples:
  tokenize_images.py --config config/upvla_action_tuning.yaml dataset.params.train_pre_shards_path_or_url=data/D
      what a run with these settings reads: its training and validation data, tokenizer and resolution
  tokenize_images.py --data data/D_training data/D_validation --tokenizer showlab/magvitv2 --resolution 512
      the same without a configuration
  tokenize_images.py --data task_D_D.zip/task_D_D/validation --tokenizer showlab/magvitv2 --output caches
      a raw split, for eval_upvla_offline_actions.py --token-cache caches
  tokenize_images.py ... --processes 2
      two processes, on two GPUs if there are two (or that many CPU cores)
  srun --ntasks 16 python preprocess_data/tokenize_images.py ...
  torchrun --nproc-per-node 8 preprocess_data/tokenize_images.py ...
      the shards are divided among ranks (SLURM_PROCID or RANK); the last one to finish completes the cache
  tokenize_images.py ... --check
      encode some frames again and count the codes that differ from the cache (exit code 1 above --most-flips)

A code is 13 signs; if its number is near zero, the sign may differ on another device, precision or batch size. The
cache records what it was made on (whole.json)."""


@dataclass(frozen=True)
class Settings:
    """The data set and the options of encoding."""

    data: Path
    tokenizer: str
    weights: str | None
    resolution: int
    views: int | None
    all_frames: bool
    device: str
    batch_size: int
    readers: int

    def source(self) -> Source:
        """Open the data set."""
        return open_source(self.data, self.resolution, self.views, self.all_frames)

    def model(self, device: str = "cpu") -> MagVITv2:
        """Load the tokenizer."""
        return load_magvit(self.tokenizer, self.weights, key="--tokenizer").to(device)


def plan_of(settings: Settings, source: Source, model: MagVITv2) -> Plan:
    """Return the plan of a data set's cache."""
    if settings.resolution % model.stride:
        raise ValueError(f"--resolution {settings.resolution}: must be a multiple of {model.stride}")
    codes = (settings.resolution // model.stride) ** 2
    columns = {"codes": ("<i2", (source.views, codes)), **source.numbers}
    about = {
        "kind": "tokens",
        "version": 1,
        "tokenizer": model.weights_hash,
        "name": Path(settings.weights or settings.tokenizer).name,
        "resolution": settings.resolution,
        "fit": FIT,
        "views": source.views,
        **source.about,
    }
    return Plan.of(len(source), columns, about)


def encode_shards(task: ShardTask[Settings], tick: Callable[[int], object] = lambda done: None) -> None:
    """Encode the task's frames, and write its shards."""
    settings, plan = task.settings, task.plan
    device = process_device(settings.device, task.process, task.processes)
    source, model = settings.source(), settings.model(device)
    made = {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
        "dtype": str(model.encoder.conv_in.weight.dtype).removeprefix("torch."),
        "tf32": False,  # MagVITv2.encode switches it off; caches of earlier versions may have it
        "batch_size": settings.batch_size,
        "torch": torch.__version__,
    }
    with ThreadPoolExecutor(settings.readers) as pool:
        for shard in task.shards:
            writer = ShardWriter(task.folder, plan, shard)
            for frames in read_batches(source.frame, plan.rows_of(shard), settings.batch_size, pool):
                numbers = {name: np.stack([arrays[name] for _, arrays in frames]) for name in source.numbers}
                images = torch.stack([views for views, _ in frames])
                writer.add({"codes": encode(model, images, device), **numbers})
                tick(len(frames))
            writer.close(made)


def encode(model: MagVITv2, images: Tensor, device: str) -> npt.NDArray[np.int16]:
    """Return the codes int16 [B, V, n] of images uint8 [B, V, 3, R, R]."""
    assert CODEBOOK_SIZE <= 1 << 15
    codes = model.encode(normalise(images.flatten(0, 1).to(device)))
    found: npt.NDArray[np.int16] = codes.view(*images.shape[:2], -1).to(torch.int16).cpu().numpy()
    return found


def tokenize(settings: Settings, output: Path, ranks: tuple[int, int], processes: int, progress: bool = True) -> str:
    """Write this rank's part of the cache of one data set, and return a line to print."""
    source = settings.source()
    plan = plan_of(settings, source, settings.model())
    settings = replace(settings, views=source.views)
    folder = output / f"{settings.resolution}px_{plan.digest}"
    with lock_plan(folder, plan, ranks, "tokenize_images", "--output "):
        try:
            begin(folder, plan)
            if not (folder / FRAMES).is_file():
                write_frames(folder, source.rows())
        except OSError as error:
            why = reason_of(error)
            raise ValueError(f"{folder} cannot be written ({why}); --output names another folder") from None
        task = ShardTask(settings, folder, plan)
        unfinished = write_shards(task, ranks, processes, str(settings.data), encode_shards, progress)
    size = f"{plan.rows} frames x {source.views} views, {plan.rows * plan.row_bytes / 1e6:.1f} MB"
    return unfinished or f"codes of {settings.data}: {size}, in {folder}"


def check(settings: Settings, output: Path, samples: int, most: float) -> tuple[str, bool]:
    """Encode some frames again; return a line about the codes that differ, and whether they are at most ``most``."""
    device = process_device(settings.device, 0, 1)
    source, model = settings.source(), settings.model(device)
    plan = plan_of(settings, source, model)
    folder = output / f"{settings.resolution}px_{plan.digest}"
    if not is_whole(folder, plan):
        raise ValueError(f"{folder} is not there or not finished; without --check this command makes it")
    rows = np.unique(np.linspace(0, plan.rows - 1, min(samples, plan.rows)).astype(int))
    cache = Rows(folder, plan)
    differing = total = 0
    for start in progress_bar(range(0, len(rows), settings.batch_size), desc="encoding again", unit="batch"):
        batch = rows[start : start + settings.batch_size]
        again = encode(model, torch.stack([source.frame(int(row))[0] for row in batch]), device)
        differing += int((again != cache.gather("codes", batch)).sum())
        total += again.size
    fraction = differing / total
    message = f"{folder}: {differing} of {total} codes ({fraction:.2e}) of {len(rows)} frames came out otherwise"
    return message, fraction <= most


# ------------------------------------------------------------------------------------------------------------- command
def parser() -> argparse.ArgumentParser:
    made, data, _ = cache_parser(
        DESCRIPTION,
        EPILOG,
        run="its data, tokenizer, resolution and views",
        data="splits, processed or raw (default: those of the run)",
        output=f"{FOLDER} in the data set",
        batch=16,
    )
    data.add_argument("--tokenizer", metavar="PATH_OR_ID", help="MagVITv2: a folder, a weights file or a hub id")
    data.add_argument("--tokenizer-weights", metavar="FILE", help="weights in place of the tokenizer's own")
    data.add_argument("--resolution", type=whole(1), metavar="R", help="side of the square images in pixels")
    data.add_argument("--views", type=int, choices=(1, 2), help="cameras (default: both, if there are two)")
    data.add_argument("--all-frames", action="store_true", help="raw splits: also frames without an annotation")
    add = made.add_argument_group("check a cache").add_argument
    add("--check", action="store_true", help="encode some frames again and count the codes that differ")
    add("--samples", type=whole(1), default=64, help="with --check: number of frames (default 64)")
    add("--most-flips", type=real(0, 1), default=0.001, help="with --check: fraction that is no error (0.001)")
    return made


@report_errors("tokenize_images")
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    jobs = _settings(options)
    ranks = rank_and_world(options)
    good = True
    for settings in jobs:
        output = options.output or settings.data / FOLDER
        if options.check:
            message, equal = check(settings, output, options.samples, options.most_flips)
            good = good and equal
        else:
            began = time.perf_counter()
            message = tokenize(settings, output, ranks, options.processes)
            message += f" ({time.perf_counter() - began:.0f} s)"
        print(message)
    print_next("train with dataset.params.token_cache=auto (the default), or its folder if --output was given")
    return 0 if good else 1


def _settings(options: argparse.Namespace) -> list[Settings]:
    """Return the settings of each data set."""
    data, tokenizer, weights = options.data, options.tokenizer, options.tokenizer_weights
    resolution, views = options.resolution, options.views
    if (job := run_job(options)) is not None:
        params = job.dataset.params
        roots = (params.train_pre_shards_path_or_url, params.validation_pre_shards_path_or_url)
        data = data or [Path(root) for root in roots if root is not None]
        if tokenizer is None:
            tokenizer, weights = job.model.vq_model.vq_model_name, weights or job.model.vq_model.pretrained_model_path
        resolution, views = resolution or job.dataset.preprocessing.resolution, views or job.model.vla.num_view
    if not data or tokenizer is None or resolution is None:
        raise ValueError("give --config, or --data, --tokenizer and --resolution; --help shows examples")
    require_at_least(options, resolution=1, batch_size=1, processes=1, readers=1, samples=1)
    return [
        Settings(
            data=path,
            tokenizer=str(tokenizer),
            weights=None if weights is None else str(weights),
            resolution=resolution,
            views=views,
            all_frames=options.all_frames,
            device=options.device,
            batch_size=options.batch_size,
            readers=options.readers,
        )
        for path in data
    ]


if __name__ == "__main__":
    run_command(main)

"""Images -> image codes, once: the token cache, with which training opens no image of the robot.

python preprocess_data/tokenize_images.py --config config/tiny_arvla.yaml
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from common.arguments import path_argument, real, whole
from common.command import run_command
from common.constants import CODEBOOK_SIZE
from common.files import reason_of
from config.loading import load_job
from models.processing.image import normalise
from models.vision.magvitv2 import MagVITv2, load_magvit
from preprocess_data.jobs.frame_sources import Source, open_source
from preprocess_data.jobs.shard_writer import (
    Part,
    least,
    process_device,
    rank_options,
    ranks_of,
    read_ahead,
    unfinished,
    write_all,
    writing,
)
from training.data.caches.token_cache import FIT, FOLDER
from training.data.formats.shards import FRAMES, Plan, Rows, ShardWriter, begin, is_whole, write_frames

DESCRIPTION = """\
Make the token cache of a data set: the MagVITv2 codes of every frame and view, 2 bytes a code (a 512-pixel image: 2
kB), each distinct frame once though windows overlap. Training then finds them by itself
(dataset.params.token_cache=auto), opens no image of the robot, and does not run the tokenizer. Data sets are
processed splits (dataset_info.json), and raw CALVIN splits (a folder, or inside its zip) for offline evaluation.
Killed, it goes on where it was when started again. A cache belongs to one data set, one tokenizer and one resolution;
for others it is refused, with the command that makes theirs."""

EPILOG = """\
examples:
  tokenize_images.py --config config/upvla_action_tuning.yaml dataset.params.train_pre_shards_path_or_url=data/D
      what a run with these settings reads: its training and held-out data, tokenizer and resolution
  tokenize_images.py --data data/D_training data/D_validation --tokenizer showlab/magvitv2 --resolution 512
      the same in one's own words
  tokenize_images.py --data task_D_D.zip/task_D_D/validation --tokenizer showlab/magvitv2 --output caches
      a raw split, for eval_upvla_offline_actions.py --token-cache caches
  tokenize_images.py ... --processes 2
      two processes, on two GPUs where there are two (or so many CPU cores)
  srun --ntasks 16 python preprocess_data/tokenize_images.py ...
  torchrun --nproc-per-node 8 preprocess_data/tokenize_images.py ...
      the shards are dealt out over ranks (SLURM_PROCID or RANK); the last one to finish closes the cache
  tokenize_images.py ... --check
      encode some frames again and count the codes that differ from the cache (exit code 1 if over --most-flips)

A code is 13 signs; one whose number lies next to zero may come out otherwise on another device, precision or batch
size. The cache says what it was made on (whole.json)."""


@dataclass(frozen=True)
class Settings:
    """How codes are made."""

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
        return open_source(self.data, self.resolution, self.views, self.all_frames)

    def model(self) -> MagVITv2:
        return load_magvit(self.tokenizer, self.weights, key="--tokenizer").to(self.device)


def plan_of(settings: Settings, source: Source, model: MagVITv2) -> Plan:
    """What the cache of a data set holds."""
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


def encode_share(share: Part[Settings], tick: Callable[[int], object] = lambda done: None) -> None:
    """Encode and write the shards of a share."""
    if not share.shards:
        return
    settings, plan = share.settings, share.plan
    source, model = settings.source(), settings.model()
    made = {
        "device": torch.cuda.get_device_name(settings.device) if settings.device.startswith("cuda") else "cpu",
        "dtype": str(model.encoder.conv_in.weight.dtype).removeprefix("torch."),
        "tf32": settings.device.startswith("cuda") and torch.backends.cudnn.allow_tf32,
        "batch_size": settings.batch_size,
        "torch": torch.__version__,
    }
    with ThreadPoolExecutor(settings.readers) as pool:
        for shard in share.shards:
            writer = ShardWriter(share.folder, plan, shard)
            for frames in read_ahead(source.frame, plan.rows_of(shard), settings.batch_size, pool):
                numbers = {name: np.stack([held[name] for _, held in frames]) for name in source.numbers}
                images = torch.stack([views for views, _ in frames])
                writer.add({"codes": encode(model, images, settings.device), **numbers})
                tick(len(frames))
            writer.close(made)


def encode(model: MagVITv2, images: Tensor, device: str) -> npt.NDArray[np.int16]:
    """uint8 [B, V, 3, R, R] -> int16 [B, V, n]."""
    assert CODEBOOK_SIZE <= 1 << 15
    codes = model.encode(normalise(images.flatten(0, 1).to(device)))
    found: npt.NDArray[np.int16] = codes.view(*images.shape[:2], -1).to(torch.int16).cpu().numpy()
    return found


def tokenize(settings: Settings, output: Path, ranks: tuple[int, int], processes: int, progress: bool = True) -> str:
    """Make this rank's part of the cache of one data set; returns a line that says what there is now."""
    source = settings.source()
    plan = plan_of(settings, source, load_magvit(settings.tokenizer, settings.weights, key="--tokenizer"))
    settings = replace(settings, views=source.views)
    folder = output / f"{settings.resolution}px_{plan.digest}"

    def share(shards: tuple[int, ...], number: int) -> Part[Settings]:
        return Part(replace(settings, device=process_device(settings.device, number, processes)), folder, plan, shards)

    with writing(folder, plan, ranks, "tokenize_images", "--output "):
        try:
            begin(folder, plan)
            if not (folder / FRAMES).is_file():
                write_frames(folder, source.rows())
        except OSError as error:
            why = reason_of(error)
            raise ValueError(f"{folder} cannot be written ({why}); --output names another folder") from None
        missing = write_all(folder, plan, ranks, processes, str(settings.data), share, encode_share, progress)
        if missing:
            return unfinished(folder, plan, missing)
    size = f"{plan.rows} frames x {source.views} views, {plan.rows * plan.row_bytes / 1e6:.1f} MB"
    return f"codes of {settings.data}: {size}, in {folder}"


def check(settings: Settings, output: Path, samples: int, most: float) -> tuple[str, bool]:
    """Encode some frames again: (what share of the codes differs, is it at most ``most``?)."""
    settings = replace(settings, device=process_device(settings.device, 0, 1))
    source, model = settings.source(), settings.model()
    plan = plan_of(settings, source, model)
    folder = output / f"{settings.resolution}px_{plan.digest}"
    if not is_whole(folder, plan):
        raise ValueError(f"{folder} is not there or not finished; without --check this command makes it")
    rows = np.unique(np.linspace(0, plan.rows - 1, min(samples, plan.rows)).astype(int))
    held = Rows(folder, plan)
    differing = total = 0
    for at in tqdm(range(0, len(rows), settings.batch_size), desc="encoding again", unit="batch"):
        batch = rows[at : at + settings.batch_size]
        again = encode(model, torch.stack([source.frame(int(row))[0] for row in batch]), settings.device)
        differing += int((again != held.gather("codes", batch)).sum())
        total += again.size
    share = differing / total
    told = f"{folder}: {differing} of {total} codes ({share:.2e}) of {len(rows)} frames came out otherwise"
    return told, share <= most


# ------------------------------------------------------------------------------------------------------------- command
def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = made.add_argument_group("what")
    what.add_argument("--config", metavar="YAML", help="a run's configuration: its data, tokenizer, resolution, views")
    what.add_argument("overrides", nargs="*", metavar="key=value", help="with --config: as for training")
    what.add_argument(
        "--data", type=path_argument, nargs="+", metavar="PATH", help="splits, processed or raw (default: the run's)"
    )
    what.add_argument("--tokenizer", metavar="PATH_OR_ID", help="MagVITv2: a folder, a weights file or a hub id")
    what.add_argument("--tokenizer-weights", metavar="FILE", help="weights in place of the tokenizer's own")
    what.add_argument("--resolution", type=whole(1), metavar="R", help="side of the square images in pixels")
    what.add_argument("--views", type=int, choices=(1, 2), help="cameras (default: both, where there are two)")
    what.add_argument("--all-frames", action="store_true", help="raw splits: also frames that no annotation names")
    how = made.add_argument_group("how")
    how.add_argument(
        "--output", type=path_argument, metavar="DIR", help=f"folder of caches (default: {FOLDER} in the data set)"
    )
    how.add_argument("--device", default="auto", help="auto, cpu, cuda (all of them) or cuda:<n>")
    how.add_argument("--batch-size", type=int, default=16, metavar="N", help="frames encoded at once (default 16)")
    rank_options(how)
    look = made.add_argument_group("look at a cache")
    look.add_argument("--check", action="store_true", help="encode some frames again and count the codes that differ")
    look.add_argument("--samples", type=whole(1), default=64, help="with --check: how many frames (default 64)")
    look.add_argument(
        "--most-flips", type=real(0, 1), default=0.001, help="with --check: share that is no error (0.001)"
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    try:
        jobs = _settings(options)
        ranks = ranks_of(options)
        good = True
        for settings in jobs:
            output = options.output or settings.data / FOLDER
            if options.check:
                told, fine = check(settings, output, options.samples, options.most_flips)
                good = good and fine
            else:
                began = time.perf_counter()
                told = tokenize(settings, output, ranks, options.processes)
                told += f" ({time.perf_counter() - began:.0f} s)"
            print(told)
        return 0 if good else 1
    except (ValueError, OSError) as error:
        print(f"tokenize_images: {error}", file=sys.stderr)
        return 2


def _settings(options: argparse.Namespace) -> list[Settings]:
    """One for each data set."""
    data, tokenizer, weights = options.data, options.tokenizer, options.tokenizer_weights
    resolution, views = options.resolution, options.views
    if options.overrides and options.config is None:
        raise ValueError(f"{options.overrides[0]}: settings of a run go with --config")
    if options.config is not None:
        job = load_job([f"config={options.config}", *options.overrides])
        params = job.dataset.params
        roots = (params.train_pre_shards_path_or_url, params.validation_pre_shards_path_or_url)
        data = data or [Path(root) for root in roots if root is not None]
        if tokenizer is None:
            tokenizer, weights = job.model.vq_model.vq_model_name, weights or job.model.vq_model.pretrained_model_path
        resolution, views = resolution or job.dataset.preprocessing.resolution, views or job.model.vla.num_view
    if not data or tokenizer is None or resolution is None:
        raise ValueError("give --config, or --data, --tokenizer and --resolution; --help shows examples")
    least(options, resolution=1, batch_size=1, processes=1, readers=1, samples=1)
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

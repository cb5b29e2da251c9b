"""Compute the CLIP features of conversation images once, into a cache on disk.

python preprocess_data/clip_features.py --config config/tiny_arvla.yaml --yes
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.arguments import path_argument
from common.command import phase_bar, print_next, report_errors, run_command
from models.processing.image import clip_pixels
from models.vision.clip_encoder import ClipTower, load_clip
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
from training.data.caches.clip_cache import FOLDER, about
from training.data.caches.token_cache import probes
from training.data.formats.shards import Plan, ShardWriter, begin, write_frames
from training.data.llava import image_of
from training.data.readers import LLAVA_NAME, iterate_json_values, read_image

KINDS = {"float16": "<f2", "float32": "<f4"}

DESCRIPTION = """\
Compute the features (patches) that the CLIP tower returns for every image of a set of conversations, each image once.
Training then opens no conversation image and does not run the tower (dataset.params.clip_cache=auto). Features are much
larger than images: 576 x 1024 numbers, 1.18 MB an image in float16, about 400 GB for LLaVA's mix. The size is printed
first, and nothing is written without --yes (or a yes at the terminal). A killed command resumes when started again."""

EPILOG = """\
examples:
  clip_features.py --config config/upvla_action_tuning.yaml dataset.params.train_mmu_shards_path_or_url=data/llava
      the conversations (training and held-out) and the tower of such a run
  clip_features.py --data data/llava --clip openai/clip-vit-large-patch14-336 --yes
  clip_features.py ... --processes 2        srun --ntasks 8 python preprocess_data/clip_features.py ... --yes

float16 has 11 significant bits: features differ by 0.05 % at most (docs/data.md shows the effect on losses);
--dtype float32 is exact and takes twice the space."""


@dataclass(frozen=True)
class Settings:
    """The conversations, the CLIP tower and the format of the cache."""

    data: Path
    image_root: Path
    clip: str
    dtype: str
    device: str
    batch_size: int
    readers: int


def list_images(settings: Settings) -> tuple[list[str], int]:
    """Return the paths of the distinct images, as in the json, and how many of the named images do not exist."""
    path = settings.data / LLAVA_NAME if settings.data.is_dir() else settings.data
    named = [image_of(record) for record in iterate_json_values(path)]
    names = list(dict.fromkeys(name for name in named if isinstance(name, str) and name))
    shown = phase_bar(names, desc="looking for images", unit="image")
    existing = [name for name in shown if _is_file(settings.image_root / name)]
    if not existing:
        raise ValueError(f"{path}: none of its {len(names)} images exists under {settings.image_root}; --image-root?")
    return existing, len(names) - len(existing)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (ValueError, OSError):  # not a valid file name
        return False


def plan_of(settings: Settings, names: Sequence[str], tower: ClipTower) -> Plan:
    """Return the plan of the cache: its columns, and what it depends on."""
    columns = {"patches": (KINDS[settings.dtype], (tower.num_patches, tower.width)), "decoded": ("|u1", ())}
    images = {
        "names": hashlib.blake2b("\0".join(names).encode(), digest_size=16).hexdigest(),
        "probes": probes([settings.image_root / name for name in names], settings.image_root),
    }
    return Plan.of(len(names), columns, {**about(tower, settings.clip), "json": settings.data.name, **images})


def write_features(task: ShardTask[Settings], tick: Callable[[int], object] = lambda done: None) -> None:
    """Compute the features of the task's images, and write its shards."""
    settings, plan = task.settings, task.plan
    device = process_device(settings.device, task.process, task.processes)
    tower = load_clip(settings.clip, key="--clip").to(device)
    blank = torch.zeros(3, *tower.image_spec.crop)

    def read(row: int) -> tuple[Tensor, bool]:
        try:
            return clip_pixels(read_image(settings.image_root / task.rows[row]), tower.image_spec), True
        except ValueError:  # training reports the image when it is drawn, and takes the next record
            return blank, False

    with ThreadPoolExecutor(settings.readers) as pool:
        for shard in task.shards:
            writer = ShardWriter(task.folder, plan, shard)
            for images in read_batches(read, plan.rows_of(shard), settings.batch_size, pool):
                pixels = torch.stack([image for image, _ in images]).to(device)
                patches = tower.features(pixels).cpu().numpy().astype(KINDS[settings.dtype])
                decoded = np.array([good for _, good in images], dtype=np.uint8)
                if not np.isfinite(patches[decoded > 0]).all():
                    raise ValueError(f"a feature overflows {settings.dtype}; use --dtype float32")
                writer.add({"patches": patches, "decoded": decoded})
                tick(len(images))
            writer.close({"device": device, "batch_size": settings.batch_size, "torch": torch.__version__})


def write_cache(settings: Settings, output: Path, options: argparse.Namespace) -> str:
    """Write this rank's part of the cache of one set of conversations, and return a line to print."""
    names, missing = list_images(settings)
    plan = plan_of(settings, names, load_clip(settings.clip, key="--clip"))
    folder = output / f"clip_{plan.digest}"
    _, (patches, width) = plan.columns["patches"]
    size = f"{plan.rows * plan.row_bytes / 1e9:.2f} GB"
    content = f"{plan.rows} images x {patches} patches x {width} numbers in {settings.dtype}: {size}"
    print(
        f"{settings.data}: {content}, in {folder}" + (f"; {missing} images do not exist" if missing else ""), flush=True
    )
    output.mkdir(parents=True, exist_ok=True)
    written = sum(file.stat().st_size for file in folder.glob("rows_*.shard"))
    if shutil.disk_usage(output).free < plan.rows * plan.row_bytes - written:
        raise ValueError(f"{output}: {size} are needed, {shutil.disk_usage(output).free / 1e9:.2f} GB are free")
    if not options.yes and not _confirmed():
        raise ValueError(f"nothing was written; --yes allows {size}")
    ranks = rank_and_world(options)
    with lock_plan(folder, plan, ranks, "clip_features", "--output "):
        begin(folder, plan)
        write_frames(folder, {}, {"names": names})
        task = ShardTask(settings, folder, plan, tuple(names))
        unfinished = write_shards(task, ranks, options.processes, str(settings.data), write_features)
    return unfinished or f"patches of {settings.data}: {content}, in {folder}"


def _confirmed() -> bool:
    return sys.stdin.isatty() and input("write them? [y/N] ").strip().lower() in ("y", "yes")


def parser() -> argparse.ArgumentParser:
    made, data, compute = cache_parser(
        DESCRIPTION,
        EPILOG,
        run="its conversations and its tower",
        data=f"folders with {LLAVA_NAME}, or json files (default: those of the run)",
        output=f"{FOLDER} next to the json",
        batch=32,
    )
    data.add_argument("--image-root", type=path_argument, metavar="DIR", help="folder of the images (the json's)")
    data.add_argument("--clip", metavar="PATH_OR_ID", help="CLIP: a folder or a hub id")
    data.add_argument("--yes", action="store_true", help="write any amount without asking")
    compute.add_argument("--dtype", choices=tuple(KINDS), default="float16", help="type of the numbers (float16)")
    return made


@report_errors("clip_features")
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    for settings in _settings(options):
        output = options.output or (settings.data if settings.data.is_dir() else settings.data.parent) / FOLDER
        began = time.perf_counter()
        print(f"{write_cache(settings, output, options)} ({time.perf_counter() - began:.0f} s)")
    print_next("train with dataset.params.clip_cache=auto (the default), or its folder if --output was given")
    return 0


def _settings(options: argparse.Namespace) -> list[Settings]:
    """Return the settings of each set of conversations."""
    data, clip = options.data, options.clip
    roots: list[Path | None] = [options.image_root]
    if (job := run_job(options)) is not None:
        params, clip = job.dataset.params, clip or job.model.showo.clip_model_path
        if data is None:
            sources: list[str | None] = [*params.train_mmu_sources] or [params.train_mmu_shards_path_or_url]
            given = [Path(root) for root in params.train_mmu_image_roots] or [options.image_root]
            roots = [*(given * len(sources) if len(given) == 1 else given), None]
            data = [Path(root) for root in [*sources, params.validation_mmu_shards_path_or_url] if root is not None]
    if not data or clip is None:
        raise ValueError("give --config, or --data and --clip; --help shows examples")
    require_at_least(options, batch_size=1, processes=1, readers=1)
    roots = roots * len(data) if len(roots) == 1 else roots[: len(data)]
    return [
        Settings(
            data=path,
            image_root=root or (path if path.is_dir() else path.parent),
            clip=str(clip),
            dtype=options.dtype,
            device=options.device,
            batch_size=options.batch_size,
            readers=options.readers,
        )
        for path, root in zip(data, roots, strict=True)
    ]


if __name__ == "__main__":
    run_command(main)

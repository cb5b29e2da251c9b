"""Images of conversations -> CLIP's patches, once. Large: think of the disk first.

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
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common.arguments import path_argument
from common.command import run_command
from config.loading import load_job
from models.processing.image import clip_pixels
from models.vision.clip_encoder import ClipTower, load_clip
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
from training.data.caches.clip_cache import FOLDER, about
from training.data.caches.token_cache import probes
from training.data.formats.shards import Plan, ShardWriter, begin, write_frames
from training.data.llava import image_of
from training.data.readers import LLAVA_NAME, iterate_json_values, read_image

KINDS = {"float16": "<f2", "float32": "<f4"}

DESCRIPTION = """\
Make the patches that the CLIP tower sees in every image of a set of conversations, each image once: training then
opens no conversation image and does not run the tower (dataset.params.clip_cache=auto). Patches are much larger than
images: 576 x 1024 numbers, 1.18 MB an image in float16, some 400 GB for LLaVA's mix. The size is told first, and
nothing is written without --yes (or a yes at the terminal). Killed, it goes on where it was when started again."""

EPILOG = """\
examples:
  clip_features.py --config config/upvla_action_tuning.yaml dataset.params.train_mmu_shards_path_or_url=data/llava
      the conversations (training and held-out) and the tower of such a run
  clip_features.py --data data/llava --clip openai/clip-vit-large-patch14-336 --yes
  clip_features.py ... --processes 2        srun --ntasks 8 python preprocess_data/clip_features.py ... --yes

float16 keeps 11 bits of every number: patches differ by 0.05 % at most (docs/data.md has what that does to losses);
--dtype float32 keeps all and takes twice the room."""


@dataclass(frozen=True)
class Settings:
    """What is made, and how."""

    data: Path
    image_root: Path
    clip: str
    dtype: str
    device: str
    batch_size: int
    readers: int


@dataclass(frozen=True)
class Share(Part[Settings]):
    """What one process does, and the images of all rows."""

    names: tuple[str, ...]


def images_of(settings: Settings) -> tuple[list[str], int]:
    """(paths of the distinct images as the json has them, how many of those it names do not exist)."""
    path = settings.data / LLAVA_NAME if settings.data.is_dir() else settings.data
    named = [image_of(record) for record in iterate_json_values(path)]
    names = list(dict.fromkeys(name for name in named if isinstance(name, str) and name))
    there = [name for name in names if _is_file(settings.image_root / name)]
    if not there:
        raise ValueError(f"{path}: none of its {len(names)} images exists under {settings.image_root}; --image-root?")
    return there, len(names) - len(there)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (ValueError, OSError):  # no file can have such a name
        return False


def plan_of(settings: Settings, names: Sequence[str], tower: ClipTower) -> Plan:
    columns = {
        "patches": (KINDS[settings.dtype], (tower.num_patches, tower.width)),
        "decoded": ("|u1", ()),
    }
    images = {
        "names": hashlib.blake2b("\0".join(names).encode(), digest_size=16).hexdigest(),
        "probes": probes([settings.image_root / name for name in names], settings.image_root),
    }
    return Plan.of(len(names), columns, {**about(tower, settings.clip), "json": settings.data.name, **images})


def see_share(share: Share, tick: Callable[[int], object] = lambda done: None) -> None:
    """Look at the images of a share, and write its shards."""
    settings, plan = share.settings, share.plan
    tower = load_clip(settings.clip, key="--clip").to(settings.device)
    blank = torch.zeros(3, *tower.image_spec.crop)

    def read(row: int) -> tuple[Tensor, bool]:
        try:
            return clip_pixels(read_image(settings.image_root / share.names[row]), tower.image_spec), True
        except ValueError:  # training says so when its turn comes, and takes the next record
            return blank, False

    with ThreadPoolExecutor(settings.readers) as pool:
        for shard in share.shards:
            writer = ShardWriter(share.folder, plan, shard)
            for images in read_ahead(read, plan.rows_of(shard), settings.batch_size, pool):
                pixels = torch.stack([image for image, _ in images]).to(settings.device)
                patches = tower.features(pixels).cpu().numpy().astype(KINDS[settings.dtype])
                decoded = np.array([good for _, good in images], dtype=np.uint8)
                if not np.isfinite(patches[decoded > 0]).all():
                    raise ValueError(f"a patch does not fit into {settings.dtype}; --dtype float32 keeps it")
                writer.add({"patches": patches, "decoded": decoded})
                tick(len(images))
            writer.close({"device": settings.device, "batch_size": settings.batch_size, "torch": torch.__version__})


def make(settings: Settings, output: Path, options: argparse.Namespace) -> str:
    """Make one cache; returns a line that says what there is now."""
    names, lost = images_of(settings)
    plan = plan_of(settings, names, load_clip(settings.clip, key="--clip"))
    folder = output / f"clip_{plan.digest}"
    _, (patches, width) = plan.columns["patches"]
    size = f"{plan.rows * plan.row_bytes / 1e9:.2f} GB"
    told = f"{plan.rows} images x {patches} patches x {width} numbers in {settings.dtype}: {size}"
    print(f"{settings.data}: {told}, in {folder}" + (f"; {lost} images do not exist" if lost else ""), flush=True)
    output.mkdir(parents=True, exist_ok=True)
    have = sum(file.stat().st_size for file in folder.glob("rows_*.shard"))
    if shutil.disk_usage(output).free < plan.rows * plan.row_bytes - have:
        raise ValueError(f"{output}: {size} are needed, {shutil.disk_usage(output).free / 1e9:.2f} GB are free")
    if not options.yes and not _agreed():
        raise ValueError(f"nothing was written; --yes says that {size} may be")
    ranks = ranks_of(options)
    with writing(folder, plan, ranks, "clip_features", "--output "):
        begin(folder, plan)
        write_frames(folder, {}, {"names": names})

        def share(shards: tuple[int, ...], number: int) -> Share:
            device = process_device(settings.device, number, options.processes)
            return Share(replace(settings, device=device), folder, plan, shards, tuple(names))

        missing = write_all(folder, plan, ranks, options.processes, str(settings.data), share, see_share)
        if missing:
            return unfinished(folder, plan, missing)
    return f"patches of {settings.data}: {told}, in {folder}"


def _agreed() -> bool:
    return sys.stdin.isatty() and input("write them? [y/N] ").strip().lower() in ("y", "yes")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = made.add_argument_group("what")
    what.add_argument("--config", metavar="YAML", help="a run's configuration: its conversations and its tower")
    what.add_argument("overrides", nargs="*", metavar="key=value", help="with --config: as for training")
    what.add_argument(
        "--data", type=path_argument, nargs="+", metavar="PATH", help=f"folders with {LLAVA_NAME}, or json files"
    )
    what.add_argument("--image-root", type=path_argument, metavar="DIR", help="where images' paths start (the json's)")
    what.add_argument("--clip", metavar="PATH_OR_ID", help="CLIP: a folder or a hub id")
    what.add_argument("--yes", action="store_true", help="write, however much it is")
    how = made.add_argument_group("how")
    how.add_argument(
        "--output", type=path_argument, metavar="DIR", help=f"folder of caches (default: {FOLDER} beside the json)"
    )
    how.add_argument("--dtype", choices=tuple(KINDS), default="float16", help="of the numbers kept (default float16)")
    how.add_argument("--device", default="auto", help="auto, cpu, cuda (all of them) or cuda:<n>")
    how.add_argument("--batch-size", type=int, default=32, metavar="N", help="images looked at at once (default 32)")
    rank_options(how)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    try:
        for settings in _settings(options):
            output = options.output or (settings.data if settings.data.is_dir() else settings.data.parent) / FOLDER
            began = time.perf_counter()
            print(f"{make(settings, output, options)} ({time.perf_counter() - began:.0f} s)")
        return 0
    except (ValueError, OSError) as error:
        tqdm.write(f"clip_features: {error}", file=sys.stderr)
        return 2


def _settings(options: argparse.Namespace) -> list[Settings]:
    """One for each set of conversations."""
    data, clip = options.data, options.clip
    roots: list[Path | None] = [options.image_root]
    if options.overrides and options.config is None:
        raise ValueError(f"{options.overrides[0]}: settings of a run go with --config")
    if options.config is not None:
        job = load_job([f"config={options.config}", *options.overrides])
        params, clip = job.dataset.params, clip or job.model.showo.clip_model_path
        if data is None:
            some: list[str | None] = [*params.train_mmu_sources] or [params.train_mmu_shards_path_or_url]
            given = [Path(root) for root in params.train_mmu_image_roots]
            roots = [*(given * len(some) if len(given) == 1 else given or [options.image_root] * len(some)), None]
            data = [Path(root) for root in [*some, params.validation_mmu_shards_path_or_url] if root is not None]
    if not data or clip is None:
        raise ValueError("give --config, or --data and --clip; --help shows examples")
    least(options, batch_size=1, processes=1, readers=1)
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

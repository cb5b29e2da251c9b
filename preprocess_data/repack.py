"""Pack raw CALVIN frames into shards of pixels, for training on images (augmentation, image tokenizers).

python preprocess_data/repack.py --source-split-dir /path/to/task_D_D/training --output-dir packed/task_D_D/training
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.arguments import command_parser, path_argument, whole
from common.command import print_next, progress_bar, report_errors, run_command
from common.files import write_bytes
from common.folder_lock import is_lock
from models.processing.image import fit
from preprocess_data.formats.calvin_select import source_splits
from preprocess_data.jobs.frame_sources import frames_of
from preprocess_data.jobs.shard_writer import (
    ShardTask,
    lock_plan,
    rank_and_world,
    rank_options,
    read_batches,
    require_at_least,
    write_shards,
)
from training.data.caches.token_cache import FIT, probes
from training.data.calvin import CalvinSplit
from training.data.formats import zip_reader
from training.data.formats.packed_frames import KIND, pack_at
from training.data.formats.shards import Plan, ShardWriter, begin, write_frames
from training.data.readers import npz_shapes
from training.future_view_prediction_w_action_dataset import CAMERAS

KEYS = (*CAMERAS, "rel_actions", "actions", "robot_obs", "scene_obs")
"""CALVIN's arrays of a frame."""
OPTIONAL = ("expert_actions",)
"""Further arrays that all frames of a split have, or none."""
BATCH = 64
"""Frames."""

DESCRIPTION = """\
Write a raw CALVIN split (a folder, or inside the zip of the download, which is not unpacked) into shards: the two
colour cameras as they are, uncompressed and memory-mapped, actions and states; depth and tactile images are left out.
The result is a raw split: process_calvin.py, training, offline evaluation and inspection read its frames as
<folder>/episode_0000123.npz, though there is no such file. Annotations and the split's other small files are copied. A
killed command resumes when started again. If no pixels are needed, a token cache (tokenize_images.py) is fifty times
smaller."""

EPILOG = """\
examples:
  repack.py --source-split-dir calvin/task_D_D/training --output-dir packed/task_D_D/training
  repack.py --source-split-dir task_D_D.zip --output-dir packed/task_D_D
      training and validation from the download (one: --split validation)
  repack.py ... --annotated
      only frames that an annotation names, which is all that training reads
  repack.py ... --resolution 256
      images at the size of training, which are not resized any more (other sizes would be made from these, not from
      the originals)
  repack.py ... --processes 8          srun --ntasks 16 python preprocess_data/repack.py ...
  repack.py --verify packed/task_D_D/training --source-split-dir calvin/task_D_D/training
      compare every number of every frame with the source (only checksums without a source); exit code 1 if not equal

then: process_calvin.py --source-split-dir packed/task_D_D/training --output-dir data/D_training"""


@dataclass(frozen=True)
class Settings:
    """The split and the options of packing."""

    source: Path
    resolution: int | None
    annotated: bool
    readers: int


def frame(split: CalvinSplit, number: int, plan: Plan) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a row. Raise ValueError naming a frame whose arrays differ from the first frame's."""
    keys = tuple(plan.columns)
    arrays = dict(split.frame(number, keys, [key for key in OPTIONAL if key not in keys]))
    if set(arrays) - set(keys):
        raise ValueError(
            f"{split.frame_path(number)} has {sorted(set(arrays) - set(keys))[0]}, and the first frame of the split "
            "has none; all frames of a split have it, or none"
        )
    side = plan.about["resolution"]
    if side is not None:
        for camera in CAMERAS:
            if camera in arrays:
                arrays[camera] = fit(arrays[camera], side).transpose(1, 2, 0)
    for name, (kind, shape) in plan.columns.items():
        array = arrays[name]
        if array.shape != shape or array.dtype != np.dtype(kind):
            raise ValueError(
                f"{split.frame_path(number)}: {name} is {array.dtype} {list(array.shape)}, in the first frame it is "
                f"{np.dtype(kind)} {list(shape)}; a packed split has frames of one kind"
            )
    return arrays


def plan_of(settings: Settings, split: CalvinSplit, ids: npt.NDArray[np.int64]) -> Plan:
    """Return the plan of a packed split: columns as in the first frame, and what the content depends on."""
    first = split.frame_path(int(ids[0]))
    present = npz_shapes(first)
    keys = [key for key in (*KEYS, *OPTIONAL) if key in present or key == "rel_actions"]
    arrays = split.frame(int(ids[0]), keys)
    side = settings.resolution
    columns = {
        key: (array.dtype.str, (side, side, 3) if side is not None and key in CAMERAS else array.shape)
        for key, array in arrays.items()
    }
    about = {
        "kind": KIND,
        "version": 1,
        "source": str(split.path.name),
        "annotated": settings.annotated,
        "resolution": side,
        "fit": None if side is None else FIT,
        "first": int(ids[0]),
        "last": int(ids[-1]),
        "probes": probes([split.frame_path(int(number)) for number in ids], split.path),
    }
    return Plan.of(len(ids), columns, about)


def write_frames_of(task: ShardTask[Settings], tick: Callable[[int], object] = lambda done: None) -> None:
    """Read the task's frames, and write its shards."""
    split, plan = CalvinSplit(task.settings.source), task.plan

    def read(row: int) -> dict[str, npt.NDArray[Any]]:
        return frame(split, task.rows[row], plan)

    with ThreadPoolExecutor(task.settings.readers) as pool:
        for shard in task.shards:
            writer = ShardWriter(task.folder, plan, shard)
            for frames in read_batches(read, plan.rows_of(shard), BATCH, pool):
                writer.add({name: np.stack([arrays[name] for arrays in frames]) for name in plan.columns})
                tick(len(frames))
            writer.close({})


def repack(settings: Settings, folder: Path, ranks: tuple[int, int], processes: int, progress: bool = True) -> str:
    """Pack one split, and return a line to print."""
    split = CalvinSplit(settings.source)
    ids = frames_of(split, all_frames=not settings.annotated)
    plan = plan_of(settings, split, ids)
    with lock_plan(folder, plan, ranks, "repack", "--output-dir "):
        if any(folder.glob("episode_*.npz")):
            raise ValueError(f"--output-dir {folder}: frames lie there as files already; give an empty folder")
        size = plan.rows * plan.row_bytes
        content = f"{plan.rows} frames of {plan.row_bytes / 1e3:.1f} kB, {size / 1e9:.2f} GB"
        print(f"{settings.source} -> {folder}: {content}", flush=True)
        written = sum(file.stat().st_size for file in folder.glob("rows_*.shard"))
        if shutil.disk_usage(folder).free < size - written:
            free = shutil.disk_usage(folder).free / 1e9
            raise ValueError(f"--output-dir {folder}: {content} are needed, {free:.2f} GB are free; try --annotated")
        begin(folder, plan)
        write_frames(folder, {"ids": ("<i8", ids)})
        _copy_other_files(split.path, folder)
        task = ShardTask(settings, folder, plan, tuple(ids.tolist()))
        unfinished = write_shards(task, ranks, processes, str(settings.source), write_frames_of, progress)
    return unfinished or f"packed split: {folder} ({content})"


def _copy_other_files(source: Path, folder: Path, below: str = "") -> None:
    """Copy all files of a split that are not frames; they are small."""
    for name in sorted(zip_reader.names(source / below)):
        path, target = source / below / name, folder / below / name
        if zip_reader.is_folder(path):
            if name != "token_cache":
                _copy_other_files(source, folder, os.path.join(below, name))
        elif not name.startswith("episode_") and not is_lock(name):
            target.parent.mkdir(parents=True, exist_ok=True)
            with zip_reader.open_binary(path) as file:
                write_bytes(target, file.read())


def verify(folder: Path, source: Path | None) -> int:
    """Read every row, compare it with the source if there is one, and return the exit code."""
    pack = pack_at(folder)
    if pack is None:
        raise ValueError(f"{folder} is no packed split, or is not finished; without --verify this command makes it")
    split = None if source is None else CalvinSplit(source)
    unequal = 0
    for row, number in enumerate(progress_bar(pack.ids.tolist(), desc=f"verifying {folder}", unit="frame")):
        arrays = pack.arrays(row, pack.keys)
        if split is None:
            continue
        expected = frame(split, number, pack.rows.plan)
        wrong = [key for key in pack.keys if not np.array_equal(arrays[key], expected[key])]
        if wrong:
            unequal += 1
            print(f"{split.frame_path(number)}: {' and '.join(wrong)} differ from the packed frame", file=sys.stderr)
    how = "checksums" if split is None else f"every number equals {source}"
    print(f"{folder}: {len(pack.ids)} frames, " + (f"{unequal} differ" if unequal else f"whole ({how})"))
    return 1 if unequal else 0


def parser() -> argparse.ArgumentParser:
    made = command_parser(DESCRIPTION, EPILOG)
    add = made.add_argument_group("data").add_argument
    add("--source-split-dir", type=path_argument, metavar="PATH", help="a raw split, the folder above it, or a zip")
    add("--output-dir", type=path_argument, metavar="PATH", help="folder to write; made if missing")
    add("--split", choices=("training", "validation"), help="split of a source that has both (default: both)")
    add("--annotated", action="store_true", help="only frames in annotated windows (default: all)")
    add("--resolution", type=whole(1), metavar="R", help="resize images to R x R (default: as they are)")
    add("--verify", type=path_argument, metavar="PATH", help="check a packed split, with the source if given")
    rank_options(made.add_argument_group("computation"))
    return made


@report_errors("repack")
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    if options.verify is not None:
        return verify(options.verify, options.source_split_dir)
    if options.source_split_dir is None or options.output_dir is None:
        raise ValueError("give --source-split-dir and --output-dir, or --verify; --help shows examples")
    require_at_least(options, resolution=16, processes=1, readers=1)
    ranks = rank_and_world(options)
    for name, path in source_splits(options.source_split_dir, options.split):
        settings = Settings(path, options.resolution, options.annotated, options.readers)
        began = time.perf_counter()
        message = repack(settings, options.output_dir / name, ranks, options.processes)
        print(f"{message} ({time.perf_counter() - began:.0f} s)")
    print_next("blockdiff-vla process calvin --source-split-dir {folder} --output-dir DIR", folder=options.output_dir)
    return 0


if __name__ == "__main__":
    run_command(main)

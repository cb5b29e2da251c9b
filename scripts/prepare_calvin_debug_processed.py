"""Make a tiny processed split from a few consecutive raw CALVIN frames and one instruction, to try training.

    python scripts/prepare_calvin_debug_processed.py --source-split-dir /path/to/calvin/training \
        --output-dir ./debug_data/calvin_debug_processed_training --instruction "open the drawer" --max-frames 256
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from common.arguments import command_parser, path_argument, whole
from common.command import print_next, report_errors, run_command
from preprocess_data.process_calvin import describe, write_processed
from training.data.calvin import Annotation, CalvinSplit

DESCRIPTION = """\
Takes --max-frames frames of a raw CALVIN split, in order, and writes them with one instruction as a processed split:
dataset_info.json and copies of the frames, in a folder that can be moved. The instruction need not be true: the split
is for trying the code, not for training a task. A gap in the recording starts a new episode."""


def stretches(split: CalvinSplit, start_index: int, max_frames: int, instruction: str) -> list[Annotation]:
    """Return the chosen frames as windows of uninterrupted recording, all with the same instruction."""
    if max_frames < 1:
        raise ValueError(f"--max-frames must be at least 1, is {max_frames}")
    ids = split.frame_ids
    if not 0 <= start_index < len(ids):
        raise ValueError(f"--start-index {start_index}: {split.path} has frames 0 to {len(ids) - 1} in order")
    ids = ids[start_index : start_index + max_frames]
    begins = np.diff(ids, prepend=ids[0] - 2) != 1
    if (split.path / "ep_start_end_ids.npy").is_file():  # some debug splits lack it
        begins |= np.isin(ids, split.ranges[:, 0])
    edges = [*np.flatnonzero(begins).tolist(), len(ids)]
    return [Annotation(int(ids[first]), int(ids[last - 1]), instruction, task=None) for first, last in pairwise(edges)]


def parser() -> argparse.ArgumentParser:
    made = command_parser(DESCRIPTION)
    add = made.add_argument
    add("--source-split-dir", type=path_argument, required=True, help="folder with episode_*.npz")
    add("--output-dir", type=path_argument, required=True, help="folder to write; made if missing")
    add("--instruction", required=True, help="instruction of every frame")
    add("--max-frames", type=int, default=256, help="number of frames (default 256)")
    add("--start-index", type=whole(0), default=0, help="first frame, from 0 in the order of the files (default 0)")
    return made


@report_errors("prepare_calvin_debug_processed")
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    split = CalvinSplit(options.source_split_dir)
    windows = stretches(split, options.start_index, options.max_frames, options.instruction)
    summary = write_processed(split, windows, options.output_dir, placement="copy")
    print(describe(summary))
    print_next("python scripts/smoke_upvla_minimal.py --dataset-path {folder}", folder=options.output_dir)
    return 0


if __name__ == "__main__":
    run_command(main)

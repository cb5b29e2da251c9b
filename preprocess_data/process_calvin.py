"""Raw CALVIN split -> processed split: one episode per language annotation, listed in ``dataset_info.json``.

python preprocess_data/process_calvin.py --source-split-dir /path/to/task_D_D/training --output-dir data/D_training
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.data.calvin import Annotation, CalvinSplit
from training.data.processed import INDEX_NAME, Episode, Frame, write_index

Placement = Literal["relative", "absolute", "copy"]

DESCRIPTION = """\
Make a processed split, which training reads, out of a raw CALVIN split (task_D_D/training, the debug data set, or what
the embedded desk records): a folder with dataset_info.json, in which every language annotation is one episode with its
instruction, the files of its frames (first to last, both included) and their relative and absolute actions.
Run it once for training/ and once for validation/."""

EPILOG = """\
examples:
  process_calvin.py --source-split-dir calvin/task_D_D/training --output-dir data/task_D_D_training
      all annotations; the frames stay where they are, and are found relative to the output folder:
      move both folders together
  process_calvin.py ... --copy-frames
      a folder that can be moved anywhere by itself (as large as the frames it names)
  process_calvin.py ... --annotations 0 1 2 3
      only these annotations, counted from 0 in the order of auto_lang_ann.npy

then train with dataset.params.train_pre_shards_path_or_url=<output folder>"""


@dataclass(frozen=True)
class Summary:
    """What was written."""

    path: Path
    episodes: int
    frames: int  # listed; annotations overlap, so a file may be listed more than once
    files: int  # distinct
    instructions: int  # distinct


def chosen(annotations: Sequence[Annotation], choice: Sequence[int] | None) -> list[Annotation]:
    """The annotations with these numbers, or all of them for None. Raises ValueError for a number there is not."""
    if choice is None:
        return list(annotations)
    for number in choice:
        if not 0 <= number < len(annotations):
            raise ValueError(f"--annotations {number}: the split has annotations 0 to {len(annotations) - 1}")
    return [annotations[number] for number in choice]


def write_processed(
    split: CalvinSplit,
    annotations: Sequence[Annotation],
    output_dir: Path,
    placement: Placement = "relative",
    workers: int = 4,
    progress: bool = True,
) -> Summary:
    """Write ``annotations`` of ``split`` as a processed split under ``output_dir``; each frame file is read once.

    ``placement``: how frames are named: relative to ``output_dir``, by absolute path, or copied into it.
    Raises ValueError or FileNotFoundError naming the first file that is missing or damaged; no dataset_info.json is
    left behind then (an older one stays as it was).
    """
    if not annotations:
        raise ValueError(f"{split.path} gives no annotated window to process")
    output_dir.mkdir(parents=True, exist_ok=True)
    ids = np.unique(np.concatenate([np.arange(window.start, window.end + 1) for window in annotations]))
    name = _namer(split, output_dir, placement)

    def read(frame: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        arrays = split.frame(frame, ("rel_actions", "actions"))
        if placement == "copy":
            _copy(split.frame_path(frame), output_dir / name(frame))
        return arrays["rel_actions"], arrays["actions"]

    relative = np.empty((len(ids), 7), dtype=np.float32)
    absolute = np.empty((len(ids), 7), dtype=np.float32)
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        results = pool.map(read, ids.tolist())
        for row, (rel, abs_) in enumerate(tqdm(results, "frames", len(ids), unit="frame", disable=not progress)):
            relative[row], absolute[row] = rel, abs_

    def episodes() -> Iterator[Episode]:
        for window in annotations:
            first = int(np.searchsorted(ids, window.start))
            rows = range(first, first + len(window.frames))
            frames = [Frame(name(int(ids[row])), relative[row].tolist(), absolute[row].tolist()) for row in rows]
            yield Episode(window.instruction, window.task, frames)

    frames = write_index(output_dir, episodes())
    return Summary(
        path=output_dir / INDEX_NAME,
        episodes=len(annotations),
        frames=frames,
        files=len(ids),
        instructions=len({window.instruction for window in annotations}),
    )


def _namer(split: CalvinSplit, output_dir: Path, placement: Placement) -> Callable[[int], str]:
    if placement == "copy":
        return lambda frame: f"frames/{split.frame_path(frame).name}"
    source = split.path.resolve()
    folder = source if placement == "absolute" else Path(os.path.relpath(source, output_dir.resolve()))
    return lambda frame: (folder / split.frame_path(frame).name).as_posix()


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    if target.is_file():
        have, want = target.stat(), source.stat()
        if (have.st_size, have.st_mtime_ns) == (want.st_size, want.st_mtime_ns):
            return  # an earlier, interrupted run got this far
    partial = target.with_suffix(".npz.tmp")
    shutil.copy2(source, partial)  # with its time, by which the line above knows it again
    os.replace(partial, target)


def describe(summary: Summary) -> str:
    return (
        f"{summary.path}: {summary.episodes} episodes, {summary.frames} frames ({summary.files} files), "
        f"{summary.instructions} different instructions"
    )


def _choice(words: Sequence[str]) -> list[int] | None:
    if list(words) == ["all"]:
        return None
    try:
        return [int(word) for word in words]
    except ValueError:
        raise ValueError(f"--annotations takes 'all' or numbers, not {' '.join(words)!r}") from None


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--source-split-dir", type=Path, required=True, help="folder with episode_*.npz")
    made.add_argument("--output-dir", type=Path, required=True, help="folder to write; made if missing")
    made.add_argument("--annotations", nargs="+", default=["all"], metavar="N", help="'all' (default) or numbers")
    place = made.add_mutually_exclusive_group()
    place.add_argument("--absolute", action="store_true", help="write absolute frame paths")
    place.add_argument("--copy-frames", action="store_true", help="copy the frames into the output folder")
    made.add_argument("--workers", type=int, default=4, help="files read at the same time (default 4)")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    placement: Placement = "copy" if options.copy_frames else "absolute" if options.absolute else "relative"
    try:
        split = CalvinSplit(options.source_split_dir)
        windows = chosen(split.annotations, _choice(options.annotations))
        summary = write_processed(split, windows, options.output_dir, placement, options.workers)
    except (ValueError, OSError) as error:
        print(f"process_calvin: {error}", file=sys.stderr)
        return 2
    print(describe(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Raw CALVIN split -> processed split: one episode per language annotation, listed in ``dataset_info.json``.

python preprocess_data/process_calvin.py --source-split-dir /path/to/task_D_D/training --output-dir data/D_training
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from common.arguments import path_argument, real, whole
from common.command import run_command
from preprocess_data.formats.calvin_frames import Actions, finish, read_actions, windows_without
from preprocess_data.formats.calvin_select import Choice, source_splits
from preprocess_data.formats.verify import verify
from preprocess_data.jobs.resume import output_folder
from preprocess_data.jobs.verify_cli import summarise
from training.data.calvin import Annotation, CalvinSplit
from training.data.checks.dataset import ActionChecks, Finding, require
from training.data.dataset_spec import read_contract, write_contract
from training.data.episode_index import INDEX_NAME, MIN_INDEXED, Episode, Frame, build_index, write_index
from training.future_view_prediction_w_action_dataset import CAMERAS

Placement = Literal["relative", "absolute", "copy"]
Ids = npt.NDArray[np.int64]

DESCRIPTION = """\
Make a processed split, which training reads, out of a raw CALVIN split (task_D_D/training, the debug data set, the zip
it was downloaded as, or what the embedded desk records): a folder with dataset_info.json, in which every language
annotation is one episode with its instruction, the files of its frames (first to last, both included) and their
relative and absolute actions; and beside it dataset_info.index, from which training starts in no time.
Killed, it goes on where it was when started again."""

EPILOG = """\
examples:
  process_calvin.py --source-split-dir calvin/task_D_D/training --output-dir data/task_D_D_training
      all annotations; the frames stay where they are, and are found relative to the output folder:
      move both folders together
  process_calvin.py --source-split-dir task_D_D.zip --output-dir data/task_D_D
      training and validation out of the download, which is not unpacked: training reads its frames inside the zip
      (one split: --split validation, or task_D_D.zip/task_D_D/validation)
  process_calvin.py ... --copy-frames
      a folder that can be moved anywhere by itself (as large as the frames it names)
  process_calvin.py ... --tasks open_drawer close_drawer --fraction 0.1
  process_calvin.py ... --instruction "blue block" --count 200
  process_calvin.py ... --annotations 0 1 2 3
      only some annotations: by task, by words, a share, a number, or counted from 0 in the order of auto_lang_ann.npy
  process_calvin.py --verify calvin/task_D_D/training [--full] [--report problems.json]
      is every frame there and whole? of a raw split (folder or zip) or a processed one; exit code 1 if not
  process_calvin.py --summary data/task_D_D_training [--sheet summary.png]
      what a processed split holds, as text and as an image

then train with dataset.params.train_pre_shards_path_or_url=<output folder>"""


@dataclass(frozen=True)
class Summary:
    """What was written."""

    path: Path
    episodes: int
    frames: int  # listed; annotations overlap, so a file may be listed more than once
    files: int  # distinct
    instructions: int  # distinct
    left_out: tuple[str, ...] = ()  # windows with a bad frame, and why; none unless asked for
    notes: tuple[str, ...] = ()  # what is doubtful about the actions


def write_processed(
    split: CalvinSplit,
    annotations: Sequence[Annotation],
    output_dir: Path,
    placement: Placement = "relative",
    workers: int = 4,
    progress: bool = True,
    skip_bad: bool = False,
) -> Summary:
    """Write ``annotations`` of ``split`` as a processed split under ``output_dir``; each frame file is read once.

    ``placement``: how frames are named: relative to ``output_dir``, by absolute path, or copied into it.
    ``skip_bad``: leave out windows with a missing, damaged or contradictory frame, and those that go from one recording
    into another, and list them; otherwise the first one raises
    ValueError or FileNotFoundError naming it, and no dataset_info.json is left behind (an older one stays as it was).
    """
    annotations, crossing = _within_recordings(split, annotations, skip_bad)
    if not annotations:
        raise ValueError(f"{split.path} gives no annotated window to process")
    with output_folder(output_dir, "process_calvin"):
        return _write_processed(split, annotations, crossing, output_dir, placement, workers, progress, skip_bad)


def _write_processed(
    split: CalvinSplit,
    annotations: Sequence[Annotation],
    crossing: tuple[str, ...],
    output_dir: Path,
    placement: Placement,
    workers: int,
    progress: bool,
    skip_bad: bool,
) -> Summary:
    action = read_contract(split.path).action
    ids = _frames_of(annotations)
    name = _namer(split, output_dir, placement)
    copies = output_dir / "frames" if placement == "copy" else None
    read = read_actions(split, ids, output_dir, copies, workers, progress, skip_bad, action)
    good = windows_without(read.bad, ((window.start, window.end) for window in annotations))
    kept = [window for window, whole in zip(annotations, good, strict=True) if whole]
    left_out = crossing + tuple(
        f"frames {window.start} to {window.end}, {window.instruction!r}: {read.bad[_first_bad(window, read.bad)]}"
        for window, whole in zip(annotations, good, strict=True)
        if not whole
    )
    if not kept:
        raise ValueError(f"{split.path}: no window is whole; the first: {left_out[0]}")

    def episodes() -> Iterator[Episode]:
        for window in kept:
            first = int(np.searchsorted(ids, window.start))
            rows = range(first, first + len(window.frames))
            frames = [
                Frame(name(int(ids[row])), read.relative[row].tolist(), read.absolute[row].tolist()) for row in rows
            ]
            yield Episode(window.instruction, window.task, frames)

    def declare() -> None:
        """What a raw split declares of its actions (CALVIN's convention, if nothing) goes with them."""
        rows = np.concatenate([np.searchsorted(ids, np.arange(window.start, window.end + 1)) for window in kept])
        write_contract(output_dir, _cameras(split, kept[0].start), action, read.relative[rows])

    notes = tuple(require(_checked(split, ids, read, action)))
    frames = write_index(output_dir, episodes(), before=declare)
    if (output_dir / INDEX_NAME).stat().st_size >= MIN_INDEXED:
        build_index(output_dir, progress)
    finish(output_dir)
    return Summary(
        path=output_dir / INDEX_NAME,
        episodes=len(kept),
        frames=frames,
        files=len(_frames_of(kept)),
        instructions=len({window.instruction for window in kept}),
        left_out=left_out,
        notes=notes,
    )


def _checked(split: CalvinSplit, ids: Ids, read: Actions, action: Mapping[str, Any]) -> Iterator[Finding]:
    """What the frames that are kept contradict together."""
    checks, good = ActionChecks(action), ~np.isin(ids, list(read.bad))
    taken = ids[good]
    begins = np.diff(taken, prepend=taken[0] - 2) != 1
    checks.add(read.relative[good], lambda row: str(split.frame_path(int(taken[row]))), begins)
    return checks.findings()


def _within_recordings(
    split: CalvinSplit, annotations: Sequence[Annotation], skip_bad: bool
) -> tuple[Sequence[Annotation], tuple[str, ...]]:
    """The windows that lie in one stretch of play, and a line for each of the others, or ValueError with the first."""
    crossing = split.crossing(annotations)
    lines = tuple(
        f"frames {window.start} to {window.end}, {window.instruction!r}: they lie in no single stretch of "
        f"{split.path / 'ep_start_end_ids.npy'}, so that later frames are another recording's"
        for window in crossing
    )
    if lines and not skip_bad:
        raise ValueError(
            f"{split.annotation_path}: {lines[0]} ({len(lines)} of {len(annotations)} windows); --skip-bad leaves them "
            "out"
        )
    left = set(crossing)
    return [window for window in annotations if window not in left], lines


def _cameras(split: CalvinSplit, frame: int) -> dict[str, tuple[int, int]]:
    """Height and width of the images of each camera."""
    images = split.frame(frame, CAMERAS)
    return {name: (images[name].shape[0], images[name].shape[1]) for name in CAMERAS}


def _frames_of(windows: Sequence[Annotation]) -> Ids:
    """Ids of the frames that windows name, each once, in order."""
    return np.unique(np.concatenate([np.arange(window.start, window.end + 1) for window in windows]))


def _first_bad(window: Annotation, bad: dict[int, str]) -> int:
    return next(frame for frame in window.frames if frame in bad)


def _namer(split: CalvinSplit, output_dir: Path, placement: Placement) -> Callable[[int], str]:
    if placement == "copy":
        return lambda frame: f"frames/{split.frame_path(frame).name}"
    source = split.path.resolve()
    folder = source if placement == "absolute" else Path(os.path.relpath(source, output_dir.resolve()))
    return lambda frame: (folder / split.frame_path(frame).name).as_posix()


def describe(summary: Summary) -> str:
    return (
        f"{summary.path}: {summary.episodes} episodes, {summary.frames} frames ({summary.files} files), "
        f"{summary.instructions} different instructions"
    )


def _numbers(words: Sequence[str]) -> tuple[int, ...] | None:
    if list(words) == ["all"]:
        return None
    try:
        return tuple(int(word) for word in words)
    except ValueError:
        raise ValueError(f"--annotations takes 'all' or numbers, not {' '.join(words)!r}") from None


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    make = made.add_argument_group("make a processed split")
    make.add_argument(
        "--source-split-dir",
        type=path_argument,
        metavar="PATH",
        help="folder with episode_*.npz, the folder above it, or a zip",
    )
    make.add_argument("--output-dir", type=path_argument, metavar="PATH", help="folder to write; made if missing")
    make.add_argument(
        "--split",
        choices=("training", "validation"),
        help="which one, where the source holds both (default: both, as folders of the output folder)",
    )
    place = make.add_mutually_exclusive_group()
    place.add_argument("--absolute", action="store_true", help="write absolute frame paths")
    place.add_argument("--copy-frames", action="store_true", help="copy the frames into the output folder")
    make.add_argument(
        "--skip-bad", action="store_true", help="leave out bad windows, and list them (default: stop at the first)"
    )
    make.add_argument(
        "--workers",
        type=whole(1),
        default=min(os.cpu_count() or 1, 8),
        help="processes that read (default: cores, at most 8)",
    )
    some = made.add_argument_group("only some annotations")
    some.add_argument("--annotations", nargs="+", default=["all"], metavar="N", help="'all' (default) or numbers")
    some.add_argument("--tasks", nargs="+", default=[], metavar="TASK", help="only these tasks")
    some.add_argument("--instruction", action="append", default=[], metavar="WORDS", help="only where it says this")
    some.add_argument("--fraction", type=real(0, 1, above=0), metavar="F", help="a share of them, drawn")
    some.add_argument("--count", type=int, metavar="N", help="at most so many, drawn")
    some.add_argument("--seed", type=whole(0), default=0, help="of the draw (default 0)")
    look = made.add_argument_group("look at what is there")
    look.add_argument(
        "--verify", type=path_argument, metavar="PATH", help="check a raw or processed split, change nothing"
    )
    look.add_argument("--full", action="store_true", help="with --verify: decode every image too, not only headers")
    look.add_argument("--report", type=path_argument, metavar="JSON", help="with --verify: write all problems here")
    look.add_argument("--summary", type=path_argument, metavar="PATH", help="say what a processed (or raw) split holds")
    look.add_argument("--sheet", type=path_argument, metavar="PNG", help="draw it as well (also after making a split)")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    try:
        if options.verify is not None:
            return verify(options.verify, options.full, options.workers, options.report)
        if options.summary is not None:
            summarise(options.summary, options.sheet)
            return 0
        if options.source_split_dir is None or options.output_dir is None:
            raise ValueError(
                "give --source-split-dir and --output-dir, or --verify or --summary; --help shows examples"
            )
        return _make(options)
    except (ValueError, OSError) as error:
        print(f"process_calvin: {error}", file=sys.stderr)
        return 2


def _make(options: argparse.Namespace) -> int:
    placement: Placement = "copy" if options.copy_frames else "absolute" if options.absolute else "relative"
    choice = Choice(
        numbers=_numbers(options.annotations),
        tasks=tuple(options.tasks),
        phrases=tuple(options.instruction),
        fraction=options.fraction,
        count=options.count,
        seed=options.seed,
    )
    for name, path in source_splits(options.source_split_dir, options.split):
        split, output = CalvinSplit(path), options.output_dir / name
        windows = choice.of(split.annotations)
        summary = write_processed(split, windows, output, placement, options.workers, skip_bad=options.skip_bad)
        for line in summary.left_out:
            print(f"left out: {line}", file=sys.stderr)
        for line in summary.notes:
            print(f"warning: {line}", file=sys.stderr)
        if options.sheet is not None:
            summarise(output, options.sheet.with_stem(f"{options.sheet.stem}_{name}") if name else options.sheet)
        print(describe(summary))
    return 0


if __name__ == "__main__":
    run_command(main)

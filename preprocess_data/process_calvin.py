"""Convert a raw CALVIN split to a processed split, in which each language annotation is an episode.

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

from common.arguments import command_parser, path_argument, real, whole
from common.command import phase_bar, print_next, report_errors, run_command
from preprocess_data.formats.calvin_frames import Actions, finish, read_actions, windows_without
from preprocess_data.formats.calvin_select import Choice, source_splits
from preprocess_data.formats.verify import verify
from preprocess_data.jobs.conversion_cli import output_options, summarise, verify_options
from preprocess_data.jobs.resume import output_folder
from training.data.calvin import Annotation, CalvinSplit
from training.data.checks.dataset import ActionChecks, Finding, require
from training.data.dataset_spec import DataContract, read_contract, write_contract
from training.data.episode_index import INDEX_NAME, MIN_INDEXED, Episode, Frame, build_index, write_index
from training.future_view_prediction_w_action_dataset import CAMERAS

Placement = Literal["relative", "absolute", "copy"]
Ids = npt.NDArray[np.int64]

DESCRIPTION = """\
Make a processed split, which training reads, from a raw CALVIN split (task_D_D/training, the debug data set, the zip
of the download, or a recording of the embedded desk): a folder with dataset_info.json, in which every language
annotation is one episode with its instruction, the files of its frames (first to last, both included), their relative
and absolute actions, the robot's state and, if they were recorded, the expert's actions; and dataset_info.index, from
which training starts immediately. A killed command resumes when started again."""

EPILOG = """\
examples:
  process_calvin.py --source-split-dir calvin/task_D_D/training --output-dir data/task_D_D_training
      all annotations; the frames stay in place, and are found relative to the output folder:
      move both folders together
  process_calvin.py --source-split-dir task_D_D.zip --output-dir data/task_D_D
      training and validation from the download, which is not unpacked: training reads its frames inside the zip
      (one split: --split validation, or task_D_D.zip/task_D_D/validation)
  process_calvin.py ... --copy-frames
      a folder that can be moved on its own (as large as the frames it names)
  process_calvin.py ... --tasks open_drawer close_drawer --fraction 0.1
  process_calvin.py ... --instruction "blue block" --count 200
  process_calvin.py ... --annotations 0 1 2 3
      some annotations: by task, by text, a fraction, a number, or counted from 0 in the order of auto_lang_ann.npy
  process_calvin.py --verify calvin/task_D_D/training [--full] [--report problems.json]
      check that every frame exists and is valid, of a raw split (folder or zip) or a processed one; exit code 1 if not
  process_calvin.py --summary data/task_D_D_training [--sheet summary.png]
      statistics of a processed split, as text and as an image

then train with dataset.params.train_pre_shards_path_or_url=<output folder>"""


@dataclass(frozen=True)
class Summary:
    """Statistics of a written split.

    ``frames``: listed ones (annotations overlap, so that a file may be listed more than once); ``files``,
    ``instructions``: distinct ones; ``left_out``: windows with a bad frame, with the reason; ``notes``: warnings about
    the actions.
    """

    path: Path
    episodes: int
    frames: int
    files: int
    instructions: int
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


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

    ``placement``: frame paths relative to ``output_dir``, absolute, or of copies in it.
    ``skip_bad``: leave out and list windows with a missing, damaged or contradictory frame, and those that cross from
    one recording into another. Otherwise the first one raises ValueError or FileNotFoundError naming it; no
    dataset_info.json is written, and an older one stays.
    """
    annotations, crossing = _within_recordings(split, annotations, skip_bad)
    if not annotations:
        raise ValueError(f"{split.path} gives no annotated window to process")
    with output_folder(output_dir, "process_calvin"):
        contract = read_contract(split.path)
        action = contract.action
        ids = _frames_of(annotations)
        copies = output_dir / "frames" if placement == "copy" else None
        read = read_actions(split, ids, output_dir, copies, workers, progress, skip_bad, action)
        good = windows_without(read.bad, ((window.start, window.end) for window in annotations))
        windows = [window for window, whole in zip(annotations, good, strict=True) if whole]
        left_out = crossing + tuple(
            f"frames {window.start} to {window.end}, {window.instruction!r}: {read.bad[_first_bad(window, read.bad)]}"
            for window, whole in zip(annotations, good, strict=True)
            if not whole
        )
        if not windows:
            raise ValueError(f"{split.path}: no window is whole; the first: {left_out[0]}")
        notes = tuple(require(_check(split, ids, read, action)))
        frames = _write(split, windows, ids, read, output_dir, placement, contract)
        if (output_dir / INDEX_NAME).stat().st_size >= MIN_INDEXED:
            build_index(output_dir, progress)
        finish(output_dir)
    files, instructions = len(_frames_of(windows)), len({window.instruction for window in windows})
    return Summary(output_dir / INDEX_NAME, len(windows), frames, files, instructions, left_out, notes)


def _write(
    split: CalvinSplit,
    windows: Sequence[Annotation],
    ids: Ids,
    read: Actions,
    output_dir: Path,
    placement: Placement,
    contract: DataContract,
) -> int:
    """Write the contract and dataset_info.json; return the number of listed frames."""
    name = _namer(split, output_dir, placement)

    def episodes() -> Iterator[Episode]:
        for window in phase_bar(windows, desc="writing the index", unit="window"):
            first = int(np.searchsorted(ids, window.start))
            rows = range(first, first + len(window.frames))
            frames = [
                Frame(
                    name(int(ids[row])),
                    read.relative[row].tolist(),
                    read.absolute[row].tolist(),
                    state=read.states[row].tolist() or None,
                    expert_action=read.expert[row].tolist() or None,
                )
                for row in rows
            ]
            yield Episode(window.instruction, window.task, frames)

    def declare() -> None:
        """Write the declaration of the raw split (CALVIN's convention by default) as the contract."""
        rows = np.concatenate([np.searchsorted(ids, np.arange(window.start, window.end + 1)) for window in windows])
        write_contract(
            output_dir,
            _cameras(split, windows[0].start),
            contract.action,
            read.relative[rows],
            states=read.states[rows] if read.states.shape[1] else None,
            action_key=contract.action_key,
        )

    return write_index(output_dir, episodes(), before=declare)


def _check(split: CalvinSplit, ids: Ids, read: Actions, action: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield the contradictions of all good frames together."""
    checks = ActionChecks(action)
    good = ~np.isin(ids, list(read.bad))
    frames = ids[good]
    begins = np.diff(frames, prepend=frames[0] - 2) != 1
    checks.add(read.relative[good], lambda row: str(split.frame_path(int(frames[row]))), begins)
    return checks.findings()


def _within_recordings(
    split: CalvinSplit, annotations: Sequence[Annotation], skip_bad: bool
) -> tuple[Sequence[Annotation], tuple[str, ...]]:
    """Return the windows within one stretch of play, and a line for each other one; or raise ValueError with it."""
    crossing = split.crossing(annotations)
    lines = tuple(
        f"frames {window.start} to {window.end}, {window.instruction!r}: they lie in no single stretch of "
        f"{split.path / 'ep_start_end_ids.npy'}, so that later frames are another recording's"
        for window in crossing
    )
    if lines and not skip_bad:
        count = f"{len(lines)} of {len(annotations)} windows"
        raise ValueError(f"{split.annotation_path}: {lines[0]} ({count}); --skip-bad leaves them out")
    excluded = set(crossing)
    return [window for window in annotations if window not in excluded], lines


def _cameras(split: CalvinSplit, frame: int) -> dict[str, tuple[int, int]]:
    """Return height and width of each camera's images."""
    images = split.frame(frame, CAMERAS)
    return {name: (images[name].shape[0], images[name].shape[1]) for name in CAMERAS}


def _frames_of(windows: Sequence[Annotation]) -> Ids:
    """Return the ids of the frames in windows, each once, in order."""
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
    """Return a summary in one line."""
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
    made = command_parser(DESCRIPTION, EPILOG)
    make = made.add_argument_group("make a processed split")
    source = "folder with episode_*.npz, the folder above it, or a zip"
    make.add_argument("--source-split-dir", type=path_argument, metavar="PATH", help=source)
    which = "split of a source that has both (default: both, as folders of the output folder)"
    make.add_argument("--split", choices=("training", "validation"), help=which)
    placement = make.add_mutually_exclusive_group()
    placement.add_argument("--absolute", action="store_true", help="write absolute frame paths")
    placement.add_argument("--copy-frames", action="store_true", help="copy the frames into the output folder")
    output_options(make, "windows")
    add = made.add_argument_group("only some annotations").add_argument
    add("--annotations", nargs="+", default=["all"], metavar="N", help="'all' (default) or numbers")
    add("--tasks", nargs="+", default=[], metavar="TASK", help="only these tasks")
    add("--instruction", action="append", default=[], metavar="WORDS", help="only instructions with this text")
    add("--fraction", type=real(0, 1, above=0), metavar="F", help="a random fraction of them")
    add("--count", type=int, metavar="N", help="at most that many, drawn at random")
    add("--seed", type=whole(0), default=0, help="seed of the draw (default 0)")
    inspect = verify_options(made, "a raw")
    inspect.add_argument("--full", action="store_true", help="with --verify: decode images too, not only headers")
    return made


@report_errors("process_calvin")
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    if options.verify is not None:
        return verify(options.verify, options.full, options.workers, options.report)
    if options.summary is not None:
        summarise(options.summary, options.sheet)
        return 0
    if options.source_split_dir is None or options.output_dir is None:
        raise ValueError("give --source-split-dir and --output-dir, or --verify or --summary; --help shows examples")
    return _make(options)


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
    print_next(
        "blockdiff-vla inspect {folder}, then tokenize --data {folder} (optional) and train", folder=summary.path.parent
    )
    return 0


if __name__ == "__main__":
    run_command(main)

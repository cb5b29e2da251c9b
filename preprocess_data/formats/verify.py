"""Verify raw and processed splits: list every problem with its file, without changing anything."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from common.command import progress_bar
from common.constants import CAMERAS, action_layout
from common.files import write_json
from preprocess_data.jobs.workers import in_processes
from training.data.caches.token_cache import FOLDER, find_replaced, processed_digest
from training.data.calvin import CalvinSplit, is_split, is_within, splits_in
from training.data.checks.dataset import TOLERANCE, row_faults
from training.data.episode_index import INDEX_NAME, ProcessedIndex, read_index
from training.data.formats import zip_reader
from training.data.formats.shards import read_plan
from training.data.readers import IMAGE_SUFFIXES, npz_shapes, read_image, read_npz

if TYPE_CHECKING:
    from training.data.dataset_spec import DataContract

SHOWN = 8
"""Problems of a kind that are printed."""
PART = 512
"""Files of a job."""
_VECTORS = {"actions": 7, "rel_actions": 7, "robot_obs": 15, "scene_obs": 24, "expert_actions": 7}
_Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Problem:
    """A problem of one file. ``kind``: "missing frame", "damaged frame", "wrong shape", "annotation", "split", ..."""

    kind: str
    file: str
    what: str


@dataclass
class Report:
    """The result of a verification. ``full``: whether images were decoded too."""

    path: Path
    full: bool
    files: int = 0
    windows: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, kind: str, file: Path | str, what: str) -> None:
        """Add a problem."""
        self.problems.append(Problem(kind, str(file), what))

    def text(self) -> str:
        """Return the report for a terminal."""
        kinds: dict[str, list[Problem]] = {}
        for problem in self.problems:
            kinds.setdefault(problem.kind, []).append(problem)
        lines = [f"note: {note}" for note in self.notes]
        for kind, problems in kinds.items():
            lines.append(f"{kind}: {len(problems)}")
            lines += [f"  {problem.file}: {problem.what}" for problem in problems[:SHOWN]]
            lines += [f"  ... and {len(problems) - SHOWN} more (--report lists all)"] if len(problems) > SHOWN else []
        how = "decoded whole" if self.full else "headers and actions read; --full decodes the images too"
        verdict = f"{len(self.problems)} problems" if self.problems else "no problem found"
        return "\n".join([*lines, f"{self.path}: {self.files} files ({how}), {self.windows} windows: {verdict}"])


def verify(path: Path, full: bool, workers: int, report_file: Path | None, progress: bool = True) -> int:
    """Verify the data at ``path``, print the reports, and return the exit code: 1 if there is a problem.

    ``path``: a processed split, a raw one, or a folder or zip of raw ones.
    Raises ValueError or FileNotFoundError if it is none of these.
    """
    if (path / INDEX_NAME).is_file():
        reports = [verify_processed(path, full, workers, progress)]
    elif is_split(path):
        reports = [verify_raw(CalvinSplit(path), full, workers, progress)]
    else:
        below = splits_in(path)
        if not below:
            raise ValueError(f"{path} holds neither {INDEX_NAME} nor episode_*.npz, so there is nothing to verify")
        # Both splits of a download, raw or as process_calvin.py makes them of it.
        reports = [
            verify_processed(path / name, full, workers, progress)
            if (path / name / INDEX_NAME).is_file()
            else verify_raw(CalvinSplit(path / name), full, workers, progress)
            for name in below
        ]
    return print_reports(reports, report_file)


def print_reports(reports: Sequence[Report], report_file: Path | None) -> int:
    """Print the reports, write all problems to ``report_file``, and return the exit code: 1 if there is a problem."""
    for report in reports:
        print(report.text())
    if report_file is not None:
        content = [asdict(problem) for report in reports for problem in report.problems]
        write_json(report_file, content, indent=1)
        print(f"all problems: {report_file}")
    return 1 if any(report.problems for report in reports) else 0


def verify_raw(split: CalvinSplit, full: bool = False, workers: int = 1, progress: bool = True) -> Report:
    """Return the problems of a raw split."""
    report = Report(split.path, full)
    try:
        ids = split.frame_ids
    except ValueError as error:
        report.add("split", split.path, str(error))
        return report
    report.files = len(ids)
    ranges = _ranges(split, ids, report)
    missing = _missing(split, ids, ranges, report)
    _windows(split, ids, ranges, missing, report)
    paths = [split.frame_path(int(i)) for i in ids]
    action = _contract(split.path, report).action
    _frames(paths, _Rules(_first_shapes(paths), full, action), workers, progress, report)
    return report


def verify_processed(root: Path, full: bool = False, workers: int = 1, progress: bool = True) -> Report:
    """Return the problems of a processed split."""
    report = Report(root, full)
    try:
        index = read_index(root)
    except (ValueError, FileNotFoundError) as error:
        report.add("split", root / INDEX_NAME, str(error))
        return report
    report.windows = index.episodes
    _processed_findings(index, _contract(root, report), report)
    _token_caches(root, index, report)
    named = (index.frames[i] for i in range(len(index)))
    hands = (index.gripper_frames[i] for i in range(len(index.gripper_frames)))
    paths = [index.base / name for name in dict.fromkeys([*named, *hands])]
    report.files = len(paths)
    existing = [path for path in paths if zip_reader.is_file(path)]
    for path in set(paths) - set(existing) if len(existing) < len(paths) else ():
        report.add("missing frame", path, "does not exist")
    _frames(existing, _Rules(_first_shapes(existing), full), workers, progress, report)
    return report


# ----------------------------------------------------------------------------------------------- metadata of a split
def _ranges(split: CalvinSplit, ids: npt.NDArray[np.int64], report: Report) -> npt.NDArray[np.int64] | None:
    try:
        return split.ranges
    except FileNotFoundError:
        report.notes.append(f"{split.path} has no ep_start_end_ids.npy: gaps may be lost frames or ends of recordings")
    except ValueError as error:
        report.add("split", split.path / "ep_start_end_ids.npy", str(error))
    return None


def _missing(
    split: CalvinSplit, ids: npt.NDArray[np.int64], ranges: npt.NDArray[np.int64] | None, report: Report
) -> set[int]:
    """Report and return the frames that lie in the ranges but do not exist."""
    missing: set[int] = set()
    for first, last in ranges.tolist() if ranges is not None else ():
        start, stop = np.searchsorted(ids, [first, last + 1])
        if stop - start != last + 1 - first:
            missing |= set(range(first, last + 1)) - set(ids[start:stop].tolist())
    for frame in sorted(missing):
        report.add("missing frame", split.frame_path(frame), "does not exist, though ep_start_end_ids.npy counts it")
    return missing


def _windows(
    split: CalvinSplit,
    ids: npt.NDArray[np.int64],
    ranges: npt.NDArray[np.int64] | None,
    missing: set[int],
    report: Report,
) -> None:
    try:
        windows = split.annotations
    except FileNotFoundError:
        report.notes.append(f"{split.path} has no language annotations; process_calvin.py needs them")
        return
    except ValueError as error:
        report.add("annotation", split.annotation_path, str(error))
        return
    report.windows = len(windows)
    existing = set(ids.tolist())
    for number, window in enumerate(windows):
        what = f"annotation {number}, {window.instruction!r}, frames {window.start} to {window.end}"
        lost = [frame for frame in window.frames if frame not in existing]
        if ranges is not None and not is_within(ranges, window.start, window.end):
            report.add("annotation", split.annotation_path, f"{what}: out of the bounds of every stretch of play")
        for frame in lost:
            if frame not in missing:
                report.add("missing frame", split.frame_path(frame), f"does not exist, but {what} needs it")


def _contract(root: Path, report: Report) -> DataContract:
    """Return the split's contract; report a fault of it as a problem."""
    from training.data.dataset_spec import DataContract, read_contract  # loads torch, which workers need not

    try:
        return read_contract(root)
    except ValueError as error:
        report.add("contract", root, str(error))
        return DataContract(path=root)


def _processed_findings(index: ProcessedIndex, contract: DataContract, report: Report) -> None:
    """Report what training would refuse, and each action beyond 1, as problems; training's warnings as notes."""
    from training.data.checks.split import check_processed

    try:
        contract = contract.for_actions(index.action_dim)
    except ValueError as error:
        report.add("contract", contract.path or index.path, str(error))
        return
    if contract.action["kind"] != "absolute":
        for start in range(0, len(index), 1 << 20):
            actions = index.actions[start : start + (1 << 20)]
            motion = actions[:, list(action_layout(contract.action).motion)]
            for row in np.flatnonzero((np.abs(motion) > 1 + TOLERANCE).any(axis=1)).tolist():
                values = np.array2string(actions[row], precision=3)
                report.add("action out of range", index.frame_path(start + row), f"rel_action {values} passes 1")
    checked = check_processed(index, contract)
    report.notes.append(checked.about)
    for finding in checked.findings:
        if finding.gross or finding.kind == "statistics":
            report.add(finding.kind, finding.where, finding.what)
        else:
            report.notes.append(f"doubtful: {finding}")


def _token_caches(root: Path, index: ProcessedIndex, report: Report) -> None:
    """Report token caches that were made from other data."""
    for folder in sorted((root / FOLDER).glob("*/")):
        plan = read_plan(folder)
        if plan is None or plan.about.get("kind") != "tokens":
            continue
        other = find_replaced(plan.about["probes"], root)
        if plan.about["data"] != processed_digest(index):
            report.add("token cache", folder, "was made of another dataset_info.json; make it again")
        elif other is not None:
            report.add("token cache", folder, f"was made of other images than lie there now (such as {other})")


# ----------------------------------------------------------------------------------------------------- files of frames
def _first_shapes(paths: Sequence[Path]) -> _Shapes:
    """Return the shapes of the images in the first readable frame, which the other frames should have too."""
    for path in paths[:20]:
        if path.suffix == ".npz":
            try:
                return {key: shape for key, (shape, _) in npz_shapes(path).items() if key in CAMERAS}
            except (ValueError, FileNotFoundError):
                continue
    return {}


@dataclass(frozen=True)
class _Rules:
    """How frames are checked.

    ``expected``: shapes of the cameras; ``full``: decompress everything; ``action``: declaration of a raw split's
    actions, None for a processed split, of whose frames only the images are read.
    """

    expected: _Shapes
    full: bool
    action: Mapping[str, Any] | None = None


def _frames(paths: Sequence[Path], rules: _Rules, workers: int, progress: bool, report: Report) -> None:
    parts = [(paths[start : start + PART], rules) for start in range(0, len(paths), PART)]
    with progress_bar(desc="frames", total=len(paths), unit="frame", disable=not progress) as bar:
        for part, problems in zip(
            parts, in_processes(_check_part, parts, workers if len(parts) > 4 else 1), strict=True
        ):
            report.problems += problems
            bar.update(len(part[0]))
    sys.stderr.flush()


def _check_part(part: tuple[Sequence[Path], _Rules]) -> list[Problem]:
    paths, rules = part
    return [problem for path in paths for problem in check_frame(path, rules)]


def check_frame(path: Path, rules: _Rules) -> Iterator[Problem]:
    """Yield the problems of one frame's file."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        yield from _check_image(path)
        return
    try:
        shapes = npz_shapes(path)
        needed = _VECTORS if rules.action is not None else {}
        keys = list(shapes) if rules.full else [key for key in needed if key in shapes]
        arrays = read_npz(path, [key for key in keys if shapes[key][1].kind != "O"])
    except (ValueError, FileNotFoundError) as error:
        yield Problem("damaged frame", str(path), str(error))
        return
    if "rgb_static" not in shapes:
        yield Problem("wrong shape", str(path), f"has no rgb_static; it has {', '.join(sorted(shapes)) or 'nothing'}")
    for key, shape in rules.expected.items():
        if key not in shapes or shapes[key] != (shape, np.dtype(np.uint8)):
            found = f"{shapes[key][1]} {list(shapes[key][0])}" if key in shapes else "missing"
            yield Problem("wrong shape", str(path), f"{key} is {found}; in the first frame it is uint8 {list(shape)}")
    if rules.action is None:
        return
    if "rel_actions" not in shapes and not {"actions", "robot_obs"} <= set(shapes):
        missing = "rel_actions nor actions and robot_obs to compute them from"
        yield Problem("wrong shape", str(path), f"has neither {missing}")
    for key, size in _VECTORS.items():
        if key in arrays:
            yield from _check_vector(path, key, arrays[key], size, rules.action)


def _check_image(path: Path) -> Iterator[Problem]:
    """Decode an image completely in either mode: truncation cannot be detected otherwise."""
    try:
        read_image(path)
    except (ValueError, FileNotFoundError) as error:
        yield Problem("damaged frame", str(path), str(error))


def _check_vector(
    path: Path, key: str, vector: npt.NDArray[np.float64], size: int, action: Mapping[str, Any]
) -> Iterable[Problem]:
    if vector.dtype.kind != "f" or vector.shape != (size,):
        yield Problem("wrong shape", str(path), f"{key} is {vector.dtype} {list(vector.shape)}, not floats [{size}]")
        return
    if not np.isfinite(vector).all():
        yield Problem("action out of range", str(path), f"{key} holds a number that is not finite")
    elif key in ("rel_actions", "actions", "expert_actions"):
        declared = {**action, "kind": "absolute"} if key == "actions" else action
        for _, what in row_faults(vector[None], declared):
            yield Problem("action out of range", str(path), f"{key} {what}")

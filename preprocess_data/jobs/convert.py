"""Demonstrations of any robot -> processed split: in parallel, and not twice when killed.

A format brings a list of jobs (a few episodes each) and a function that reads one; a finished job lies as a file of
records in ``<output>/.parts`` until all are there. Numbers that the demonstrations hold in metres and radians become
relative actions by one convention, ``Units``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from common.atomic_file import replace_bytes
from preprocess_data.jobs.resume import is_current, output_folder, plan_folder, remove_parts
from preprocess_data.jobs.workers import in_processes
from training.data.checks.dataset import MIN_FRAMES
from training.data.episode_index import INDEX_NAME, MIN_INDEXED, Episode, Frame, build_index, write_index

PARTS = ".parts"
MOST_CLIPPED = 0.5  # share of actions that may pass the units: beyond it they are of other units, or poses
UNCLEAR = 0.02  # share of frames that a gripper's threshold may tell otherwise than the middle of the range
Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]
Job = TypeVar("Job")


@dataclass(frozen=True)
class Units:
    """What a relative action of 1.0 means; larger steps are clipped, and counted."""

    position: float  # metres per step
    rotation: float  # radians per step
    gripper_threshold: float  # the gripper's command is +1 (open) above it, else -1 (closed)
    gripper_inverted: bool = False  # where the recording's larger number is closed

    def __post_init__(self) -> None:
        for name, value in (("--position-unit", self.position), ("--rotation-unit", self.rotation)):
            if not (np.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, is {value}")

    def grip(self, recorded: Floats) -> Floats:
        """Commands -1 or +1 [n] of recorded openings [n]."""
        opened = (recorded > self.gripper_threshold) != self.gripper_inverted
        return np.where(opened, np.float32(1), np.float32(-1))

    def gripper_fault(self, recorded: Floats) -> str | None:
        """Return why the threshold does not tell open from closed in recorded openings [n]; None if it does."""
        low, high = float(recorded.min()), float(recorded.max())
        middle, threshold = (low + high) / 2, self.gripper_threshold
        if high - low < 1e-6:
            return None
        mixed = float(((recorded > threshold) != (recorded > middle)).mean())
        if low <= threshold < high and (mixed <= UNCLEAR or 0.1 <= (threshold - low) / (high - low) <= 0.9):
            return None
        return (
            f"the recorded gripper goes from {low:.4g} to {high:.4g}, and the threshold {threshold:g} (open above it) "
            f"does not tell open from closed; a threshold near {middle:.4g} would"
        )

    def steps(self, poses: Floats, targets: Floats) -> tuple[Floats, Flags]:
        """Relative motions [n, 6] from ``poses`` to ``targets`` (xyz, Euler xyz), and which of the n were clipped.

        Rotation: the difference of the angles, wrapped to [-pi, pi), as CALVIN's relative actions have it.
        """
        difference = targets.astype(np.float64) - poses
        difference[:, 3:] = (difference[:, 3:] + np.pi) % (2 * np.pi) - np.pi
        scaled = difference / np.repeat([self.position, self.rotation], 3)
        clipped: Flags = (np.abs(scaled) > 1).any(axis=1)
        return np.clip(scaled, -1, 1).astype(np.float32), clipped


@dataclass(frozen=True)
class Converted:
    """One episode of n frames, read."""

    instruction: str
    images: Sequence[str]  # n paths, as dataset_info.json has them
    second: Sequence[str]  # n, of the other camera; the same again where the robot has one
    relative: Floats  # [n, 7]
    absolute: Floats  # [n, 7]
    sides: Sequence[tuple[int, int]]  # height and width of the first image of each camera
    clipped: int = 0  # frames
    task: str | None = None
    gripper: Floats | None = None  # [n] as recorded, before the threshold

    def episode(self) -> Episode:
        rows = zip(self.images, self.second, self.relative.tolist(), self.absolute.tolist(), strict=True)
        return Episode(
            self.instruction, self.task, [Frame(one, rel, absolute, other) for one, other, rel, absolute in rows]
        )


@dataclass
class Part:
    """What a job gave. ``left_out``: episodes that are not taken, and why."""

    episodes: list[Converted] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Made:
    """What was written."""

    path: Path
    episodes: int
    frames: int
    instructions: int  # distinct
    clipped: int  # frames
    left_out: tuple[str, ...]

    def text(self) -> str:
        share = f"; {self.clipped} actions ({self.clipped / self.frames:.1%}) were clipped to the units"
        left = f"; {len(self.left_out)} episodes left out" if self.left_out else ""
        return f"{self.path}: {self.episodes} episodes, {self.frames} frames, {self.instructions} different " + (
            f"instructions{share if self.clipped else ''}{left}"
        )


def convert(
    jobs: Sequence[Job],
    read: Callable[[Job], Part],
    sources: Callable[[Job], Iterable[Path]],
    output: Path,
    plan: Mapping[str, Any],
    action: Mapping[str, Any],
    units: Units,
    workers: int,
    progress: bool = True,
    skip_bad: bool = False,
) -> Made:
    """Write what ``read`` makes of all ``jobs`` as a processed split, with its contract.

    Args:
        read: a module's own function; called in ``workers`` processes. What is wrong with an episode it lists under
            ``bad``.
        sources: the files that a job reads; a part of an earlier run is not taken where one was changed since.
        plan: what the result depends on besides the jobs; parts of another plan are not taken up.
        action: what differs from CALVIN's actions, for the contract.
        units: how actions were made, which has to fit what was recorded.
        skip_bad: list bad episodes instead of raising ValueError with the first.
    """
    if not jobs:
        raise ValueError("there is no episode to convert")
    if (output / INDEX_NAME).is_file() and not is_processed(output):
        raise ValueError(f"{output} holds a data set of another format; give another --output-dir")
    with output_folder(output, "a conversion"):
        folder = plan_folder(output / PARTS, {**plan, "jobs": [str(job) for job in jobs]})
        files = [folder / f"part_{number:06d}.json" for number in range(len(jobs))]
        left_out = _read_all(jobs, files, read, sources, workers, progress, skip_bad)
        made = _write(output, files, action, units, left_out, progress)
        remove_parts(output, PARTS)
    return made


def _read_all(
    jobs: Sequence[Job],
    files: Sequence[Path],
    read: Callable[[Job], Part],
    sources: Callable[[Job], Iterable[Path]],
    workers: int,
    progress: bool,
    skip_bad: bool,
) -> list[str]:
    """Have a file for every job; return the episodes that are left out, and why."""
    held = [_held(file) if is_current(file, sources(job)) else None for job, file in zip(jobs, files, strict=True)]
    todo = [(job, file, read) for job, file, have in zip(jobs, files, held, strict=True) if have is None]
    fresh = in_processes(_run, todo, workers if len(todo) >= 2 else 1)
    left_out: list[str] = []
    with tqdm(desc="converting", total=len(jobs), unit="part", disable=not progress) as bar:
        for have in held:
            missed, bad = have if have is not None else next(fresh)
            if bad and not skip_bad:
                raise ValueError(bad[0])
            left_out += missed + bad
            bar.update()
    return left_out


def _run(work: tuple[Any, Path, Callable[[Any], Part]]) -> tuple[list[str], list[str]]:
    job, file, read = work
    part = read(job)
    records = [
        {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in asdict(one).items()}
        for one in part.episodes
    ]
    # A bad episode's part is kept for this run alone: it is read again when somebody has seen to it.
    replace_bytes(file, json.dumps({"episodes": records, "left_out": part.left_out, "bad": part.bad}).encode())
    return part.left_out, part.bad


def _held(file: Path) -> tuple[list[str], list[str]] | None:
    part = json.loads(file.read_text(encoding="utf-8"))
    return None if part["bad"] else (part["left_out"], [])


def _episodes(files: Sequence[Path]) -> Iterator[Converted]:
    for file in files:
        for record in json.loads(file.read_text(encoding="utf-8"))["episodes"]:
            for name in ("relative", "absolute", "gripper"):
                if record.get(name) is not None:
                    record[name] = np.asarray(record[name], dtype=np.float32)
            yield Converted(**record)


def _write(
    output: Path,
    files: Sequence[Path],
    action: Mapping[str, Any],
    units: Units,
    left_out: Sequence[str],
    progress: bool,
) -> Made:
    from training.data.dataset_spec import write_contract  # loads torch, which workers need not

    clipped = episodes = 0
    instructions: set[str] = set()
    sides: Sequence[tuple[int, int]] = ()
    actions: list[Floats] = []
    grippers: list[Floats] = []

    def counted() -> Iterator[Episode]:
        nonlocal clipped, episodes, sides
        for one in _episodes(files):
            clipped += one.clipped
            episodes += 1
            instructions.add(one.instruction)
            sides = sides or one.sides
            actions.append(one.relative)
            grippers.extend([] if one.gripper is None else [one.gripper])
            yield one.episode()

    def declare() -> None:
        total = sum(map(len, actions))
        if total >= MIN_FRAMES and clipped > MOST_CLIPPED * total:
            raise ValueError(
                f"{clipped} of {total} actions pass the units of {units.position:g} m and {units.rotation:g} rad, so "
                "that they would be learned clipped; are they poses, or of other units (see --help)?"
            )
        fault = units.gripper_fault(np.concatenate(grippers)) if grippers else None
        if fault is not None:
            raise ValueError(f"{output}: {fault}")
        # One camera is both views, in the frames and here, or a model that looks through two would be refused.
        write_contract(output, {"rgb_static": sides[0], "rgb_gripper": sides[-1]}, action, np.concatenate(actions))

    if next(_episodes(files), None) is None:
        raise ValueError(f"no episode is left to write; the first: {next(iter(left_out), 'there is none')}")
    # The contract is there first: a folder without one is taken for CALVIN's, which this is not.
    frames = write_index(output, counted(), before=declare)
    if (output / INDEX_NAME).stat().st_size >= MIN_INDEXED:
        build_index(output, progress)
    return Made(output / INDEX_NAME, episodes, frames, len(instructions), clipped, tuple(left_out))


def is_processed(root: Path) -> bool:
    """Is there a dataset_info.json, and is it a list (ours), not an object (TFDS has one, too)?"""
    path = root / INDEX_NAME
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(64).lstrip().startswith(b"[")

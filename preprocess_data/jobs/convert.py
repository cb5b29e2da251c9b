"""Convert demonstrations of any robot to a processed split, in parallel and resumably.

A format provides a list of jobs (a few episodes each) and a function that reads one. A finished job is a file of
records in ``<output>/.parts`` until all are finished. ``Units`` converts metres and radians to relative actions.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from common.command import phase_bar, progress_bar
from common.files import write_bytes
from preprocess_data.jobs.resume import is_current, output_folder, plan_folder, remove_parts, run_missing
from training.data.checks.dataset import MIN_FRAMES
from training.data.episode_index import INDEX_NAME, MIN_INDEXED, Episode, Frame, build_index, write_index

PARTS = ".parts"
MAX_CLIPPED = 0.5
"""Fraction of actions that may exceed the units; more means other units, or poses."""
UNCLEAR = 0.02
"""Fraction of frames that a gripper threshold may classify differently from the middle of the range."""
Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]
Job = TypeVar("Job")


@dataclass(frozen=True)
class Units:
    """Metres and radians per step of a relative action of 1.0; larger steps are clipped and counted.

    A recorded gripper above ``gripper_threshold`` is open (+1), else closed (-1); ``gripper_inverted`` reverses it.
    """

    position: float
    rotation: float
    gripper_threshold: float
    gripper_inverted: bool = False

    def __post_init__(self) -> None:
        for name, value in (("--position-unit", self.position), ("--rotation-unit", self.rotation)):
            if not (np.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, is {value}")

    def grip(self, recorded: Floats) -> Floats:
        """Return the commands -1 or +1 [n] of recorded openings [n]."""
        opened = (recorded > self.gripper_threshold) != self.gripper_inverted
        return np.where(opened, np.float32(1), np.float32(-1))

    def gripper_fault(self, recorded: Floats) -> str | None:
        """Return why the threshold does not separate open from closed in recorded openings [n]; None if it does."""
        low, high = float(recorded.min()), float(recorded.max())
        middle, threshold = (low + high) / 2, self.gripper_threshold
        if high - low < 1e-6:
            return None
        mixed = float(((recorded > threshold) != (recorded > middle)).mean())
        if low <= threshold < high and (mixed <= UNCLEAR or 0.1 <= (threshold - low) / (high - low) <= 0.9):
            return None
        return (
            f"the recorded gripper goes from {low:.4g} to {high:.4g}, and the threshold {threshold:g} (open above it) "
            f"does not separate open from closed; a threshold near {middle:.4g} would"
        )

    def steps(self, poses: Floats, targets: Floats) -> tuple[Floats, Flags]:
        """Return relative motions [n, 6] from ``poses`` to ``targets`` (xyz, Euler xyz), and which ones are clipped.

        Rotations are differences of angles, wrapped to [-pi, pi), as in CALVIN's relative actions.
        """
        difference = targets.astype(np.float64) - poses
        difference[:, 3:] = (difference[:, 3:] + np.pi) % (2 * np.pi) - np.pi
        scaled = difference / np.repeat([self.position, self.rotation], 3)
        clipped: Flags = (np.abs(scaled) > 1).any(axis=1)
        return np.clip(scaled, -1, 1).astype(np.float32), clipped


@dataclass(frozen=True)
class ConvertedEpisode:
    """One episode of n frames.

    ``images``: n paths, as in dataset_info.json; ``second``: those of the other camera (the same if there is one
    camera); ``relative``, ``absolute``: [n, 7]; ``sides``: height and width of the first image of each camera;
    ``clipped``: number of frames; ``gripper`` [n]: as recorded, before the threshold; ``state`` [n, S]: the robot's
    state, None if it is not recorded.
    """

    instruction: str
    images: Sequence[str]
    second: Sequence[str]
    relative: Floats
    absolute: Floats
    sides: Sequence[tuple[int, int]]
    clipped: int = 0
    task: str | None = None
    gripper: Floats | None = None
    state: Floats | None = None

    def episode(self) -> Episode:
        """Return the episode as dataset_info.json lists it."""
        states: Sequence[Any] = [None] * len(self.images) if self.state is None else self.state.tolist()
        rows = zip(self.images, self.second, self.relative.tolist(), self.absolute.tolist(), states, strict=True)
        frames = [
            Frame(image, relative, absolute, second, state=state) for image, second, relative, absolute, state in rows
        ]
        return Episode(self.instruction, self.task, frames)


@dataclass
class JobResult:
    """The result of a job. ``left_out``: episodes that do not meet the options, with the reason; ``bad``: errors."""

    episodes: list[ConvertedEpisode] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Conversion:
    """Statistics of a written split. ``instructions``: distinct ones; ``clipped``: frames."""

    path: Path
    episodes: int
    frames: int
    instructions: int
    clipped: int
    left_out: tuple[str, ...]

    def print(self) -> None:
        """Print the statistics, and the episodes that were left out to stderr."""
        for line in self.left_out:
            print(f"left out: {line}", file=sys.stderr)
        text = (
            f"{self.path}: {self.episodes} episodes, {self.frames} frames, {self.instructions} different instructions"
        )
        if self.clipped:
            text += f"; {self.clipped} actions ({self.clipped / self.frames:.1%}) were clipped to the units"
        if self.left_out:
            text += f"; {len(self.left_out)} episodes left out"
        print(text)


def convert(
    jobs: Sequence[Job],
    read: Callable[[Job], JobResult],
    sources: Callable[[Job], Iterable[Path]],
    output: Path,
    plan: Mapping[str, Any],
    action: Mapping[str, Any],
    units: Units,
    workers: int,
    progress: bool = True,
    skip_bad: bool = False,
    state: Mapping[str, Any] | None = None,
    image_rotation: int = 0,
) -> Conversion:
    """Write the episodes that ``read`` returns for all ``jobs`` as a processed split with its contract.

    Args:
        jobs: One job for each part.
        read: A module-level function, called in ``workers`` processes; it lists unreadable episodes under ``bad``.
        sources: Returns the files that a job reads; a finished part is used only if none has changed since.
        output: The folder to write.
        plan: What the result depends on besides the jobs; parts of another plan are not used.
        action: The declaration of the actions in the contract, as far as it differs from CALVIN's.
        units: The units of the actions, which must fit the recorded values.
        workers: Number of processes.
        progress: Show a progress bar.
        skip_bad: List bad episodes instead of raising ValueError with the first.
        state: The declaration of the robot's state in the contract; None if the episodes have none.
        image_rotation: The declaration of the rotation of the images in the contract, in degrees.
    """
    if not jobs:
        raise ValueError("there is no episode to convert")
    if (output / INDEX_NAME).is_file() and not is_processed(output):
        raise ValueError(f"{output} holds a data set of another format; give another --output-dir")
    with output_folder(output, "a conversion"):
        folder = plan_folder(output / PARTS, {**plan, "state": state, "jobs": [str(job) for job in jobs]})
        files = [folder / f"part_{number:06d}.json" for number in range(len(jobs))]
        left_out = _read_all(jobs, files, read, sources, workers, progress, skip_bad)
        result = _write(output, files, action, units, left_out, progress, state, image_rotation)
        remove_parts(output, PARTS)
    return result


def _read_all(
    jobs: Sequence[Job],
    files: Sequence[Path],
    read: Callable[[Job], JobResult],
    sources: Callable[[Job], Iterable[Path]],
    workers: int,
    progress: bool,
    skip_bad: bool,
) -> list[str]:
    """Write the file of every job; return the episodes that are left out, with the reason."""
    finished = [
        _finished(file) if is_current(file, sources(job)) else None for job, file in zip(jobs, files, strict=True)
    ]
    work = [(job, file, read) for job, file in zip(jobs, files, strict=True)]
    left_out: list[str] = []
    with progress_bar(desc="converting", total=len(jobs), unit="part", disable=not progress) as bar:
        for skipped, bad in run_missing(_run, work, finished, workers):
            if bad and not skip_bad:
                raise ValueError(bad[0])
            left_out += skipped + bad
            bar.update()
    return left_out


def _run(work: tuple[Any, Path, Callable[[Any], JobResult]]) -> tuple[list[str], list[str]]:
    job, file, read = work
    # The part of a bad episode is used in this run only: it is read again after the episode is repaired.
    content = asdict(read(job))
    write_bytes(file, json.dumps(content, default=np.ndarray.tolist).encode())
    return content["left_out"], content["bad"]


def _finished(file: Path) -> tuple[list[str], list[str]] | None:
    part = json.loads(file.read_text(encoding="utf-8"))
    return None if part["bad"] else (part["left_out"], [])


def _episodes(files: Iterable[Path]) -> Iterator[ConvertedEpisode]:
    for file in files:
        for record in json.loads(file.read_text(encoding="utf-8"))["episodes"]:
            for name in ("relative", "absolute", "gripper", "state"):
                if record.get(name) is not None:
                    record[name] = np.asarray(record[name], dtype=np.float32)
            yield ConvertedEpisode(**record)


def _write(
    output: Path,
    files: Sequence[Path],
    action: Mapping[str, Any],
    units: Units,
    left_out: Sequence[str],
    progress: bool,
    state: Mapping[str, Any] | None,
    image_rotation: int,
) -> Conversion:
    from training.data.dataset_spec import write_contract  # loads torch, which workers do not need

    clipped = episodes = 0
    instructions: set[str] = set()
    sides: Sequence[tuple[int, int]] = ()
    actions: list[Floats] = []
    grippers: list[Floats] = []
    states: list[Floats] = []

    def counted() -> Iterator[Episode]:
        nonlocal clipped, episodes, sides
        for one in _episodes(phase_bar(files, desc="writing the index", unit="part", disable=not progress)):
            clipped += one.clipped
            episodes += 1
            instructions.add(one.instruction)
            sides = sides or one.sides
            actions.append(one.relative)
            grippers.extend([] if one.gripper is None else [one.gripper])
            states.extend([] if one.state is None else [one.state])
            yield one.episode()

    def declare() -> None:
        total = sum(map(len, actions))
        if total >= MIN_FRAMES and clipped > MAX_CLIPPED * total:
            raise ValueError(
                f"{clipped} of {total} actions pass the units of {units.position:g} m and {units.rotation:g} rad, so "
                "that they would be learned clipped; are they poses, or of other units (see --help)?"
            )
        fault = units.gripper_fault(np.concatenate(grippers)) if grippers else None
        if fault is not None:
            raise ValueError(f"{output}: {fault}")
        # A single camera is declared as both views, because a model of two views would refuse the split otherwise.
        cameras = {"rgb_static": sides[0], "rgb_gripper": sides[-1]}
        measured = np.concatenate(states) if states else None
        relative = np.concatenate(actions)
        write_contract(output, cameras, action, relative, state=state, states=measured, image_rotation=image_rotation)

    if next(_episodes(files), None) is None:
        raise ValueError(f"no episode is left to write; the first: {next(iter(left_out), 'there is none')}")
    # The contract is written first, because a folder without one is assumed to be CALVIN's.
    frames = write_index(output, counted(), before=declare)
    if (output / INDEX_NAME).stat().st_size >= MIN_INDEXED:
        build_index(output, progress)
    return Conversion(output / INDEX_NAME, episodes, frames, len(instructions), clipped, tuple(left_out))


def is_processed(root: Path) -> bool:
    """Return whether there is a dataset_info.json that is a list (ours), not an object (TFDS's)."""
    path = root / INDEX_NAME
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(64).lstrip().startswith(b"[")

"""LeRobot data set (v2.1 or v3.0) -> processed split, listed in ``dataset_info.json``.

python preprocess_data/process_lerobot.py --source lerobot/my_robot --output-dir data/my_robot
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.arguments import path_argument, real, whole
from common.command import run_command
from preprocess_data.formats.lerobot import INFO, LerobotData, Place, libraries
from preprocess_data.formats.lerobot_names import AXES, columns_by_name, static_camera
from preprocess_data.formats.verify import Report
from preprocess_data.jobs.convert import Converted, Flags, Floats, Made, Part, Units, convert
from preprocess_data.jobs.verify_cli import add_options, looked
from training.data.checks.dataset import MIN_FRAMES, SMOOTH, ActionChecks, require
from training.data.dataset_spec import CONTRACT_NAME, read_contract

EPISODES = 8  # that a worker reads at once
SAMPLED = 32  # episodes whose actions are checked before anything is unpacked

DESCRIPTION = """\
Make a processed split, which training reads, out of a LeRobot data set, v2.1 or v3.0, without lerobot (pyarrow and
PyAV: pip install -r requirements-lerobot.txt). Its images are unpacked. Actions, by --actions:
  relative  the column holds relative actions in [-1, 1] already (x y z, rotation, gripper), as CALVIN's; they are
            taken as they are, and more than 1 is clipped and counted
  absolute  the column holds target poses (xyz in metres, Euler xyz in radians, gripper); the relative action of a
            moment is (target - pose) / unit, the pose being the first 6 numbers of --state-key; clipped to [-1, 1]
The gripper becomes +1 (open) above --gripper-threshold, else -1 (closed). Joint angles are no such actions: convert
them first. What export_lerobot.py wrote comes back as it was: its annotated windows are the episodes.
Killed, it goes on where it was when started again."""

EPILOG = """\
examples:
  process_lerobot.py --source my_robot --output-dir data/my_robot --camera observation.images.top
  process_lerobot.py ... --second-camera observation.images.wrist
      the second view from another camera; without it, one camera serves as both views
  process_lerobot.py ... --actions absolute --gripper-threshold 0.5 --position-unit 0.05 --rotation-unit 0.25
  process_lerobot.py --verify my_robot [--report problems.json]
      read every episode, decode every image; also of a processed split; exit code 1 if something is wrong

then train with dataset.params.train_pre_shards_path_or_url=<output folder>"""


@dataclass(frozen=True)
class Settings:
    output: Path
    cameras: tuple[str, ...]
    units: Units
    absolute: bool = False
    action_key: str = "action"
    state_key: str = "observation.state"
    png: bool = False
    instruction: str = ""  # for episodes whose task is empty


@dataclass(frozen=True)
class Work:
    root: Path
    episodes: tuple[int, ...]  # places in the list
    settings: Settings


def read_work(work: Work) -> Part:
    part = Part()
    data = LerobotData(work.root)
    for place in (data.episodes[number] for number in work.episodes):
        try:
            episodes, left_out = _converted(data, place, work.settings)
            part.episodes += episodes
            part.left_out += left_out
        except (ValueError, FileNotFoundError) as error:
            part.bad.append(str(error))
    return part


def actions_of(data: LerobotData, place: Place, settings: Settings) -> tuple[Floats, Floats, Flags]:
    """(relative [n, 7], absolute [n, 7], clipped [n]) of an episode."""
    held = recorded_actions(data, place, settings)
    grip = settings.units.grip(held[:, 6])[:, None]
    if settings.absolute:
        poses = _named(data, place, settings.state_key, AXES[:6])[:, :6]
        motion, clipped = settings.units.steps(poses, held[:, :6])
        return np.concatenate([motion, grip], axis=1), np.concatenate([held[:, :6], grip], axis=1), clipped
    motion = np.clip(held[:, :6], -1, 1)
    clipped = (motion != held[:, :6]).any(axis=1)
    relative = np.concatenate([motion, grip], axis=1)
    return relative, relative, clipped


def recorded_actions(data: LerobotData, place: Place, settings: Settings) -> Floats:
    """The actions [n, 7] of an episode as recorded, in the order x y z, roll pitch yaw, gripper."""
    held = _named(data, place, settings.action_key, AXES)
    if held.shape[1] != 7:
        raise ValueError(
            f"{data.root}: {settings.action_key} has {held.shape[1]} numbers, but 7 are needed (xyz, rotation, "
            "gripper); convert them first, docs/extending.md shows how"
        )
    return held


def _named(data: LerobotData, place: Place, key: str, axes: tuple[str, ...]) -> Floats:
    """A column of an episode; where its numbers have names, those of ``axes`` alone, by name."""
    columns = columns_by_name(data.features.get(key, {}), axes, f"{data.root}: {key}")
    held = data.numbers(place, key, len(axes))
    return held if columns is None else held[:, columns]


def check_source(data: LerobotData, settings: Settings) -> list[str]:
    """Compare the actions of some episodes with what the options say of them, before anything is unpacked.

    Returns lines to print. Raises ValueError for a contradiction, naming the option.
    """
    places = [data.episodes[at] for at in np.unique(np.linspace(0, len(data.episodes) - 1, SAMPLED).astype(int))]
    units = settings.units
    checks = ActionChecks(
        {
            "kind": "absolute" if settings.absolute else "relative",
            "position_m_per_unit": 1.0 if settings.absolute else units.position,
            "rotation_rad_per_unit": 1.0 if settings.absolute else units.rotation,
            "gripper": "as recorded",
        }
    )
    grippers, follows = [], []
    for place in places:
        held = recorded_actions(data, place, settings)
        checks.add(held, partial(_where, place))
        grippers.append(held[:, 6])
        if settings.state_key in data.features and not settings.absolute:
            follows.append(_follows(held, data.numbers(place, settings.state_key, 1)))
    try:
        lines = [f"warning: {line}" for line in require(checks.findings())]
    except ValueError as error:
        raise ValueError(str(error) if settings.absolute else f"{error}; --actions absolute converts poses") from None
    fault = units.gripper_fault(np.concatenate(grippers))
    if fault is not None:
        raise ValueError(f"{data.root}: {settings.action_key}: {fault} (--gripper-threshold)")
    if follows and all(follows):
        what = f"{data.root}: {settings.action_key} follows the first numbers of {settings.state_key}, as poses do"
        if checks.frames >= MIN_FRAMES:
            raise ValueError(f"{what}; convert them by --actions absolute")
        lines.append(f"warning: {what}; --actions absolute converts poses")
    return [*lines, f"checked the actions of {checks.frames} frames in {len(places)} of {len(data.episodes)} episodes"]


def _where(place: Place, row: int) -> str:
    return f"{place.table}: episode {place.number}, frame {row}"


def _follows(actions: Floats, state: Floats) -> bool:
    """Are the positions of actions those of the state, give or take a step?"""
    if state.shape[1] < 3:
        return False
    apart = np.abs(actions[:, :3] - state[:, :3]).max(axis=1)
    return bool(np.median(apart) < SMOOTH < np.median(np.abs(actions[:, :3]).max(axis=1)) / 2)


def _converted(data: LerobotData, place: Place, settings: Settings) -> tuple[list[Converted], list[str]]:
    """The episodes that a recorded one makes, and why others are left out."""
    relative, absolute, clipped = actions_of(data, place, settings)
    gripper = recorded_actions(data, place, settings)[:, 6]
    data.stamps(place)  # the rate that the contract declares
    spoken = data.rows(place, ["task_index"])["task_index"]
    images: list[list[str]] = []
    sides: list[tuple[int, int]] = []
    for camera in settings.cameras:
        names = []
        for number, image in enumerate(data.images(place, camera)):
            if not number:
                sides.append((image.shape[0], image.shape[1]))
            name = Path("frames", f"e{place.number:06d}", camera, f"{number:06d}.{'png' if settings.png else 'jpg'}")
            (settings.output / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(settings.output / name, quality=95)  # of JPEG; PNG has none
            names.append(name.as_posix())
        images.append(names)

    def cut(first: int, end: int, instruction: str, task: str | None) -> Converted:
        return Converted(
            instruction,
            images[0][first:end],
            images[-1][first:end],
            relative[first:end],
            absolute[first:end],
            sides,
            int(clipped[first:end].sum()),
            task,
            gripper[first:end],
        )

    if data.windows is not None:
        found = [
            cut(row["from_frame"], row["to_frame"], row["instruction"], row["task"])
            for row in data.windows
            if row["episode_index"] == place.number
        ]
        return _instructed(found, place, settings)
    if not all(isinstance(number, int) and number in data.tasks for number in spoken):
        raise ValueError(f"{place.table}: episode {place.number} has a task_index that meta/tasks does not know")
    # An episode may change its task on the way: each stretch is an episode of its own.
    edges = [0, *(i for i in range(1, len(spoken)) if spoken[i] != spoken[i - 1]), len(spoken)]
    return _instructed([cut(a, b, data.tasks[spoken[a]], None) for a, b in pairwise(edges)], place, settings)


def _instructed(episodes: Sequence[Converted], place: Place, settings: Settings) -> tuple[list[Converted], list[str]]:
    """Episodes with an instruction, and a line for each of those that have none."""
    named = [one if one.instruction.strip() else replace(one, instruction=settings.instruction) for one in episodes]
    lost = [
        f"{place.table}: episode {place.number} has an empty task (--default-instruction gives it one)"
        for one in named
        if not one.instruction
    ]
    return [one for one in named if one.instruction], lost


def process(source: Path, settings: Settings, workers: int = 1, progress: bool = True, skip_bad: bool = False) -> Made:
    """Write the processed split of a data set. Raises ValueError or FileNotFoundError naming the first bad file."""
    libraries()
    data = LerobotData(source)
    for camera in settings.cameras:
        if camera not in data.cameras:
            raise ValueError(f"{source} has no camera {camera!r}; it has {', '.join(data.cameras) or 'none'}")
    for line in check_source(data, settings):
        print(line, file=sys.stderr)
    numbers = range(len(data.episodes))
    units = settings.units
    told = asdict(settings)
    return convert(
        [Work(source.absolute(), tuple(numbers[at : at + EPISODES]), settings) for at in numbers[::EPISODES]],
        read_work,
        lambda work: [source / INFO, *(file for at in work.episodes for file in data.episodes[at].files)],
        settings.output,
        {"format": "lerobot", "settings": {key: str(value) for key, value in told.items()}},
        {
            "kind": "relative",
            "position_m_per_unit": units.position,
            "rotation_rad_per_unit": units.rotation,
            "rate_hz": data.fps,
        },
        units,
        workers,
        progress,
        skip_bad,
    )


def verify(source: Path) -> Report:
    """Read the tables of every episode and decode every image of every camera."""
    report = Report(source, full=True)
    try:
        data = LerobotData(source)
        places = data.episodes
    except (ValueError, FileNotFoundError) as error:
        report.add("data set", source, str(error))
        return report
    report.windows = len(places)
    for place in places:
        for camera in (None, *data.cameras):
            try:
                if camera is None:
                    data.rows(place, ["task_index", "index"])
                    data.stamps(place)
                else:
                    report.files += sum(1 for _ in data.images(place, camera))
            except (ValueError, FileNotFoundError) as error:
                report.add(f"damaged episode {place.number}", str(error).split(" ")[0].rstrip(":"), str(error))
    return report


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    make = made.add_argument_group("make a processed split")
    make.add_argument("--source", type=path_argument, metavar="PATH", help="folder with meta/info.json")
    make.add_argument("--output-dir", type=path_argument, metavar="PATH", help="folder to write; made if missing")
    make.add_argument("--camera", metavar="KEY", help="the first view (default: the first camera not on the hand)")
    make.add_argument("--second-camera", metavar="KEY", help="the second view (default: the first again)")
    make.add_argument("--actions", choices=("relative", "absolute"), default="relative", help="what --action-key holds")
    make.add_argument("--action-key", default="action", metavar="KEY", help="column of actions (default action)")
    make.add_argument("--state-key", default="observation.state", metavar="KEY", help="with --actions absolute: poses")
    make.add_argument(
        "--position-unit", type=real(above=0), default=0.02, metavar="M", help="metres of 1.0 (default 0.02)"
    )
    make.add_argument("--rotation-unit", type=real(above=0), default=0.05, metavar="RAD", help="of 1.0 (default 0.05)")
    make.add_argument("--gripper-threshold", type=real(), default=0.0, metavar="X", help="open above it (default 0)")
    make.add_argument("--gripper-inverted", action="store_true", help="open below the threshold instead")
    make.add_argument("--png", action="store_true", help="unpack images without loss (default: JPEG, quality 95)")
    make.add_argument("--default-instruction", default="", metavar="TEXT", help="for episodes whose task is empty")
    make.add_argument("--skip-bad", action="store_true", help="leave out bad episodes, and list them")
    make.add_argument("--workers", type=whole(1), default=min(os.cpu_count() or 1, 8), help="processes that read")
    add_options(made, formats="a LeRobot data set")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    try:
        if (code := looked(options, verify)) is not None:
            return code
        settings = _settings(options)
        others = [camera for camera in LerobotData(options.source).cameras if camera not in settings.cameras]
        if others and len(settings.cameras) == 1:
            print(
                f"note: {settings.cameras[0]} alone is both views; --second-camera {others[0]} would be the other",
                file=sys.stderr,
            )
        made = process(options.source, settings, options.workers, skip_bad=options.skip_bad)
    except (ValueError, OSError) as error:
        print(f"process_lerobot: {error}", file=sys.stderr)
        return 2
    for line in made.left_out:
        print(f"left out: {line}", file=sys.stderr)
    print(made.text())
    where = options.output_dir / CONTRACT_NAME
    print(f"its actions are declared as {_told(read_contract(options.output_dir).action)} in {where}")
    print("a LeRobot data set does not say so itself: if that is wrong, give --position-unit and the like, or edit it")
    return 0


def _told(action: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in action.items())


def _settings(options: argparse.Namespace) -> Settings:
    camera = options.camera or static_camera(LerobotData(options.source).cameras)
    return Settings(
        options.output_dir,
        (camera,) if options.second_camera is None else (camera, options.second_camera),
        Units(options.position_unit, options.rotation_unit, options.gripper_threshold, options.gripper_inverted),
        options.actions == "absolute",
        options.action_key,
        options.state_key,
        options.png,
        options.default_instruction.strip(),
    )


if __name__ == "__main__":
    run_command(main)

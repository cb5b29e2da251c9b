"""Convert a LeRobot data set (v2.0 to v3.0) to a processed split, listed in ``dataset_info.json``.

python preprocess_data/process_lerobot.py --source lerobot/my_robot --output-dir data/my_robot
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from common.arguments import real
from common.command import print_next, report_errors, run_command
from preprocess_data.formats.lerobot import INFO, EpisodeLocation, LerobotData, libraries
from preprocess_data.formats.lerobot_names import AXES, columns_by_name, static_camera
from preprocess_data.formats.lerobot_presets import add_convention_options, parse_with_preset
from preprocess_data.formats.lerobot_state import NO_STATE, STATE, StateColumn, parse_groups
from preprocess_data.formats.verify import Report
from preprocess_data.jobs.conversion_cli import conversion_parser, run_verify
from preprocess_data.jobs.convert import Conversion, ConvertedEpisode, Flags, Floats, JobResult, Units, convert
from training.data.checks.dataset import MIN_FRAMES, SMOOTH, ActionChecks, require
from training.data.dataset_spec import CONTRACT_NAME, read_contract

EPISODES = 8
"""Episodes of a job."""
SAMPLED = 32  # episodes whose actions are checked before anything is unpacked

DESCRIPTION = """\
Make a processed split, which training reads, from a LeRobot data set, v2.0 to v3.0, without lerobot (pyarrow and
PyAV: pip install -r requirements-lerobot.txt). Its images are unpacked. Actions, by --actions:
  relative  the column holds relative actions in [-1, 1] (x y z, rotation, gripper), as CALVIN's; they are used as they
            are, and larger ones are clipped and counted
  absolute  the column holds target poses (xyz in metres, Euler xyz in radians, gripper); the relative action of a
            moment is (target - pose) / unit, where the pose is the first 6 numbers of --state-key; clipped to [-1, 1]
The gripper becomes +1 (open) above --gripper-threshold, else -1 (closed). Joint angles are not supported: convert them
first. The column of --state-key is kept as the robot's state (model.vla.proprioception=pose); its names, or
--state-groups, declare position, rotation and gripper. A data set of export_lerobot.py is restored: its annotated
windows are the episodes. A killed command resumes when started again."""

EPILOG = """\
examples:
  process_lerobot.py --source my_robot --output-dir data/my_robot --camera observation.images.top
  process_lerobot.py ... --second-camera observation.images.wrist        (without it, one camera is both views)
  process_lerobot.py ... --keep-videos      (training reads frames of the videos, which must stay where they are)
  process_lerobot.py ... --actions absolute --gripper-threshold 0.5 --position-unit 0.05 --rotation-unit 0.25
  process_lerobot.py ... --state-groups position=0,1,2 rotation=3,4,5 gripper=6
      a state without names: metres, Euler xyz in radians, gripper; --state-key none leaves the state out
  process_lerobot.py --source physical-intelligence/libero --output-dir data/libero --preset libero   (docs/libero.md)
  process_lerobot.py --verify my_robot [--report problems.json]
      read every episode and image, also of a processed split; exit code 1 if there is a problem

then train with dataset.params.train_pre_shards_path_or_url=<output folder>"""


@dataclass(frozen=True)
class Settings:
    """Options of a conversion.

    ``png``: unpack images as PNG, not JPEG; ``keep_videos``: unpack none; ``instruction``: for empty tasks; ``state``:
    column of the robot's state, None without; ``kind``, ``rotation``: of actions; ``image_rotation``: in degrees.
    """

    output: Path
    cameras: tuple[str, ...]
    units: Units
    absolute: bool = False
    action_key: str = "action"
    state_key: str = STATE
    png: bool = False
    instruction: str = ""
    state: StateColumn | None = None
    kind: str = "relative"
    rotation: str = "euler_xyz"
    image_rotation: int = 0
    keep_videos: bool = False


@dataclass(frozen=True)
class Work:
    """Some episodes, by their position in the list."""

    root: Path
    episodes: tuple[int, ...]
    settings: Settings


def read_work(work: Work) -> JobResult:
    """Read some episodes and unpack their images."""
    result = JobResult()
    data = LerobotData(work.root)
    for episode in (data.episodes[number] for number in work.episodes):
        try:
            episodes, left_out = _converted(data, episode, work.settings)
            result.episodes += episodes
            result.left_out += left_out
        except (ValueError, FileNotFoundError) as error:
            result.bad.append(str(error))
    return result


def actions_of(data: LerobotData, episode: EpisodeLocation, settings: Settings) -> tuple[Floats, Floats, Flags]:
    """Return (relative [n, 7], absolute [n, 7], clipped [n]) of an episode."""
    recorded = recorded_actions(data, episode, settings)
    grip = settings.units.grip(recorded[:, 6])[:, None]
    if settings.absolute:
        poses = _axes(data, episode, settings.state_key, AXES[:6])[:, :6]
        motion, clipped = settings.units.steps(poses, recorded[:, :6])
        return np.concatenate([motion, grip], axis=1), np.concatenate([recorded[:, :6], grip], axis=1), clipped
    motion = np.clip(recorded[:, :6], -1, 1)
    clipped = (motion != recorded[:, :6]).any(axis=1)
    relative = np.concatenate([motion, grip], axis=1)
    return relative, relative, clipped


def recorded_actions(data: LerobotData, episode: EpisodeLocation, settings: Settings) -> Floats:
    """Return the recorded actions [n, 7] of an episode, in the order x y z, roll pitch yaw, gripper."""
    if settings.rotation == "euler_xyz":
        recorded = _axes(data, episode, settings.action_key, AXES)
    else:
        recorded = data.numbers(episode, settings.action_key, len(AXES))
    if recorded.shape[1] != 7:
        raise ValueError(
            f"{data.root}: {settings.action_key} has {recorded.shape[1]} numbers, but 7 are needed (xyz, rotation, "
            "gripper); convert them first, docs/extending.md shows how"
        )
    return recorded


def _axes(data: LerobotData, episode: EpisodeLocation, key: str, axes: tuple[str, ...]) -> Floats:
    """Return a column of an episode; only the numbers of ``axes``, in this order, if the numbers have names."""
    columns = columns_by_name(data.features.get(key, {}), axes, f"{data.root}: {key}")
    numbers = data.numbers(episode, key, len(axes))
    return numbers if columns is None else numbers[:, columns]


def check_source(data: LerobotData, settings: Settings) -> list[str]:
    """Check the actions of some episodes against the options, before anything is unpacked.

    Returns lines to print. Raises ValueError for a contradiction, naming the option.
    """
    sampled = np.unique(np.linspace(0, len(data.episodes) - 1, SAMPLED).astype(int))
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
    for episode in (data.episodes[number] for number in sampled):
        recorded = recorded_actions(data, episode, settings)
        checks.add(recorded, partial(_location, episode))
        if settings.state is not None:
            settings.state.check(data, episode)
        grippers.append(recorded[:, 6])
        if settings.state_key in data.features and not settings.absolute:
            follows.append(_follows(recorded, data.numbers(episode, settings.state_key, 1)))
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
    return [*lines, f"checked the actions of {checks.frames} frames in {len(sampled)} of {len(data.episodes)} episodes"]


def _location(episode: EpisodeLocation, row: int) -> str:
    return f"{episode.table}: episode {episode.number}, frame {row}"


def _follows(actions: Floats, state: Floats) -> bool:
    """Return whether the positions of the actions are those of the state within a step."""
    if state.shape[1] < 3:
        return False
    distance = np.abs(actions[:, :3] - state[:, :3]).max(axis=1)
    return bool(np.median(distance) < SMOOTH < np.median(np.abs(actions[:, :3]).max(axis=1)) / 2)


def _converted(
    data: LerobotData, episode: EpisodeLocation, settings: Settings
) -> tuple[list[ConvertedEpisode], list[str]]:
    """Return the episodes that a recorded one contains, and the reasons for leaving out others."""
    relative, absolute, clipped = actions_of(data, episode, settings)
    gripper = recorded_actions(data, episode, settings)[:, 6]
    data.stamps(episode)  # checks the rate that the contract declares
    tasks = data.rows(episode, ["task_index"])["task_index"]
    states = None if settings.state is None else settings.state.read(data, episode)
    images, sides = _unpack(data, episode, settings)

    def cut(first: int, end: int, instruction: str, task: str | None) -> ConvertedEpisode:
        part = slice(first, end)
        return ConvertedEpisode(
            instruction,
            images[0][part],
            images[-1][part],
            relative[part],
            absolute[part],
            sides,
            int(clipped[part].sum()),
            task,
            gripper[part],
            None if states is None else states[part],
        )

    if data.windows is not None:
        found = [
            cut(row["from_frame"], row["to_frame"], row["instruction"], row["task"])
            for row in data.windows
            if row["episode_index"] == episode.number
        ]
        return _with_instructions(found, episode, settings)
    if not all(isinstance(number, int) and number in data.tasks for number in tasks):
        raise ValueError(f"{episode.table}: episode {episode.number} has a task_index that is not in meta/tasks")
    # The task may change within an episode: each stretch of one task is an episode.
    edges = [0, *(i for i in range(1, len(tasks)) if tasks[i] != tasks[i - 1]), len(tasks)]
    found = [cut(start, end, data.tasks[tasks[start]], None) for start, end in pairwise(edges)]
    return _with_instructions(found, episode, settings)


def _unpack(
    data: LerobotData, episode: EpisodeLocation, settings: Settings
) -> tuple[list[list[str]], list[tuple[int, int]]]:
    """Write the images of an episode, or leave them in videos; return paths and (height, width) of each camera."""
    images: list[list[str]] = []
    sides: list[tuple[int, int]] = []
    for camera in settings.cameras:
        if settings.keep_videos:
            height, width, _ = next(data.images(episode, camera)).shape
            images.append(data.frames_in_videos(episode, camera, settings.output))
            sides.append((height, width))
            continue
        names = []
        for number, image in enumerate(data.images(episode, camera)):
            if not number:
                sides.append((image.shape[0], image.shape[1]))
            name = Path("frames", f"e{episode.number:06d}", camera, f"{number:06d}.{'png' if settings.png else 'jpg'}")
            (settings.output / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(settings.output / name, quality=95)  # of JPEG; ignored for PNG
            names.append(name.as_posix())
        images.append(names)
    return images, sides


def _with_instructions(
    episodes: Sequence[ConvertedEpisode], location: EpisodeLocation, settings: Settings
) -> tuple[list[ConvertedEpisode], list[str]]:
    """Return the episodes with an instruction, and a line for each one without."""
    found = [one if one.instruction.strip() else replace(one, instruction=settings.instruction) for one in episodes]
    where = f"{location.table}: episode {location.number}"
    missing = [
        f"{where} has an empty task (--default-instruction gives it one)" for one in found if not one.instruction
    ]
    return [one for one in found if one.instruction], missing


def process(
    source: Path, settings: Settings, workers: int = 1, progress: bool = True, skip_bad: bool = False
) -> Conversion:
    """Write the processed split of a data set. Raise ValueError or FileNotFoundError naming the first bad file."""
    libraries()
    data = LerobotData(source)
    for camera in settings.cameras:
        if camera not in data.cameras:
            raise ValueError(f"{source} has no camera {camera!r}; it has {', '.join(data.cameras) or 'none'}")
    for line in check_source(data, settings):
        print(line, file=sys.stderr)
    numbers, units = range(len(data.episodes)), settings.units
    action = {
        "kind": settings.kind,
        "position_m_per_unit": units.position,
        "rotation_rad_per_unit": units.rotation,
        "rotation": settings.rotation,
        "rate_hz": data.fps,
    }
    plan = {"format": "lerobot", "settings": {key: str(value) for key, value in asdict(settings).items()}}
    work = [Work(source.absolute(), tuple(numbers[i : i + EPISODES]), settings) for i in numbers[::EPISODES]]

    def sources(work: Work) -> list[Path]:
        return [source / INFO, *(file for number in work.episodes for file in data.episodes[number].files)]

    output, state = settings.output, None if settings.state is None else settings.state.declared
    turned = settings.image_rotation
    return convert(work, read_work, sources, output, plan, action, units, workers, progress, skip_bad, state, turned)


def verify(source: Path) -> Report:
    """Read the tables of every episode and decode every image of every camera; return all problems."""
    report = Report(source, full=True)
    try:
        data = LerobotData(source)
        episodes = data.episodes
    except (ValueError, FileNotFoundError) as error:
        report.add("data set", source, str(error))
        return report
    report.windows = len(episodes)
    for episode in episodes:
        for camera in (None, *data.cameras):
            try:
                if camera is None:
                    data.rows(episode, ["task_index", "index"])
                    data.stamps(episode)
                else:
                    report.files += sum(1 for _ in data.images(episode, camera))
            except (ValueError, FileNotFoundError) as error:
                report.add(f"damaged episode {episode.number}", str(error).split(" ")[0].rstrip(":"), str(error))
    return report


def parser() -> argparse.ArgumentParser:
    made, group = conversion_parser(
        DESCRIPTION, EPILOG, "folder with meta/info.json", "a LeRobot data set", units=(0.02, 0.05)
    )
    add = group.add_argument
    add("--camera", metavar="KEY", help="the first view (default: the first camera not on the hand)")
    add("--second-camera", metavar="KEY", help="the second view (default: the first again)")
    add("--actions", choices=("relative", "absolute"), default="relative", help="content of --action-key")
    add("--action-key", default="action", metavar="KEY", help="column of actions (default action)")
    state = f"column of the robot's state (default {STATE}; {NO_STATE}: leave it out); with --actions absolute: poses"
    add("--state-key", default=STATE, metavar="KEY", help=state)
    add(
        "--state-groups",
        nargs="+",
        default=[],
        metavar="GROUP=I,J,K",
        help="indices of position (metres), rotation (Euler xyz, radians) and gripper in the state",
    )
    add("--gripper-threshold", type=real(), default=0.0, metavar="X", help="open above it (default 0)")
    add("--gripper-inverted", action="store_true", help="open below the threshold instead")
    add_convention_options(group)
    add("--png", action="store_true", help="unpack images without loss (default: JPEG, quality 95)")
    add("--keep-videos", action="store_true", help="unpack nothing: training reads single frames of the videos")
    return made


@report_errors("process_lerobot")
def main(argv: Sequence[str] | None = None) -> int:
    options = parse_with_preset(parser(), argv)
    if (code := run_verify(options, verify)) is not None:
        return code
    settings = _settings(options)
    others = [camera for camera in LerobotData(options.source).cameras if camera not in settings.cameras]
    if others and len(settings.cameras) == 1:
        note = f"{settings.cameras[0]} alone is both views; --second-camera {others[0]} would be the other"
        print(f"note: {note}", file=sys.stderr)
    process(options.source, settings, options.workers, skip_bad=options.skip_bad).print()
    contract = read_contract(options.output_dir)
    declared = ", ".join(f"{name} {value}" for name, value in contract.action.items())
    print(f"its actions are declared as {declared} in {options.output_dir / CONTRACT_NAME}")
    print("a LeRobot data set does not declare them: if they are wrong, give --position-unit and the like, or edit it")
    print(f"its state: {settings.state or 'none'}")
    print(f"its images are declared as rotated by {contract.image_rotation} degrees (--image-rotation)")
    print_next(
        "blockdiff-vla inspect {folder}, then tokenize --data {folder} (optional) and train", folder=options.output_dir
    )
    return 0


def _settings(options: argparse.Namespace) -> Settings:
    data, absolute = LerobotData(options.source), options.actions == "absolute"
    camera = options.camera or static_camera(data.cameras)
    if absolute and options.state_key == NO_STATE:
        raise ValueError(f"--state-key {NO_STATE}: --actions absolute computes actions from the poses of that column")
    if absolute and options.action_rotation != "euler_xyz":
        raise ValueError(
            f"--action-rotation {options.action_rotation}: --actions absolute computes differences of angles"
        )
    return Settings(
        options.output_dir,
        (camera,) if options.second_camera is None else (camera, options.second_camera),
        Units(options.position_unit, options.rotation_unit, options.gripper_threshold, options.gripper_inverted),
        absolute,
        options.action_key,
        options.state_key,
        options.png,
        options.default_instruction.strip(),
        StateColumn.of(data, options.state_key, parse_groups(options.state_groups), options.state_rotation),
        options.action_kind,
        options.action_rotation,
        options.image_rotation,
        options.keep_videos,
    )


if __name__ == "__main__":
    run_command(main)

"""BridgeData V2 (raw folders, or RLDS/TFDS files) -> processed split, listed in ``dataset_info.json``.

python preprocess_data/process_bridge.py --source bridge_data_v2 --output-dir data/bridge
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from common.arguments import path_argument, real, whole
from common.command import run_command
from models.processing.image_file import shown_size
from preprocess_data.formats.bridge import (
    LANGUAGE,
    OBSERVATIONS,
    POLICY,
    POSITION_UNIT,
    RATE,
    ROTATION_UNIT,
    ImageSource,
    LeftOut,
    Shard,
    Trajectory,
    find_raw,
    find_rlds,
    read_raw,
    read_shard,
    relative_actions,
    splits_of,
    suffix_of,
)
from preprocess_data.formats.verify import Report
from preprocess_data.jobs.convert import Converted, Made, Part, Units, convert
from preprocess_data.jobs.verify_cli import run_verify, verify_options
from training.data.readers import read_image, read_image_bytes

FOLDERS = 16  # trajectories that a worker reads at once

DESCRIPTION = """\
Make a processed split, which training reads, out of BridgeData V2: its raw folders
(traj_group0/traj0/{images0, obs_dict.pkl, policy_out.pkl, lang.txt}) or its RLDS (TFDS) files, which are read without
TensorFlow. Every trajectory is one episode with its instruction.

Actions are made from the recorded states: the relative action of a moment is the motion to the next state,
  position  (next xyz - xyz) / --position-unit metres,      clipped to [-1, 1]
  rotation  (next Euler xyz - Euler xyz, wrapped) / --rotation-unit radians, clipped to [-1, 1]
  gripper   +1 open, -1 closed: the recorded command over 0.5 (BridgeData: 1 open, 0 closed)
in the robot's base frame, at 5 Hz; the last moment of an episode does not move. How many were clipped is told.
Killed, it goes on where it was when started again."""

EPILOG = """\
examples:
  process_bridge.py --source bridge_data_v2 --output-dir data/bridge
      raw folders; the images stay where they are (--copy-frames: a folder that can be moved by itself)
  process_bridge.py --source bridge_dataset/1.0.0 --split train --output-dir data/bridge
      RLDS files; the images are unpacked as they are (JPEG), which takes as much room again
  process_bridge.py ... --second-camera 1
      the second view from another camera; without it, one camera serves as both views
  process_bridge.py --verify bridge_data_v2 [--report problems.json]
      read everything, decode every image, list what is wrong; also of a processed split; exit code 1 if there is
  process_bridge.py --summary data/bridge [--sheet summary.png]

then train with dataset.params.train_pre_shards_path_or_url=<output folder>"""


@dataclass(frozen=True)
class Settings:
    output: Path
    cameras: tuple[int, ...]
    units: Units
    copy: bool = False
    instruction: str = ""  # for those without one


@dataclass(frozen=True)
class Work:
    """Some raw folders, or one RLDS file."""

    source: tuple[Path, ...] | Shard
    settings: Settings


def read_work(work: Work) -> Part:
    part = Part()
    try:
        for number, found in enumerate(_trajectories(work)):
            try:
                if isinstance(found, ValueError):
                    raise found
                part.episodes.append(_converted(found, work, number))
            except LeftOut as error:
                part.left_out.append(str(error))
            except ValueError as error:
                part.bad.append(str(error))
    except (ValueError, FileNotFoundError) as error:
        part.bad.append(str(error))
    return part


def _trajectories(work: Work) -> Iterator[Trajectory | ValueError]:
    if isinstance(work.source, Shard):
        yield from read_shard(work.source, work.settings.cameras)
        return
    for folder in work.source:
        try:
            yield read_raw(folder, work.settings.cameras)
        except ValueError as error:
            yield error
        except FileNotFoundError as error:
            yield ValueError(str(error))


def _converted(trajectory: Trajectory, work: Work, number: int) -> Converted:
    instruction = trajectory.instruction or work.settings.instruction
    if not instruction:
        raise LeftOut(f"{trajectory.where} has no instruction (--default-instruction gives one)")
    relative, absolute, clipped = relative_actions(trajectory, work.settings.units)
    sides = [size_of(images[0], trajectory.where) for images in trajectory.images]
    names = [
        _placed(images, work, f"e{number:05d}/{camera}")
        for camera, images in zip(work.settings.cameras, trajectory.images, strict=True)
    ]
    count = int(clipped.sum())
    return Converted(instruction, names[0], names[-1], relative, absolute, sides, count, gripper=trajectory.gripper)


def size_of(image: ImageSource, where: str) -> tuple[int, int]:
    """Height and width, from the head of the image."""
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            return shown_size(opened)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        raise ValueError(f"{image if isinstance(image, Path) else where} cannot be opened as an image") from None


def _placed(images: Sequence[ImageSource], work: Work, below: str) -> list[str]:
    """The images' paths for dataset_info.json; those that do not lie in a folder already are written."""
    names: list[str] = []
    output = work.settings.output
    for moment, image in enumerate(images):
        if isinstance(image, Path) and not work.settings.copy:
            names.append(Path(os.path.relpath(image.resolve(), output.resolve())).as_posix())
            continue
        if isinstance(image, Path):
            camera = image.parent
            # Trajectories of one name lie in many folders: all of the path, below the part that all have in common.
            name = Path("frames", *_below(camera), image.name)
        else:
            assert isinstance(work.source, Shard)
            name = Path("frames", work.source.path.name, below, f"{moment:05d}{suffix_of(image, below)}")
        target = output / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(image, Path):
            shutil.copyfile(image, target)
        else:
            target.write_bytes(image)
        names.append(name.as_posix())
    return names


def _below(folder: Path) -> tuple[str, ...]:
    return folder.resolve().parts[1:]


def find_work(source: Path, split: str | None, settings: Settings) -> list[Work]:
    """What there is to read. Raises ValueError or FileNotFoundError saying what is there instead."""
    if not source.is_dir():
        raise FileNotFoundError(f"{source} is not a folder; give BridgeData's raw folders or its RLDS files")
    packed = find_rlds(source)
    if len(packed) > 1:
        raise ValueError(f"{source} holds several data sets; give one of {', '.join(map(str, packed))}")
    if packed:
        splits = splits_of(packed[0])
        if split is not None and split not in splits:
            raise ValueError(f"--split {split}: {packed[0]} has {', '.join(splits)}")
        name = split or ("train" if "train" in splits else next(iter(splits)))
        return [Work(shard, settings) for shard in splits[name]]
    folders = find_raw(source)
    if not folders:
        raise ValueError(f"{source} holds neither obs_dict.pkl (raw trajectories) nor features.json (RLDS files)")
    return [Work(tuple(folders[at : at + FOLDERS]), settings) for at in range(0, len(folders), FOLDERS)]


def _files(work: Work) -> list[Path]:
    """What holds the numbers and words of some trajectories."""
    if isinstance(work.source, Shard):
        return [work.source.path]
    return [folder / name for folder in work.source for name in (OBSERVATIONS, POLICY, LANGUAGE)]


def process(
    source: Path,
    settings: Settings,
    split: str | None = None,
    workers: int = 1,
    progress: bool = True,
    skip_bad: bool = False,
) -> Made:
    """Write the processed split of a source. Raises ValueError or FileNotFoundError naming the first bad file."""
    units = settings.units
    return convert(
        find_work(source, split, settings),
        read_work,
        _files,
        settings.output,
        {"format": "bridge", "settings": {key: str(value) for key, value in asdict(settings).items()}},
        {
            "kind": "relative_to_measured",
            "frame": "robot_base",
            "position_m_per_unit": units.position,
            "rotation_rad_per_unit": units.rotation,
            "rate_hz": RATE,
        },
        units,
        workers,
        progress,
        skip_bad,
    )


def verify(source: Path, cameras: tuple[int, ...], split: str | None = None) -> Report:
    """Read every trajectory and decode every image of a source."""
    report = Report(source, full=True)
    for work in find_work(source, split, Settings(source, cameras, Units(1.0, 1.0, 0.5))):
        try:
            for found in _trajectories(work):
                report.windows += 1
                if isinstance(found, LeftOut):
                    report.notes.append(str(found))
                elif isinstance(found, ValueError):
                    report.add("damaged trajectory", str(found).split(":")[0].split(" ")[0], str(found))
                else:
                    _images(found, report)
        except (ValueError, FileNotFoundError) as error:
            report.add("damaged file", work.source.path if isinstance(work.source, Shard) else source, str(error))
    return report


def _images(trajectory: Trajectory, report: Report) -> None:
    for images in trajectory.images:
        for moment, image in enumerate(images):
            report.files += 1
            name = str(image) if isinstance(image, Path) else f"{trajectory.where}, image {moment}"
            try:
                read_image(image) if isinstance(image, Path) else read_image_bytes(image, name)
            except (ValueError, FileNotFoundError) as error:
                report.add("damaged image", name, str(error).removeprefix(f"{name} "))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    make = made.add_argument_group("make a processed split")
    make.add_argument(
        "--source", type=path_argument, metavar="PATH", help="folder above the trajectories, or of RLDS files"
    )
    make.add_argument("--output-dir", type=path_argument, metavar="PATH", help="folder to write; made if missing")
    make.add_argument("--split", help="of RLDS files: which (default: train)")
    make.add_argument("--camera", type=whole(0), default=0, metavar="N", help="images<N> or image_<N> (default 0)")
    make.add_argument("--second-camera", type=whole(0), metavar="N", help="the second view (default: the first again)")
    make.add_argument("--position-unit", type=real(above=0), default=POSITION_UNIT, metavar="M", help="default 0.05")
    make.add_argument("--rotation-unit", type=real(above=0), default=ROTATION_UNIT, metavar="RAD", help="default 0.25")
    make.add_argument("--default-instruction", default="", metavar="TEXT", help="for trajectories without one")
    make.add_argument("--copy-frames", action="store_true", help="copy the images of raw folders")
    make.add_argument("--skip-bad", action="store_true", help="leave out bad trajectories, and list them")
    make.add_argument("--workers", type=whole(1), default=min(os.cpu_count() or 1, 8), help="processes that read")
    verify_options(made, formats="raw folders, RLDS files")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    cameras = (options.camera,) if options.second_camera is None else (options.camera, options.second_camera)
    try:
        if (code := run_verify(options, lambda source: verify(source, cameras, options.split))) is not None:
            return code
        units = Units(options.position_unit, options.rotation_unit, gripper_threshold=0.5)
        settings = Settings(
            options.output_dir, cameras, units, options.copy_frames, options.default_instruction.strip()
        )
        made = process(options.source, settings, options.split, options.workers, skip_bad=options.skip_bad)
    except (ValueError, OSError) as error:
        print(f"process_bridge: {error}", file=sys.stderr)
        return 2
    for line in made.left_out:
        print(f"left out: {line}", file=sys.stderr)
    print(made.text())
    return 0


if __name__ == "__main__":
    run_command(main)

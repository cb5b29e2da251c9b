"""Convert BridgeData V2 (raw folders, or RLDS/TFDS files) to a processed split, listed in ``dataset_info.json``.

python preprocess_data/process_bridge.py --source bridge_data_v2 --output-dir data/bridge
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from common.arguments import whole
from common.command import print_next, report_errors, run_command
from models.processing.image_file import shown_size
from preprocess_data.formats.bridge import (
    LANGUAGE,
    OBSERVATIONS,
    POLICY,
    POSITION_UNIT,
    RATE,
    ROTATION_UNIT,
    STATE,
    EpisodeSkipped,
    ImageSource,
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
from preprocess_data.jobs.conversion_cli import conversion_parser, run_verify
from preprocess_data.jobs.convert import Conversion, ConvertedEpisode, JobResult, Units, convert
from training.data.readers import read_image, read_image_bytes

FOLDERS = 16
"""Trajectories of a job."""

DESCRIPTION = """\
Make a processed split, which training reads, from BridgeData V2: its raw folders
(traj_group0/traj0/{images0, obs_dict.pkl, policy_out.pkl, lang.txt}) or its RLDS (TFDS) files, which are read without
TensorFlow. Every trajectory is one episode with its instruction.

Actions are computed from the recorded states: the relative action of a moment is the motion to the next state,
  position  (next xyz - xyz) / --position-unit metres,      clipped to [-1, 1]
  rotation  (next Euler xyz - Euler xyz, wrapped) / --rotation-unit radians, clipped to [-1, 1]
  gripper   +1 open, -1 closed: the recorded command above 0.5 (BridgeData: 1 open, 0 closed)
in the robot's base frame, at 5 Hz; the last moment of an episode does not move. The number of clipped actions is
printed. The recorded states (xyz in metres, Euler xyz in radians, opening of the gripper, 1 open) are kept as the
robot's state, which model.vla.proprioception=pose reads. A killed command resumes when started again."""

EPILOG = """\
examples:
  process_bridge.py --source bridge_data_v2 --output-dir data/bridge
      raw folders; the images stay in place (--copy-frames: the output folder can be moved on its own)
  process_bridge.py --source bridge_dataset/1.0.0 --split train --output-dir data/bridge
      RLDS files; the images are unpacked as they are (JPEG), which takes the same space again
  process_bridge.py ... --second-camera 1
      the second view from another camera; without it, one camera serves as both views
  process_bridge.py --verify bridge_data_v2 [--report problems.json]
      read everything, decode every image, list all problems; also of a processed split; exit code 1 if there are any
  process_bridge.py --summary data/bridge [--sheet summary.png]

then train with dataset.params.train_pre_shards_path_or_url=<output folder>"""


@dataclass(frozen=True)
class Settings:
    """``cameras``: their numbers; ``copy``: copy the images of raw folders; ``instruction``: for episodes without."""

    output: Path
    cameras: tuple[int, ...]
    units: Units
    copy: bool = False
    instruction: str = ""


@dataclass(frozen=True)
class Work:
    """Some raw folders, or one RLDS file."""

    source: tuple[Path, ...] | Shard
    settings: Settings


def read_work(work: Work) -> JobResult:
    """Read some trajectories and, if necessary, write their images."""
    result = JobResult()
    try:
        for number, found in enumerate(_trajectories(work)):
            try:
                if isinstance(found, ValueError):
                    raise found
                result.episodes.append(_converted(found, work, number))
            except EpisodeSkipped as error:
                result.left_out.append(str(error))
            except ValueError as error:
                result.bad.append(str(error))
    except (ValueError, FileNotFoundError) as error:
        result.bad.append(str(error))
    return result


def _trajectories(work: Work) -> Iterator[Trajectory | ValueError]:
    if isinstance(work.source, Shard):
        yield from read_shard(work.source, work.settings.cameras)
        return
    for folder in work.source:
        try:
            yield read_raw(folder, work.settings.cameras)
        except (ValueError, FileNotFoundError) as error:
            yield error if isinstance(error, ValueError) else ValueError(str(error))


def _converted(trajectory: Trajectory, work: Work, number: int) -> ConvertedEpisode:
    instruction = trajectory.instruction or work.settings.instruction
    if not instruction:
        raise EpisodeSkipped(f"{trajectory.where} has no instruction (--default-instruction gives one)")
    relative, absolute, clipped = relative_actions(trajectory, work.settings.units)
    sides = [size_of(images[0], trajectory.where) for images in trajectory.images]
    names = [
        _image_names(images, work, f"e{number:05d}/{camera}")
        for camera, images in zip(work.settings.cameras, trajectory.images, strict=True)
    ]
    count, gripper = int(clipped.sum()), trajectory.gripper
    return ConvertedEpisode(
        instruction,
        names[0],
        names[-1],
        relative,
        absolute,
        sides,
        count,
        gripper=gripper,
        state=trajectory.states,
    )


def size_of(image: ImageSource, where: str) -> tuple[int, int]:
    """Return height and width from the header of an image."""
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            return shown_size(opened)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        raise ValueError(f"{image if isinstance(image, Path) else where} cannot be opened as an image") from None


def _image_names(images: Sequence[ImageSource], work: Work, folder: str) -> list[str]:
    """Return the images' paths for dataset_info.json; write images that are not files, or are to be copied."""
    names: list[str] = []
    output = work.settings.output
    for moment, image in enumerate(images):
        if isinstance(image, Path) and not work.settings.copy:
            names.append(Path(os.path.relpath(image.resolve(), output.resolve())).as_posix())
            continue
        if isinstance(image, Path):
            # Trajectories in many folders share a name: the copy has the whole path.
            name = Path("frames", *image.parent.resolve().parts[1:], image.name)
        else:
            assert isinstance(work.source, Shard)
            name = Path("frames", work.source.path.name, folder, f"{moment:05d}{suffix_of(image, folder)}")
        target = output / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(image, Path):
            shutil.copyfile(image, target)
        else:
            target.write_bytes(image)
        names.append(name.as_posix())
    return names


def find_work(source: Path, split: str | None, settings: Settings) -> list[Work]:
    """Return the jobs of a source. Raise ValueError or FileNotFoundError naming what is there instead."""
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
    """Return the files with the numbers and instructions of some trajectories."""
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
) -> Conversion:
    """Write the processed split of a source. Raise ValueError or FileNotFoundError naming the first bad file."""
    units = settings.units
    action = {
        "kind": "relative_to_measured",
        "frame": "robot_base",
        "position_m_per_unit": units.position,
        "rotation_rad_per_unit": units.rotation,
        "rate_hz": RATE,
    }
    plan = {"format": "bridge", "settings": {key: str(value) for key, value in asdict(settings).items()}}
    work = find_work(source, split, settings)
    return convert(work, read_work, _files, settings.output, plan, action, units, workers, progress, skip_bad, STATE)


def verify(source: Path, cameras: tuple[int, ...], split: str | None = None) -> Report:
    """Read every trajectory and decode every image of a source; return all problems."""
    report = Report(source, full=True)
    for work in find_work(source, split, Settings(source, cameras, Units(1.0, 1.0, 0.5))):
        try:
            for found in _trajectories(work):
                report.windows += 1
                if isinstance(found, EpisodeSkipped):
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
    source, verified = "parent folder of the trajectories, or folder of RLDS files", "raw folders, RLDS files"
    made, group = conversion_parser(DESCRIPTION, EPILOG, source, verified, (POSITION_UNIT, ROTATION_UNIT))
    add = group.add_argument
    add("--split", help="split of RLDS files (default: train)")
    add("--camera", type=whole(0), default=0, metavar="N", help="images<N> or image_<N> (default 0)")
    add("--second-camera", type=whole(0), metavar="N", help="the second view (default: the first again)")
    add("--copy-frames", action="store_true", help="copy the images of raw folders")
    return made


@report_errors("process_bridge")
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    cameras = (options.camera,) if options.second_camera is None else (options.camera, options.second_camera)
    if (code := run_verify(options, lambda source: verify(source, cameras, options.split))) is not None:
        return code
    units = Units(options.position_unit, options.rotation_unit, gripper_threshold=0.5)
    settings = Settings(options.output_dir, cameras, units, options.copy_frames, options.default_instruction.strip())
    process(options.source, settings, options.split, options.workers, skip_bad=options.skip_bad).print()
    print_next(
        "blockdiff-vla inspect {folder}, then tokenize --data {folder} (optional) and train", folder=options.output_dir
    )
    return 0


if __name__ == "__main__":
    run_command(main)

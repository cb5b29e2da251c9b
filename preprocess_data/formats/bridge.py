"""Read BridgeData V2, from its raw folders or from RLDS (TFDS) files, into the same structure.

Raw: ``.../traj_group0/traj0/{images0/im_0.jpg, ..., obs_dict.pkl, policy_out.pkl, lang.txt}``.
RLDS: a folder with ``features.json``, TFDS's ``dataset_info.json`` and ``*.tfrecord-00000-of-00512``. The fields of
``bridge_dataset`` (image_0, action [7], language_instruction) and of Open X's ``bridge`` (image, world_vector,
open_gripper, natural_language_instruction) are supported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.files import read_object
from preprocess_data.formats.tfrecord import Feature, parse_example, records
from preprocess_data.jobs.convert import Flags, Units
from training.data.readers import read_pickle

Floats = npt.NDArray[np.float32]
ImageSource = Path | bytes

OBSERVATIONS, POLICY, LANGUAGE = "obs_dict.pkl", "policy_out.pkl", "lang.txt"
RATE = 5  # Hz
POSITION_UNIT, ROTATION_UNIT = 0.05, 0.25
"""Metres and radians of 1.0: few steps at 5 Hz are larger."""
STATE: dict[str, Any] = {
    "dim": 7,
    "groups": {"position": [0, 1, 2], "rotation": [3, 4, 5], "gripper": [6]},
    "rotation": "euler_xyz",
}
"""Declaration of ``Trajectory.states`` in a contract."""
_IMAGE = re.compile(r"im_(\d+)\.(?:jpg|jpeg|png)", re.IGNORECASE)
_SHARD = re.compile(r"(?P<name>.+)-(?P<split>\w+)\.tfrecord-(?P<number>\d{5})-of-(?P<count>\d{5})")
_INSTRUCTIONS = ("language_instruction", "observation/natural_language_instruction")
_MAGIC = {b"\xff\xd8\xff": ".jpg", b"\x89PN": ".png"}


class EpisodeSkipped(ValueError):
    """A valid episode that does not meet the options: it has no instruction, or no images of this camera."""


@dataclass(frozen=True)
class Trajectory:
    """A trajectory of n moments at 5 Hz.

    ``where``: its location for messages; ``instruction``: may be empty; ``states`` [n, 7]: xyz in metres and Euler xyz
    in radians, in the robot's base frame, and the gripper (1 open); ``gripper`` [n]: the command, 1 open, 0 closed;
    ``images``: for each camera n files or encoded images.
    """

    where: str
    instruction: str
    states: Floats
    gripper: Floats
    images: Sequence[Sequence[ImageSource]]

    def __len__(self) -> int:
        return len(self.states)


def relative_actions(trajectory: Trajectory, units: Units) -> tuple[Floats, Floats, Flags]:
    """Return (relative [n, 7], absolute [n, 7], clipped [n]) as `process_bridge.py --help` defines them."""
    states = trajectory.states[:, :6]
    following = np.concatenate([states[1:], states[-1:]])
    motion, clipped = units.steps(states, following)
    grip = units.grip(trajectory.gripper)[:, None]
    return np.concatenate([motion, grip], axis=1), np.concatenate([following, grip], axis=1), clipped


# ------------------------------------------------------------------------------------------------------------------ raw
def find_raw(root: Path) -> list[Path]:
    """Return the trajectory folders below ``root``, in numerical order."""
    found = []
    for folder, below, files in os.walk(root):
        if OBSERVATIONS in files or POLICY in files:
            found.append(Path(folder))
            below.clear()
    # The whole path is compared: ties would be in the order of the file system, which differs between copies.
    return sorted(found, key=lambda path: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", str(path))])


def read_raw(folder: Path, cameras: Sequence[int]) -> Trajectory:
    """Return a trajectory. Raise EpisodeSkipped, or ValueError or FileNotFoundError naming the file."""
    states = _states(folder / OBSERVATIONS)
    gripper = _commands(folder / POLICY, len(states))
    return Trajectory(
        where=str(folder),
        instruction=_sentence(folder / LANGUAGE),
        states=states,
        gripper=gripper,
        images=[_images(folder / f"images{camera}", len(states)) for camera in cameras],
    )


def _states(path: Path) -> Floats:
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a dictionary, found {type(content).__name__}")
    key = next((key for key in ("full_state", "state") if key in content), None)
    if key is None:
        raise ValueError(f"{path} has neither full_state nor state; it has {', '.join(map(str, content)) or 'nothing'}")
    return _table(content[key], f"{path}: {key}")


def _commands(path: Path, moments: int) -> Floats:
    """Return the last number of each action. There is one action fewer than moments; the last one is repeated."""
    content = read_pickle(path)
    if not isinstance(content, list) or not content:
        raise ValueError(f"{path} must hold a list of actions, found {type(content).__name__}")
    rows = [row.get("actions") if isinstance(row, dict) else row for row in content]
    table = _table(rows, f"{path}: actions")
    if len(table) not in (moments - 1, moments):
        raise ValueError(f"{path} has {len(table)} actions for the {moments} states of {OBSERVATIONS}")
    grip: Floats = table[np.minimum(np.arange(moments), len(table) - 1), 6]
    return grip


def _table(rows: Any, what: str) -> Floats:
    """Return finite numbers [n, 7]. Raise ValueError beginning with ``what``."""
    try:
        table = np.asarray(rows, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{what} must be rows of 7 numbers") from None
    if table.ndim != 2 or table.shape[1] != 7 or not len(table):
        raise ValueError(f"{what} must be numbers [n, 7] with n of 1 or more, found {list(table.shape)}")
    if not np.isfinite(table).all():
        raise ValueError(f"{what} holds a number that is not finite")
    return table


def _sentence(path: Path) -> str:
    """Return the first line that is not empty and not an annotator's "confidence: ..."."""
    if not path.is_file():
        return ""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None
    return next((line for line in lines if line and "confidence" not in line), "")


def _images(folder: Path, moments: int) -> list[Path]:
    if not folder.is_dir():
        raise EpisodeSkipped(f"{folder} does not exist: the trajectory was not recorded by this camera")
    numbered = {int(match[1]): folder / name for name in os.listdir(folder) if (match := _IMAGE.fullmatch(name))}
    for number in range(moments):
        if number not in numbered:
            raise ValueError(f"{folder}/im_{number}.jpg does not exist, though {OBSERVATIONS} has {moments} states")
    if len(numbered) != moments:
        raise ValueError(f"{folder} holds {len(numbered)} images for the {moments} states of {OBSERVATIONS}")
    return [numbered[number] for number in range(moments)]


# ----------------------------------------------------------------------------------------------------------------- RLDS
@dataclass(frozen=True)
class Shard:
    """An RLDS file and its number of episodes, as TFDS's dataset_info.json counts them."""

    path: Path
    episodes: int


def is_rlds(path: Path) -> bool:
    return (path / "features.json").is_file() and (path / "dataset_info.json").is_file()


def find_rlds(root: Path) -> list[Path]:
    """Return the folders of TFDS files at ``root`` or up to two folders below (name/version)."""
    if is_rlds(root):
        return [root]
    return [path.parent for path in sorted([*root.glob("*/features.json"), *root.glob("*/*/features.json")])]


def splits_of(root: Path) -> dict[str, list[Shard]]:
    """Return the files of each split. Raise ValueError or FileNotFoundError naming a missing or inconsistent file."""
    path = root / "dataset_info.json"
    read_object(root / "features.json")
    found: dict[str, list[Shard]] = {}
    names = {match["split"]: match["name"] for f in sorted(root.iterdir()) if (match := _SHARD.fullmatch(f.name))}
    try:
        for split in read_object(path)["splits"]:
            name, lengths = str(split["name"]), [int(length) for length in split["shardLengths"]]
            stem = names.get(name, read_object(path).get("name", "*"))
            found[name] = [
                Shard(root / f"{stem}-{name}.tfrecord-{number:05d}-of-{len(lengths):05d}", length)
                for number, length in enumerate(lengths)
            ]
    except (KeyError, TypeError, ValueError) as error:
        if str(path) in str(error):
            raise
        expected = "splits with name and shardLengths"
        raise ValueError(f"{path} is no dataset_info.json of TFDS: it lacks {expected}") from None
    if not found:
        raise ValueError(f"{path} counts no split")
    return found


def read_shard(shard: Shard, cameras: Sequence[int]) -> Iterator[Trajectory | ValueError]:
    """Yield the episodes of a file, with an error in place of an unreadable one; raise errors of the file itself."""
    number = 0
    for number, content in enumerate(records(shard.path), 1):
        try:
            yield read_example(content, f"{shard.path}: record {number - 1}", cameras)
        except ValueError as error:
            yield error
    if number != shard.episodes:
        raise ValueError(
            f"{shard.path} holds {number} episodes, but dataset_info.json counts {shard.episodes}; fetch the file again"
        )


def read_example(content: bytes, where: str, cameras: Sequence[int]) -> Trajectory:
    """Return an RLDS episode. Raise EpisodeSkipped, or ValueError beginning with ``where``."""
    found = parse_example(content, where)
    steps = {name.removeprefix("steps/"): value for name, value in found.items() if name.startswith("steps/")}
    states = _flat(steps, "observation/state", 7, where)
    sentence = next((value for name in _INSTRUCTIONS if isinstance(value := steps.get(name), list) and value), [b""])
    try:
        instruction = sentence[0].decode("utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError(f"{where}: its instruction is not UTF-8 text") from None
    name = "action" if "action" in steps else "action/open_gripper"
    gripper = _flat(steps, name, 7, where)[:, 6] if name == "action" else _gripper(steps, len(states), where)
    if len(gripper) != len(states):
        raise ValueError(f"{where} has {len(gripper)} actions for {len(states)} states")
    images = [_encoded(found, steps, camera, len(states), where) for camera in cameras]
    return Trajectory(where, instruction, states, gripper, images)


def _flat(steps: dict[str, Feature], name: str, width: int, where: str) -> Floats:
    values = steps.get(name)
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or not len(values) or len(values) % width:
        raise ValueError(f"{where} needs float numbers [n, {width}] under steps/{name}")
    return _table(values.reshape(-1, width), f"{where}: steps/{name}")


def _gripper(steps: dict[str, Feature], moments: int, where: str) -> Floats:
    values = steps.get("action/open_gripper")
    if not isinstance(values, np.ndarray) or len(values) != moments:
        raise ValueError(f"{where} needs steps/action or steps/action/open_gripper for its {moments} moments")
    return values.astype(np.float32)


def _encoded(
    found: dict[str, Feature], steps: dict[str, Feature], camera: int, moments: int, where: str
) -> list[bytes]:
    flag = found.get(f"episode_metadata/has_image_{camera}")
    name = next((n for n in (f"observation/image_{camera}", "observation/image") if n in steps), None)
    if name is None or (name == "observation/image" and camera) or (isinstance(flag, np.ndarray) and not flag.any()):
        raise EpisodeSkipped(f"{where} was not recorded by camera {camera}")
    images = steps[name]
    if not isinstance(images, list) or len(images) != moments:
        raise ValueError(f"{where} needs {moments} images under steps/{name}")
    for image in images:
        suffix_of(image, f"{where}: steps/{name}")
    return images


def suffix_of(image: bytes, where: str) -> str:
    """Return ".jpg" or ".png" by the first bytes. Raise ValueError beginning with ``where``."""
    try:
        return _MAGIC[image[:3]]
    except KeyError:
        raise ValueError(f"{where} holds an image that is neither JPEG nor PNG") from None

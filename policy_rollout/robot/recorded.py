"""A robot that replays a recording in real time and executes nothing: for dry runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from policy_rollout.policies.interface import CAMERAS
from policy_rollout.robot.interface import Command, RobotObservation
from policy_rollout.robot.rate import Clock
from training.data.calvin import CalvinSplit, is_split, splits_in
from training.data.readers import read_image

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
VIDEOS = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".gif")


class Recording(Protocol):
    """Recorded frames. ``instruction``: that of the demonstration, if known."""

    instruction: str | None

    def __len__(self) -> int: ...
    def frame(self, index: int) -> dict[str, NDArray[Any]]:
        """Return `rgb_static`, and `rgb_gripper`, `pose` and `state` if recorded."""
        ...


class RecordedSplit:
    """A raw CALVIN split, from the first frame of annotation number ``window`` to its last."""

    def __init__(self, path: Path, window: int, cameras: Sequence[str]) -> None:
        self._split = CalvinSplit(path)
        found = self._split.annotations
        if not 0 <= window < len(found):
            raise ValueError(f"--window {window}: {path} has {len(found)} annotated windows, from 0")
        if self._split.crossing([found[window]]):
            raise ValueError(f"--window {window}: it spans two recordings of {path}; give another window")
        self.instruction: str | None = found[window].instruction
        self._frames = found[window].frames
        self._keys = (*cameras, "robot_obs")

    def __len__(self) -> int:
        return len(self._frames)

    def frame(self, index: int) -> dict[str, NDArray[Any]]:
        arrays = self._split.frame(self._frames[index], self._keys)
        state = np.asarray(arrays.pop("robot_obs"), dtype=np.float64)
        return {**arrays, "pose": state[:6], "state": state}


class RecordedImages:
    """A folder of images in the order of their names, or with one folder per camera (`rgb_static`, ...)."""

    instruction: str | None = None

    def __init__(self, path: Path, cameras: Sequence[str]) -> None:
        folders = {camera: path / camera for camera in cameras if (path / camera).is_dir()}
        if "rgb_static" not in folders:
            folders = {"rgb_static": path}
        self._files = {
            camera: sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGES)
            for camera, folder in folders.items()
        }
        counts = {len(files) for files in self._files.values()}
        if len(counts) != 1 or not counts.pop():
            counted = ", ".join(f"{len(files)} in {folders[camera]}" for camera, files in self._files.items())
            raise ValueError(f"{path}: as many images of each camera are needed, at least one; found {counted}")

    def __len__(self) -> int:
        return len(self._files["rgb_static"])

    def frame(self, index: int) -> dict[str, NDArray[Any]]:
        return {camera: _read(files[index]) for camera, files in self._files.items()}


class RecordedVideo:
    """A video of the static camera, decoded once at the start."""

    instruction: str | None = None

    def __init__(self, path: Path, max_frames: int) -> None:
        try:
            import av
        except ImportError:
            raise ValueError(f"{path}: reading videos needs av; pip install -r requirements-lerobot.txt") from None
        try:
            with av.open(str(path)) as video:
                frames = (frame.to_ndarray(format="rgb24") for frame in video.decode(video=0))
                self._frames = [frame for frame, _ in zip(frames, range(max_frames), strict=False)]
        except (av.FFmpegError, IndexError) as error:
            raise ValueError(f"{path} cannot be read as a video: {error}") from None
        if not self._frames:
            raise ValueError(f"{path} has no frame")

    def __len__(self) -> int:
        return len(self._frames)

    def frame(self, index: int) -> dict[str, NDArray[Any]]:
        return {"rgb_static": self._frames[index]}


def open_recording(
    path: Path, cameras: Sequence[str] = CAMERAS, window: int = 0, max_frames: int = 10_000
) -> Recording:
    """Open a raw CALVIN split, a folder of images or a video. ``max_frames``: number of frames read from a video.

    Raises `ValueError` or `FileNotFoundError` in one line.
    """
    if path.is_file() and path.suffix.lower() in VIDEOS:
        return RecordedVideo(path, max_frames)
    if path.is_file():
        raise ValueError(f"{path} is not a supported video ({', '.join(VIDEOS)})")
    if is_split(path):
        return RecordedSplit(path, window, cameras)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder; give a CALVIN split, a folder of images or a video")
    splits = splits_in(path)
    if splits:
        raise ValueError(f"{path} is a folder of splits: give {' or '.join(str(path / name) for name in splits)}")
    return RecordedImages(path, cameras)


@dataclass
class RecordedRobot:
    """Replays a recording at ``rate_hz``, starting with the first call of ``observe``."""

    recording: Recording
    rate_hz: float
    clock: Clock
    on_command: Callable[[Command | None], None] = lambda command: None
    """Called with every command; None: a stop."""

    def __post_init__(self) -> None:
        self._start: float | None = None
        self._index = -1
        self._observation: RobotObservation | None = None

    def observe(self) -> RobotObservation | None:
        now = self.clock.now()
        self._start = now if self._start is None else self._start
        index = int((now - self._start) * self.rate_hz + 1e-6)
        if index >= len(self.recording):
            return None
        if self._observation is None or index != self._index:
            found = self.recording.frame(index)
            taken_at = self._start + index / self.rate_hz
            measured = (found.get(name) for name in ("rgb_gripper", "pose", "state"))
            self._observation = RobotObservation(found["rgb_static"], taken_at, *measured)
            self._index = index
        return self._observation

    def act(self, command: Command) -> None:
        self.on_command(command)

    def stop(self) -> None:
        self.on_command(None)


def _read(file: Path) -> NDArray[np.uint8]:
    return np.asarray(read_image(file), dtype=np.uint8)

"""A robot that is a recording: for dry runs. It shows frames in real time and only notes what it is told to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from policy_rollout.policies.interface import CAMERAS
from policy_rollout.robot.interface import Command, Sight
from policy_rollout.robot.rate import Clock
from training.data.calvin import CalvinSplit, is_split, splits_in
from training.data.readers import read_image

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
VIDEOS = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".gif")


class Recording(Protocol):
    """Frames that were recorded before. ``instruction``: what was said to the demonstrator, where that is known."""

    instruction: str | None

    def __len__(self) -> int: ...
    def frame(self, index: int) -> dict[str, NDArray[Any]]:
        """`rgb_static`, and where there are `rgb_gripper` and `pose`."""
        ...


class RecordedSplit:
    """A raw CALVIN split, from the first frame of annotation number ``window`` to its last."""

    def __init__(self, path: Path, window: int, cameras: Sequence[str]) -> None:
        self._split = CalvinSplit(path)
        found = self._split.annotations
        if not 0 <= window < len(found):
            raise ValueError(f"--window {window}: {path} has {len(found)} annotated windows, from 0")
        if self._split.crossing([found[window]]):
            raise ValueError(
                f"--window {window}: it goes from one recording of {path} into another; give another window"
            )
        self.instruction: str | None = found[window].instruction
        self._frames = found[window].frames
        self._keys = (*cameras, "robot_obs")

    def __len__(self) -> int:
        return len(self._frames)

    def frame(self, index: int) -> dict[str, NDArray[Any]]:
        arrays = self._split.frame(self._frames[index], self._keys)
        pose = np.asarray(arrays.pop("robot_obs")[:6], dtype=np.float64)
        return {**arrays, "pose": pose}


class RecordedImages:
    """A folder of images in the order of their names; or one folder for each camera (`rgb_static`, ...) in it."""

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
            held = ", ".join(f"{len(files)} in {folders[camera]}" for camera, files in self._files.items())
            raise ValueError(f"{path}: as many images of each camera are needed, at least one; found {held}")

    def __len__(self) -> int:
        return len(self._files["rgb_static"])

    def frame(self, index: int) -> dict[str, NDArray[Any]]:
        return {camera: _read(files[index]) for camera, files in self._files.items()}


class RecordedVideo:
    """The static camera's video, decoded once at the start."""

    instruction: str | None = None

    def __init__(self, path: Path, most: int) -> None:
        try:
            import av
        except ImportError:
            raise ValueError(f"{path}: reading videos needs av; pip install -r requirements-lerobot.txt") from None
        try:
            with av.open(str(path)) as video:
                frames = (frame.to_ndarray(format="rgb24") for frame in video.decode(video=0))
                self._frames = [frame for frame, _ in zip(frames, range(most), strict=False)]
        except (av.FFmpegError, IndexError) as error:
            raise ValueError(f"{path} cannot be read as a video: {error}") from None
        if not self._frames:
            raise ValueError(f"{path} holds no frame")

    def __len__(self) -> int:
        return len(self._frames)

    def frame(self, index: int) -> dict[str, NDArray[Any]]:
        return {"rgb_static": self._frames[index]}


def open_recording(path: Path, cameras: Sequence[str] = CAMERAS, window: int = 0, most: int = 10_000) -> Recording:
    """A raw CALVIN split, a folder of images or a video, by what lies there. ``most``: frames of a video that are
    kept. Raises `ValueError` or `FileNotFoundError` in one line."""
    if path.is_file() and path.suffix.lower() in VIDEOS:
        return RecordedVideo(path, most)
    if path.is_file():
        raise ValueError(f"{path} is no video that is known ({', '.join(VIDEOS)})")
    if is_split(path):
        return RecordedSplit(path, window, cameras)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder; give a CALVIN split, a folder of images or a video")
    below = splits_in(path)
    if below:
        raise ValueError(f"{path} holds splits: give {' or '.join(str(path / name) for name in below)}")
    return RecordedImages(path, cameras)


@dataclass
class RecordedRobot:
    """Plays a recording at ``rate_hz`` from the first look on. ``told``, ``stops``: what it would have done."""

    recording: Recording
    rate_hz: float
    clock: Clock
    note: Callable[[Command | None], None] = lambda command: None
    """Hears of every command; None: a stop."""

    def __post_init__(self) -> None:
        self._start: float | None = None
        self._shown = -1
        self._sight: Sight | None = None

    def observe(self) -> Sight | None:
        now = self.clock.now()
        self._start = now if self._start is None else self._start
        index = int((now - self._start) * self.rate_hz + 1e-6)
        if index >= len(self.recording):
            return None
        if self._sight is None or index != self._shown:
            found = self.recording.frame(index)
            taken = self._start + index / self.rate_hz
            self._sight = Sight(found["rgb_static"], taken, found.get("rgb_gripper"), found.get("pose"))
            self._shown = index
        return self._sight

    def act(self, command: Command) -> None:
        self.note(command)

    def stop(self) -> None:
        self.note(None)


def _read(file: Path) -> NDArray[np.uint8]:
    return np.asarray(read_image(file), dtype=np.uint8)

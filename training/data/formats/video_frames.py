"""Single frames of videos: ``<video>.mp4/12.366667.bmp`` is a path to the frame at that second of a video.

``zip_reader.py`` and ``readers.py`` read such paths, so that a processed split can name frames of videos that are not
unpacked (``process_lerobot.py --keep-videos``). Needs PyAV.
"""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

SUFFIXES = (".mp4", ".mkv", ".webm", ".mov")
TOLERANCE_S = 1e-4
"""Seconds by which a timestamp may differ from that of its frame, as in lerobot."""
OPEN_VIDEOS = 16
"""Videos that a process keeps open."""

Pixels = npt.NDArray[np.uint8]  # [height, width, 3]


class NoFrameError(ValueError):
    """A valid video has no frame at a timestamp."""


def frame_name(video: str | os.PathLike[str], seconds: float) -> str:
    """Return the path of the frame at ``seconds`` of a video."""
    return f"{os.fspath(video)}/{seconds:.6f}.bmp"


def video_frame(path: Path) -> tuple[Path, float] | None:
    """Return (video, seconds) of a path to a frame of a video; None for other paths."""
    if path.suffix != ".bmp" or path.parent.suffix.lower() not in SUFFIXES or not path.parent.is_file():
        return None
    with suppress(ValueError):
        return path.parent, float(path.stem)
    return None


class Video:
    """An open video whose frames are read by time.

    Decoding continues from the previous frame if the wanted one follows within the distance of key frames seen so far,
    and starts at the key frame before the wanted one otherwise. Raises ValueError naming the file if it is damaged.
    """

    def __init__(self, path: Path) -> None:
        try:
            import av
            from av.video.reformatter import VideoReformatter
        except ImportError:
            raise ValueError(f"{path} is a video, which needs the package PyAV: pip install 'av>=14,<19'") from None
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist")
        self.path = path
        self._damages = (
            av.error.FFmpegError,
            *(ValueError, IndexError, OverflowError, TypeError, ZeroDivisionError),
        )
        try:
            self._container = av.open(str(path))
            self._stream = self._container.streams.video[0]
            if self._stream.codec_context is None:
                raise ValueError("its codec is not known")
            self._stream.codec_context.thread_count = 1
            self.tick = float(self._stream.time_base or 0)
        except self._damages as error:
            raise self._damaged(error) from None
        self._reformatter = VideoReformatter()
        self._frames: Iterator[Any] = self._container.decode(self._stream)
        self._frame: Any = None  # decoded last
        self._key = self._group = 0.0  # seconds of its key frame, and the largest seen distance from a key frame

    def frame(self, seconds: float, allowed: float = TOLERANCE_S) -> Pixels:
        """Return the frame within ``allowed`` seconds of ``seconds``. Raises NoFrameError if there is none."""
        allowed += self.tick / 2
        try:
            time = None if self._frame is None else self._frame.time
            if time is None or not time - allowed <= seconds <= time + max(self._group, allowed):
                self._seek(seconds + allowed)
            before, found = None, self._frame
            while found is not None and found.time < seconds - allowed and self._decode():
                before, found = found, self._frame
            if found is None or abs(found.time - seconds) > allowed:
                times = [frame.time for frame in (before, found) if frame is not None]
                nearest = min(times, key=lambda time: abs(time - seconds), default=None)
                nearest = "" if nearest is None else f", the nearest is at {nearest:.4f} s"
                raise NoFrameError(f"{self.path} has no frame at {seconds:.4f} s, a timestamp of the table{nearest}")
            return np.asarray(self._reformatter.reformat(found, format="rgb24").to_ndarray(), dtype=np.uint8)
        except NoFrameError:
            raise
        except self._damages as error:
            self._frame = None
            raise self._damaged(error) from None

    def close(self) -> None:
        self._container.close()

    def _seek(self, seconds: float) -> None:
        """Decode the key frame before ``seconds``."""
        earlier = 0.0
        while True:
            if self._frame is not None or seconds > 0:
                self._container.seek(max(0, int((seconds - earlier) / self.tick)), stream=self._stream)
                self._frames = self._container.decode(self._stream)
            self._frame = None
            # The index of a file may be by time of decoding, and name a key frame that is shown later.
            if not self._decode() or self._frame.time <= seconds or earlier > seconds:
                return
            earlier = max(2 * earlier, 1.0)

    def _decode(self) -> bool:
        """Decode the next frame; return False at the end of the video, where the last one stays."""
        following = next(self._frames, None)
        if following is None:
            return False
        if following.is_corrupt:
            raise ValueError(f"a frame at {following.time} s is corrupt")
        if self._frame is None or following.key_frame:
            self._key = following.time
        self._frame, self._group = following, max(self._group, following.time - self._key)
        return True

    def _damaged(self, error: Exception) -> ValueError:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return ValueError(f"{self.path} cannot be read as a video: {reason[:200]}")


_open: OrderedDict[tuple[int, str], tuple[tuple[int, int, int], Video]] = OrderedDict()
_lock = threading.Lock()


def read_video_frame(path: Path, seconds: float) -> Pixels:
    """Return a frame of a video, which stays open in this process."""
    state = path.stat()
    name = (os.getpid(), str(path))  # a forked process shares the position in the file, and opens it anew
    key = (state.st_ino, state.st_size, state.st_mtime_ns)
    with _lock:
        held = _open.pop(name, None)
        if held is None or held[0] != key:
            held = (key, Video(path))
        _open[name] = held
        while len(_open) > OPEN_VIDEOS:
            _open.popitem(last=False)[1][1].close()
        return held[1].frame(seconds)


def frame_as_file(path: Path, seconds: float) -> bytes:
    """Return a frame as the image file that it stands for."""
    content = io.BytesIO()
    Image.fromarray(read_video_frame(path, seconds)).save(content, "BMP")
    return content.getvalue()

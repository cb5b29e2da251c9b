"""Read LeRobot data sets v2.0, v2.1 and v3.0 (tables in parquet, images in mp4 or in the tables) without lerobot.

``meta/info.json`` describes the layout. v2 has one table and one video per camera for each episode, listed in
``meta/*.jsonl``; v3.0 has many episodes in a file, and ``meta/episodes/*.parquet`` lists where each one begins.
Needs pyarrow and PyAV (requirements-lerobot.txt).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.files import read_object
from training.data.formats.video_frames import TOLERANCE_S, NoFrameError, Video, frame_name
from training.data.readers import read_image_bytes

Image = npt.NDArray[np.uint8]  # [height, width, 3]
Section = tuple[Path, float, float | None]
"""A video, and the seconds at which an episode begins and ends in it (None: at the end)."""
INFO = "meta/info.json"
ANNOTATIONS = "meta/blockdiff_windows.parquet"
"""Annotated windows, which may overlap; written by export_lerobot.py only."""
VERSIONS = ("v2.0", "v2.1", "v3.0")
"""v2.0 differs from v2.1 in its statistics alone, which are not read."""


def libraries() -> tuple[Any, Any]:
    """Return (pyarrow.parquet, av). Raise ValueError naming the missing one and how to install it."""
    try:
        import av
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ValueError(
            f"LeRobot data needs {error.name}, which is not installed: pip install -r requirements-lerobot.txt"
        ) from None
    return parquet, av


@dataclass(frozen=True)
class EpisodeLocation:
    """The files of an episode. ``first``: row of its first frame in the data set, None if the table is its own."""

    number: int
    length: int
    table: Path
    first: int | None
    tasks: tuple[str, ...]
    videos: dict[str, Section]  # by camera

    @property
    def files(self) -> list[Path]:
        return [self.table, *(path for path, _, _ in self.videos.values())]


class LerobotData:
    """A LeRobot data set in a folder. Methods raise ValueError or FileNotFoundError naming the file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.info = read_object(root / INFO, "a LeRobot data set has one")
        self.version = str(self.info.get("codebase_version"))
        if self.version not in VERSIONS:
            raise ValueError(f"{root / INFO}: codebase_version {self.version!r}; {', '.join(VERSIONS)} are read")
        self._one_table_each = self.version != "v3.0"
        self.features = self._get("features", dict)
        self.fps = float(self._get("fps", (int, float)))
        if not 0 < self.fps < 1e4 or not all(isinstance(f, dict) and "dtype" in f for f in self.features.values()):
            raise ValueError(f"{root / INFO}: fps must be positive, and every feature must have a dtype")

    def _get(self, key: str, kind: Any) -> Any:
        value = self.info.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{self.root / INFO}: {key} is missing or of a wrong kind, found {value!r}")
        return value

    @property
    def cameras(self) -> list[str]:
        return [name for name, feature in self.features.items() if feature["dtype"] in ("video", "image")]

    @cached_property
    def tasks(self) -> dict[int, str]:
        """Return the sentence of each task number."""
        path = self.root / ("meta/tasks.jsonl" if self._one_table_each else "meta/tasks.parquet")
        if self._one_table_each:
            rows: list[dict[str, Any]] = list(_lines(path))
        else:
            rows = read_table(path)
            for row in rows:  # the sentence is the index of a pandas table
                row["task"] = row.get("task", row.get("__index_level_0__"))
        try:
            found = {int(row["task_index"]): row["task"] for row in rows}
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{path} needs task_index and task in every row") from None
        if not all(isinstance(task, str) for task in found.values()):
            raise ValueError(f"{path} needs a text under task in every row")
        return found

    @cached_property
    def episodes(self) -> list[EpisodeLocation]:
        found = list(self._locate())
        if not found:
            raise ValueError(f"{self.root} lists no episode")
        if (total := self.info.get("total_episodes", len(found))) != len(found):
            raise ValueError(f"{self.root / INFO} counts {total} episodes, but {len(found)} are listed")
        return found

    def _locate(self) -> Iterator[EpisodeLocation]:
        videos = [camera for camera in self.cameras if self.features[camera]["dtype"] == "video"]
        locate = self._v21 if self._one_table_each else self._v30
        for file, row in self._listed():
            try:
                yield locate(row, videos)
            except (KeyError, TypeError, IndexError) as error:
                raise ValueError(f"{file}: an episode lacks {error}, which {self.root / INFO} asks for") from None

    def _listed(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Yield the file that lists an episode, and the episode's row."""
        if self._one_table_each:
            file = self.root / "meta/episodes.jsonl"
            yield from ((file, row) for row in _lines(file))
            return
        files = sorted((self.root / "meta/episodes").glob("chunk-*/file-*.parquet"))
        if not files:
            raise FileNotFoundError(f"{self.root / 'meta/episodes'} holds no chunk-*/file-*.parquet")
        for file in files:
            yield from ((file, row) for row in read_table(file, without="stats/"))

    def _v21(self, row: dict[str, Any], cameras: Sequence[str]) -> EpisodeLocation:
        number = int(row["episode_index"])
        names = {"episode_chunk": number // int(self.info.get("chunks_size", 1000)), "episode_index": number}
        videos: dict[str, Section] = {
            camera: (self._path("video_path", video_key=camera, **names), 0.0, None) for camera in cameras
        }
        table = self._path("data_path", **names)
        return EpisodeLocation(number, int(row["length"]), table, None, tuple(row["tasks"]), videos)

    def _v30(self, row: dict[str, Any], cameras: Sequence[str]) -> EpisodeLocation:
        def section(camera: str) -> Section:
            name = f"videos/{camera}/"
            chunk, file = row[name + "chunk_index"], row[name + "file_index"]
            path = self._path("video_path", video_key=camera, chunk_index=chunk, file_index=file)
            end = row.get(name + "to_timestamp")
            return path, float(row[name + "from_timestamp"]), None if end is None else float(end)

        videos = {camera: section(camera) for camera in cameras}
        table = self._path("data_path", chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        number, length, first = (int(row[key]) for key in ("episode_index", "length", "dataset_from_index"))
        return EpisodeLocation(number, length, table, first, tuple(row["tasks"] or ()), videos)

    def _path(self, key: str, **names: Any) -> Path:
        pattern = self._get(key, str)
        try:
            return self.root / str(pattern.format(**names))
        except (KeyError, IndexError, ValueError, AttributeError):
            raise ValueError(f"{self.root / INFO}: {key} {pattern!r} is not a known pattern") from None

    def rows(
        self, episode: EpisodeLocation, columns: Sequence[str], optional: Sequence[str] = ()
    ) -> dict[str, list[Any]]:
        """Return columns of an episode's frames, in order, and the existing ones of ``optional``."""
        table = read_table(episode.table, [*columns, "episode_index", "frame_index"], optional=optional)
        rows = [row for row in table if row["episode_index"] == episode.number]
        numbers = [row["frame_index"] for row in rows]
        if numbers != list(range(episode.length)):
            expected = f"which are not 0 to {episode.length - 1}"
            raise ValueError(f"{episode.table}: episode {episode.number} has {len(rows)} frames, {expected}")
        present = [column for column in optional if rows and column in rows[0]]
        return {column: [row[column] for row in rows] for column in (*columns, *present)}

    def stamps(self, episode: EpisodeLocation) -> npt.NDArray[np.float64]:
        """Return the timestamp of each frame of an episode, in seconds; computed from ``fps`` without such a column.

        Raises ValueError if they are not spaced by ``fps``.
        """
        stored = self.rows(episode, (), ("timestamp",)).get("timestamp")
        if stored is None:
            return np.arange(episode.length) / self.fps
        where = f"{episode.table}: episode {episode.number}: timestamp"
        stamps = vectors([[stamp] for stamp in stored], 1, where)[:, 0]
        off = np.abs(np.diff(stamps.astype(np.float64)) - 1 / self.fps) > TOLERANCE_S + 2 * _rounding(stamps)[1:]
        if off.any() or stamps[0] < -TOLERANCE_S:
            row = int(np.argmax(off)) if off.any() else 0
            following = f" and {stamps[row + 1]:.4f}" if off.any() else ""
            raise ValueError(
                f"{where} of frames {row} and {row + 1} is {stamps[row]:.4f}{following} s, but {self.root / INFO} "
                f"declares fps {self.fps:g}: they should be {1 / self.fps:.4f} s apart, from 0 or later on"
            )
        return stamps.astype(np.float64)

    def numbers(self, episode: EpisodeLocation, column: str, width: int) -> npt.NDArray[np.float32]:
        """Return a column of vectors [n, width]."""
        return vectors(self.rows(episode, [column])[column], width, f"{episode.table}: {column}")

    def images(self, episode: EpisodeLocation, camera: str) -> Iterator[Image]:
        """Yield the n images of an episode."""
        if camera not in self.cameras:
            raise ValueError(f"{self.root} has no camera {camera!r}; it has {', '.join(self.cameras) or 'none'}")
        if camera in episode.videos:
            yield from read_video_frames(*episode.videos[camera], self.stamps(episode))
            return
        for number, cell in enumerate(self.rows(episode, [camera])[camera]):
            where = f"{episode.table}: {camera}, frame {number}"
            if not isinstance(cell, dict) or not isinstance(cell.get("bytes"), bytes):
                raise ValueError(f"{where} holds no image")
            yield np.asarray(read_image_bytes(cell["bytes"], where))

    def frames_in_videos(self, episode: EpisodeLocation, camera: str, start: Path) -> list[str]:
        """Return the paths from ``start`` of the n frames in the video of a camera. Raises ValueError without one."""
        if camera not in episode.videos:
            raise ValueError(f"{self.root}: {camera} has no video, but images in tables; leave out --keep-videos")
        path, begin, end = episode.videos[camera]
        stamps = (begin + self.stamps(episode)).tolist()
        require_in_section(path, end, stamps[-1])
        path = Path(os.path.relpath(path.absolute(), start.absolute()))
        return [frame_name(path, stamp) for stamp in stamps]

    @cached_property
    def windows(self) -> list[dict[str, Any]] | None:
        """Return the annotated windows of export_lerobot.py: first and last row, sentence, task; None without any."""
        path = self.root / ANNOTATIONS
        return read_table(path) if path.is_file() else None


def vectors(rows: Sequence[Any], width: int, what: str) -> npt.NDArray[np.float32]:
    """Return float32 [n, at least width]. Raise ValueError beginning with ``what`` for anything else."""
    try:
        table = np.asarray(rows, dtype=np.float32)
    except (TypeError, ValueError):
        table = np.empty(0, dtype=np.float32)
    if table.ndim != 2 or table.shape[1] < width or not np.isfinite(table).all():
        raise ValueError(f"{what} must be {width} finite numbers a frame, found {list(table.shape)}")
    return table


def _rounding(stamps: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the largest error of each timestamp due to float32."""
    return np.spacing(np.abs(stamps).astype(np.float32)).astype(np.float64)


def read_table(
    path: Path, columns: Sequence[str] | None = None, without: str = "", optional: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Return the rows of a parquet file after checking its page checksums. Columns of ``optional`` may be absent."""
    parquet, _ = libraries()
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            missing = [name for name in columns or () if name not in names]
            if missing:
                raise ValueError(f"it has no column {missing[0]!r}; it has {', '.join(names)}")
            if columns is not None:
                columns = [*columns, *(name for name in optional if name in names)]
            if without:
                columns = [name for name in names if not name.startswith(without)]
            rows: list[dict[str, Any]] = file.read(columns).to_pylist()
            return rows
    except (ValueError, OSError, RuntimeError, TypeError, KeyError, NotImplementedError, MemoryError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} cannot be read as parquet: {reason[:200]}") from None


def read_video_frames(
    path: Path, begin: float, end: float | None, stamps: npt.NDArray[np.float64], tolerance: float = TOLERANCE_S
) -> Iterator[Image]:
    """Yield the frame of a video at each of the ascending ``stamps``, in seconds after ``begin``.

    Raises ValueError if the video has no frame within ``tolerance`` of a timestamp, or if the timestamp lies behind
    ``end``, where another episode begins.
    """
    libraries()
    with closing(Video(path)) as video:
        for stamp, allowed in zip(begin + stamps, tolerance + _rounding(stamps.astype(np.float32)), strict=True):
            image = video.frame(stamp, allowed)
            require_in_section(path, end, stamp, tolerance)
            yield image


def require_in_section(path: Path, end: float | None, stamp: float, tolerance: float = TOLERANCE_S) -> None:
    """Raise NoFrameError if a timestamp lies behind the end of its episode in a video."""
    if end is not None and stamp > end - tolerance:
        raise NoFrameError(f"{path}: the episode ends at {end:.4f} s, but has a timestamp {stamp:.4f} s")


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise ValueError(f"{path}: line {number} is no JSON object")
            yield row

"""Write a raw CALVIN split as a LeRobot v3.0 data set at 30 fps, in which every frame is stored once.

python preprocess_data/export_lerobot.py --source-split-dir task_D_D/training --output-dir lerobot/calvin_D
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from common.arguments import command_parser, path_argument
from common.command import print_next, progress_bar, report_errors, run_command
from common.files import write_json
from preprocess_data.formats.lerobot import ANNOTATIONS, INFO, libraries
from preprocess_data.jobs.resume import output_folder
from training.data.calvin import Annotation, CalvinSplit

FPS = 30
CAMERAS = {"observation.images.static": "rgb_static", "observation.images.gripper": "rgb_gripper"}
VECTORS = {
    "action": ("rel_actions", 7),
    "observation.state": ("robot_obs", 15),
    "observation.environment_state": ("scene_obs", 24),
    "calvin.absolute_action": ("actions", 7),
}
JOINTS = tuple(f"joint_{number}" for number in range(1, 8))
NAMES = {"observation.state": ["x", "y", "z", "roll", "pitch", "yaw", "opening_width", *JOINTS, "gripper"]}
"""Names of the numbers of ``robot_obs``, from which process_lerobot.py declares the state."""
EPISODES_PER_FILE = 200
DEFAULT_TASK = "play"
"""Task of frames without an annotation (with --all-frames)."""
Kind = Literal["video", "lossless", "png"]

DESCRIPTION = """\
Write a raw CALVIN split as a LeRobot v3.0 data set: 30 fps, both cameras, action (CALVIN's rel_actions),
observation.state, observation.environment_state and the absolute actions, as float32. Every frame is stored once,
although annotated windows overlap: an episode is a stretch of uninterrupted annotated play, the task of a frame is that
of the first window with it, and meta/blockdiff_windows.parquet lists all windows, from which
process_lerobot.py makes them episodes again. Needs pyarrow and PyAV (pip install -r requirements-lerobot.txt)."""


def stretches(split: CalvinSplit, all_frames: bool) -> list[tuple[int, int]]:
    """Return (first, last) of every stretch of consecutive frames; each frame is in one stretch."""
    if all_frames:
        ids = split.frame_ids
    else:
        ids = np.unique(np.concatenate([np.arange(w.start, w.end + 1) for w in split.annotations]))
    breaks = np.diff(ids) != 1
    try:
        ends = split.ranges[:, 1]
    except FileNotFoundError:
        ends = np.empty(0, dtype=np.int64)
    breaks |= np.isin(ids[:-1], ends)  # the recording stopped there, even if the next number follows
    starts, lasts = ids[np.r_[True, breaks]], ids[np.r_[breaks, True]]
    return list(zip(starts.tolist(), lasts.tolist(), strict=True))


def export(
    split: CalvinSplit, output: Path, kind: Kind = "video", all_frames: bool = False, progress: bool = True
) -> int:
    """Write the data set and return its number of frames. ``meta/info.json``, which marks it complete, comes last."""
    libraries()
    if (output / INFO).exists():
        raise ValueError(f"{output} already holds a data set; give another --output-dir")
    with output_folder(output, "export_lerobot"):
        return _export(_Writer(split, output, kind), all_frames, progress)


def _export(writer: _Writer, all_frames: bool, progress: bool) -> int:
    split = writer.split
    parts = stretches(split, all_frames)
    with progress_bar(desc="frames", total=sum(b - a + 1 for a, b in parts), unit="frame", disable=not progress) as bar:
        for first, last in parts:
            writer.episode(first, last, bar)
    if len(writer.annotations) != len(writer.windows):
        lost = len(writer.windows) - len(writer.annotations)
        raise ValueError(f"{split.annotation_path}: {lost} windows cross an end of play in ep_start_end_ids.npy")
    writer.finish()
    return writer.frames


class _Writer:
    def __init__(self, split: CalvinSplit, output: Path, kind: Kind) -> None:
        self.split, self.output, self.kind = split, output, kind
        self.windows = sorted(split.annotations, key=lambda window: (window.start, window.end))
        self.tasks: dict[str, int] = {}
        self.rows: list[dict[str, Any]] = []  # of the open file
        self.episodes: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.videos: dict[str, _VideoFile] = {}
        self.sizes: dict[str, tuple[int, int]] = {}
        self.frames = 0
        self.all: dict[str, list[npt.NDArray[np.float32]]] = {key: [] for key in VECTORS}
        self.bright: dict[str, list[npt.NDArray[np.float64]]] = {key: [] for key in CAMERAS}

    def episode(self, first: int, last: int, bar: Any) -> None:
        number, start = len(self.episodes), self.frames
        inside = [w for w in self.windows if first <= w.start and w.end <= last]
        file = number // EPISODES_PER_FILE
        if number and number % EPISODES_PER_FILE == 0:
            self._close(file - 1)
        begin = {camera: self.videos[camera].count / FPS if camera in self.videos else 0.0 for camera in CAMERAS}
        tasks: dict[str, None] = {}
        for frame in range(first, last + 1):
            tasks[self._frame(frame, frame - first, number, file, inside)] = None
            bar.update()
        for window in inside:
            tasks[window.instruction] = None
            self.annotations.append(self._window(window, number, first))
        row: dict[str, Any] = {"episode_index": number, "tasks": list(tasks), "length": last - first + 1}
        row |= {"data/chunk_index": 0, "data/file_index": file}
        row |= {"dataset_from_index": start, "dataset_to_index": self.frames}
        for camera in CAMERAS if self.kind != "png" else ():
            row |= {
                f"videos/{camera}/chunk_index": 0,
                f"videos/{camera}/file_index": file,
                f"videos/{camera}/from_timestamp": begin[camera],
                f"videos/{camera}/to_timestamp": begin[camera] + (last - first + 1) / FPS,
            }
        self.episodes.append(row | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})

    def _window(self, window: Annotation, episode: int, first: int) -> dict[str, Any]:
        return {
            "episode_index": episode,
            "from_frame": window.start - first,
            "to_frame": window.end + 1 - first,  # one past the last
            "instruction": window.instruction,
            "task": window.task,
            "calvin_start": window.start,
            "calvin_end": window.end,
        }

    def _frame(self, frame: int, moment: int, episode: int, file: int, inside: Sequence[Annotation]) -> str:
        """Write one frame, and return its task."""
        arrays = self.split.frame(frame, [*CAMERAS.values(), *(name for name, _ in VECTORS.values())])
        sentence = next((w.instruction for w in inside if w.start <= frame <= w.end), DEFAULT_TASK)
        row: dict[str, Any] = {}
        for key, (name, _) in VECTORS.items():
            vector = arrays[name].astype(np.float32)
            self.all[key].append(vector)
            row[key] = vector
        for camera, name in CAMERAS.items():
            image = arrays[name]
            size = (image.shape[0], image.shape[1])
            if (known := self.sizes.setdefault(camera, size)) != size:
                raise ValueError(f"{self.split.frame_path(frame)}: {name} is {list(size)}, but {list(known)} before")
            if self.frames % 30 == 0:
                self.bright[camera].append(image.reshape(-1, 3) / 255.0)
            if self.kind == "png":
                content = io.BytesIO()
                Image.fromarray(image).save(content, "png")
                row[camera] = {"bytes": content.getvalue(), "path": f"frame-{frame:07d}.png"}
            else:
                if camera not in self.videos:
                    path = self.output / "videos" / camera / "chunk-000" / f"file-{file:03d}.mp4"
                    self.videos[camera] = _VideoFile(path, size, self.kind == "lossless")
                self.videos[camera].add(image)
        row |= {"timestamp": moment / FPS, "frame_index": moment, "episode_index": episode, "index": self.frames}
        row["task_index"] = self.tasks.setdefault(sentence, len(self.tasks))
        self.rows.append(row)
        self.frames += 1
        return sentence

    def _close(self, file: int) -> None:
        import pyarrow as pa

        vectors = {key: pa.list_(pa.float32(), size) for key, (_, size) in VECTORS.items()}
        kinds = vectors | {"timestamp": pa.float32()}
        if self.kind == "png":
            kinds |= {camera: pa.struct({"bytes": pa.binary(), "path": pa.string()}) for camera in CAMERAS}
        kinds |= dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), pa.int64())
        _table(self.output / f"data/chunk-000/file-{file:03d}.parquet", self.rows, pa.schema(list(kinds.items())))
        self.rows = []
        for video in self.videos.values():
            video.close()
        self.videos = {}

    def finish(self) -> None:
        import pyarrow as pa

        self._close((len(self.episodes) - 1) // EPISODES_PER_FILE)
        for row in self.annotations:  # a window's instruction is a task too
            self.tasks.setdefault(row["instruction"], len(self.tasks))
        _table(self.output / "meta/episodes/chunk-000/file-000.parquet", self.episodes, None)
        numbers = ("episode_index", "from_frame", "to_frame", "calvin_start", "calvin_end")
        schema = pa.schema([(n, pa.int64()) for n in numbers] + [("instruction", pa.string()), ("task", pa.string())])
        _table(self.output / ANNOTATIONS, self.annotations, schema)
        tasks = [{"task_index": number, "__index_level_0__": task} for task, number in self.tasks.items()]
        _table(self.output / "meta/tasks.parquet", tasks, None, _PANDAS)
        write_json(self.output / "meta/stats.json", self._statistics(), indent=4)
        write_json(self.output / INFO, self._info(), indent=4)

    def _statistics(self) -> dict[str, Any]:
        found = {}
        for key, rows in self.all.items():
            found[key] = _spread(np.stack(rows).astype(np.float64), self.frames)
        for key, pixels in self.bright.items():  # of one frame in a second, shaped [3, 1, 1]
            spread = _spread(np.concatenate(pixels), len(pixels))
            found[key] = {n: v if n == "count" else [[[x]] for x in v] for n, v in spread.items()}
        return found

    def _info(self) -> dict[str, Any]:
        def feature(dtype: str, shape: Sequence[int], names: Any = None) -> dict[str, Any]:
            return {"dtype": dtype, "shape": list(shape), "names": names}

        features = {key: feature("float32", [size], NAMES.get(key)) for key, (_, size) in VECTORS.items()}
        for camera, (height, width) in self.sizes.items():
            kind = "image" if self.kind == "png" else "video"
            entry = feature(kind, [height, width, 3], ["height", "width", "channels"])
            if self.kind != "png":
                entry["info"] = {
                    "video.height": height,
                    "video.width": width,
                    "video.codec": "h264",
                    "video.pix_fmt": "gbrp" if self.kind == "lossless" else "yuv420p",
                    "video.is_depth_map": False,
                    "video.fps": FPS,
                    "video.channels": 3,
                    "has_audio": False,
                }
            features[camera] = entry
        features["timestamp"] = feature("float32", [1])
        features |= {key: feature("int64", [1]) for key in ("frame_index", "episode_index", "index", "task_index")}
        videos = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        return {
            "codebase_version": "v3.0",
            "robot_type": "panda (CALVIN)",
            "total_episodes": len(self.episodes),
            "total_frames": self.frames,
            "total_tasks": len(self.tasks),
            "chunks_size": 1000,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": FPS,
            "splits": {"train": f"0:{len(self.episodes)}"},
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": None if self.kind == "png" else videos,
            "features": features,
        }


class _VideoFile:
    """An mp4 file at 30 fps with a key frame every two frames, because episodes start anywhere in it."""

    def __init__(self, path: Path, size: tuple[int, int], lossless: bool) -> None:
        _, av = libraries()
        path.parent.mkdir(parents=True, exist_ok=True)
        if not lossless and (size[0] % 2 or size[1] % 2):
            raise ValueError(f"images of {size[0]} x {size[1]} do not fit yuv420p; give --pictures lossless or png")
        self._container = av.open(str(path), "w", options={"video_track_timescale": str(FPS * 512)})
        self._stream = self._container.add_stream("libx264rgb" if lossless else "libx264", rate=FPS)
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "rgb24" if lossless else "yuv420p"
        quality = {"qp": "0"} if lossless else {"crf": "18"}
        self._stream.options = {"g": "2", "bf": "0", "preset": "veryfast", **quality}
        self._stream.codec_context.time_base = Fraction(1, FPS)
        self._frame = av.VideoFrame
        self.count = 0

    def add(self, image: npt.NDArray[np.uint8]) -> None:
        frame = self._frame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.pts, frame.time_base = self.count, Fraction(1, FPS)
        self._container.mux(self._stream.encode(frame))
        self.count += 1

    def close(self) -> None:
        self._container.mux(self._stream.encode())
        self._container.close()


_PANDAS = {
    b"pandas": json.dumps(
        {
            "index_columns": ["__index_level_0__"],
            "column_indexes": [],
            "columns": [
                {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
                {"name": None, "field_name": "__index_level_0__", "pandas_type": "unicode", "numpy_type": "object"},
            ],
            "pandas_version": "2.2.0",
        }
    ).encode()
}


def _table(path: Path, rows: list[dict[str, Any]], schema: Any, metadata: dict[bytes, bytes] | None = None) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(
        pa.Table.from_pylist(rows, schema=schema).replace_schema_metadata(metadata), path, write_page_checksum=True
    )


def _spread(values: npt.NDArray[np.float64], count: int) -> dict[str, Any]:
    parts = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    return {name: [float(x) for x in part] for name, part in parts.items()} | {"count": [count]}


def parser() -> argparse.ArgumentParser:
    made = command_parser(DESCRIPTION)
    add = made.add_argument
    add("--source-split-dir", type=path_argument, required=True, metavar="PATH", help="raw split, also in its zip")
    add("--output-dir", type=path_argument, required=True, metavar="PATH", help="folder to write")
    add(
        "--pictures",
        choices=("video", "lossless", "png"),
        default="video",
        help="h264 (default; small, nearly the same), h264 without loss, or PNG in the tables (no loss, largest)",
    )
    add("--all-frames", action="store_true", help="also frames without an annotation")
    return made


@report_errors("export_lerobot")
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    split = CalvinSplit(options.source_split_dir)
    frames = export(split, options.output_dir, options.pictures, options.all_frames)
    listed = sum(len(window.frames) for window in split.annotations)
    print(f"{options.output_dir}: {frames} frames, each once (its {len(split.annotations)} windows name {listed})")
    print_next("blockdiff-vla inspect {folder}", folder=options.output_dir)
    return 0


if __name__ == "__main__":
    run_command(main)

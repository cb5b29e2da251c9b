"""A recording of the desk on disk: its finished episodes, and how missing ones are recorded and appended."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.command import progress_bar
from common.files import remove, write_bytes
from common.folder_lock import hold, is_lock
from preprocess_data.desk_demos.files import EpisodeEntry, json_bytes, record_episode, write_index_files
from preprocess_data.desk_demos.play import Settings
from preprocess_data.desk_demos.preview import write_preview
from preprocess_data.jobs.workers import in_processes

_STATE = ".recording"
"""Folder in the split: settings.json, one JSON per finished episode, unfinished episodes."""


class SettingsDiffer(ValueError):
    """The folder holds a recording with other options."""


@dataclass(frozen=True)
class Summary:
    """Contents of the split in ``path``, and the cost of its new frames.

    ``of_each``: the smallest and the largest number of windows of a task.

    ``milliseconds``: CPU time of a frame, None if no frame was missing.
    """

    path: Path
    episodes: int
    frames: int
    windows: int
    tasks: int
    of_each: tuple[int, int]
    failed: int
    megabytes: float
    milliseconds: float | None
    images: tuple[Path, ...] = ()


def finished_episodes(split: Path) -> Iterator[EpisodeEntry]:
    """Yield the finished episodes of a recording, in order."""
    for number in range(10**7):
        path = split / _STATE / "episodes" / f"{number:06d}.json"
        if not path.is_file():
            return
        yield EpisodeEntry.from_json(json.loads(path.read_text(encoding="utf-8")))


def settings_of(split: Path) -> dict[str, Any]:
    """Return the settings of a recording. Raises FileNotFoundError if the folder holds none."""
    file = split / _STATE / "settings.json"
    if not file.is_file():
        raise FileNotFoundError(f"{split} is no recording of the desk: {file} does not exist")
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


class Recording:
    """A split on disk: its finished episodes, and how the next one is appended.

    ``base``: a finished recording whose episodes come first; its frames are linked, or copied to another file system.
    """

    def __init__(self, out: Path, settings: Settings, base: Path | None = None) -> None:
        self.settings = settings
        self.path = out / settings.split
        self.state = self.path / _STATE
        self._open()
        earlier = [] if base is None else list(finished_episodes(base))
        self.offset = len(earlier)
        self.episodes = list(finished_episodes(self.path))
        if len(self.episodes) > self.total:
            found = len(self.episodes) - self.offset
            raise SettingsDiffer(f"{self.path} has {found} episodes already; --episodes {settings.episodes} is fewer")
        for entry in earlier[len(self.episodes) :]:
            assert base is not None
            self._link(base, entry)

    @property
    def total(self) -> int:
        """Number of episodes of the complete split."""
        return self.offset + self.settings.episodes

    def _link(self, base: Path, entry: EpisodeEntry) -> None:
        for frame in range(entry.first, entry.last + 1):
            source, target = base / f"episode_{frame:07d}.npz", self.path / f"episode_{frame:07d}.npz"
            if not target.is_file():
                try:
                    os.link(source, target)
                except OSError:  # another file system
                    write_bytes(target, source.read_bytes())
        self._add(json_bytes(asdict(entry)), entry)

    def _add(self, content: bytes, entry: EpisodeEntry) -> None:
        write_bytes(self.state / "episodes" / f"{len(self.episodes):06d}.json", content)
        self.episodes.append(entry)

    def _open(self) -> None:
        file, wanted = self.state / "settings.json", self.settings.as_dict()
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            different = [k for k in wanted if found.get(k) != wanted[k]]
            if different == ["episodes"] and len(self.settings.scenes) == 1:
                different = []  # a recording of one scene can be extended
            if different and self._has_episodes():
                if "version" in different:
                    raise SettingsDiffer(
                        f"{self.path} is a recording of an earlier version, which draws other tasks and has no "
                        "expert_actions; give another --out"
                    )
                key = different[0]
                raise SettingsDiffer(
                    f"{self.path} was recorded with {key} {_short(found.get(key))}, now it is {_short(wanted[key])}; "
                    "give the same options, or another --out"
                )
        elif any(not is_lock(file.name) for file in self.path.iterdir()):
            raise FileExistsError(f"{self.path} holds other files; give another --out")
        (self.state / "episodes").mkdir(parents=True, exist_ok=True)
        for unfinished in self.state.glob("*.tmp"):  # left by workers that were killed
            remove(unfinished)
        write_bytes(file, json_bytes(wanted))

    def _has_episodes(self) -> bool:
        return any(self.state.glob("episodes/*.json")) or any(self.state.glob("[0-9]*/episode.json"))

    def folder(self, episode: int) -> Path:
        """Return the folder that a worker writes an episode to; its frames are numbered when all earlier ones are."""
        return self.state / f"{episode:06d}"

    def missing(self) -> list[int]:
        """Return the episodes that are not recorded yet."""
        first = len(self.episodes) - self.offset
        return [k for k in range(first, self.settings.episodes) if not self.folder(k).is_dir()]

    def append_next(self) -> bool:
        """Number the frames of the next episode if it is recorded. Can be interrupted anywhere and repeated."""
        folder = self.folder(len(self.episodes) - self.offset)
        if len(self.episodes) >= self.total or not folder.is_dir():
            return False
        local = json.loads((folder / "episode.json").read_text(encoding="utf-8"))
        first = self.episodes[-1].last + 1 if self.episodes else 0
        for i in range(local["frames"]):
            frame = folder / f"{i:06d}.npz"
            if frame.is_file():  # else it was moved before an interruption
                os.replace(frame, self.path / f"episode_{first + i:07d}.npz")
        local["first"] = first
        local["windows"] = [[first + a, first + b, *rest] for a, b, *rest in local["windows"]]
        self._add(json_bytes(local), EpisodeEntry.from_json(local))
        remove(folder)  # a failure has no effect: the episode is numbered
        return True


def _short(value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def record(
    out: Path,
    settings: Settings,
    program: str,
    workers: int = 1,
    progress: bool = True,
    preview: bool = True,
    base: Path | None = None,
) -> Summary:
    """Record the missing episodes of `settings` under `out`/`settings.split`, after those of the recording `base`.

    `preview` writes a contact sheet and a clip next to the split. Raises ValueError if the folder holds a recording
    with other settings or another process records there, FileExistsError if it holds anything else.
    """
    with hold(out / settings.split, program, "--out "):
        recording = Recording(out, settings, base)
        cost = _record_missing(recording, workers, progress)
        write_index_files(recording.path, recording.episodes, settings)
        files = write_preview(recording.path, out) if preview else ()
    return _summary(recording, cost, files)


def _record_missing(recording: Recording, workers: int, progress: bool) -> float | None:
    """Record, and return the milliseconds of CPU time of a frame; None if no episode was missing."""
    settings = recording.settings
    jobs = [(settings, k, recording.folder(k)) for k in recording.missing()]
    new, seconds = 0, 0.0
    with progress_bar(total=recording.total, unit="episode", desc=settings.split, disable=not progress) as bar:

        def advance() -> None:
            while recording.append_next():
                pass
            episodes = recording.episodes
            frames, windows = sum(e.frames for e in episodes), sum(len(e.windows) for e in episodes)
            bar.set_postfix_str(f"{frames} frames, {windows} windows", refresh=False)
            bar.update(len(episodes) - bar.n)

        advance()
        for frames, cpu in in_processes(record_episode, jobs, workers):
            new, seconds = new + frames, seconds + cpu
            advance()
    return seconds / new * 1000 if new else None


def _summary(recording: Recording, milliseconds: float | None, images: tuple[Path, ...]) -> Summary:
    episodes = recording.episodes
    counts = Counter(task for e in episodes for _, _, task, _ in e.windows)
    with os.scandir(recording.path) as entries:
        size = sum(entry.stat().st_size for entry in entries if entry.is_file())
    return Summary(
        path=recording.path,
        episodes=len(episodes),
        frames=sum(e.frames for e in episodes),
        windows=sum(len(e.windows) for e in episodes),
        tasks=len(counts),
        of_each=(min(counts.values(), default=0), max(counts.values(), default=0)),
        failed=sum(len(e.failed) for e in episodes),
        megabytes=size / 1e6,
        milliseconds=milliseconds,
        images=images,
    )


def describe(summary: Summary) -> str:
    """Return a summary as text."""
    cost = "no frame was missing" if summary.milliseconds is None else f"{summary.milliseconds:.1f} ms of CPU per frame"
    least, most = summary.of_each
    lines = [f"preview: {path}" for path in summary.images]
    lines.append(
        f"{summary.path}: {summary.episodes} episodes, {summary.frames} frames, {summary.windows} annotated windows of "
        f"{summary.tasks} tasks ({least} to {most} of each), {summary.failed} attempts failed, "
        f"{summary.megabytes:.1f} MB, {cost}"
    )
    return "\n".join(lines)

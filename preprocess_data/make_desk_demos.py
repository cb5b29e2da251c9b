"""Record demonstrations on the embedded desk as a raw CALVIN split, which process_calvin.py and training read.

python preprocess_data/make_desk_demos.py --out data/desk --episodes 100 --scenes A,B,C --workers 4
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, fields
from pathlib import Path

from tqdm import tqdm

from common.arguments import command_parser, name_list, path_argument, real, whole
from common.command import run_command
from common.files import remove, write_bytes
from common.folder_lock import hold, is_lock
from policy_rollout.calvin.tasks import DOORS_AND_LIGHTS, TASK_NAMES
from policy_rollout.desk.layout import SCENES
from policy_rollout.desk.rendering import RENDERERS, check_renderer
from policy_rollout.desk.rendering.cameras import checked_jitter
from preprocess_data.desk_demos.files import EpisodeEntry, json_bytes, record_episode, write_index_files
from preprocess_data.desk_demos.play import INSTRUCTIONS, SPLITS, Settings
from preprocess_data.desk_demos.preview import write_preview
from preprocess_data.jobs.workers import in_processes

DESCRIPTION = """\
Record demonstrations on the embedded desk: scripted experts with noise do one task after the other, as CALVIN's
operators did. A stretch in which the task oracle confirms a task is annotated with an instruction. The result is a raw
CALVIN split: OUT/training or OUT/validation.

An episode is one run of uninterrupted play with --tasks-per-episode attempts, about 40 frames each at 30 Hz.
Episode k depends on the options and k only: any number of workers gives the same bytes. A stopped recording resumes
when the same command is given again."""

EPILOG = """\
examples:
  make_desk_demos.py --out data/desk --episodes 40
      40 episodes in scene D: about 12000 frames, 300 annotated windows
  make_desk_demos.py --out data/desk_ABC --episodes 300 --scenes A,B,C --workers 8
  make_desk_demos.py --out data/desk_ABC --episodes 20 --scenes D --split validation
      train on three scenes, evaluate on a fourth: CALVIN's ABC -> D
  make_desk_demos.py --out data/tiny --episodes 4 --static-size 64 --gripper-size 64 --tasks open_drawer,close_drawer

then:
  python preprocess_data/process_calvin.py --source-split-dir data/desk/training --output-dir data/desk_processed"""

_SETS = {"all": TASK_NAMES, "doors_and_lights": DOORS_AND_LIGHTS}
_STATE = ".recording"
"""Folder in the split: settings.json, one JSON per finished episode, unfinished episodes."""


class SettingsDiffer(ValueError):
    """The folder holds a recording with other options."""


@dataclass(frozen=True)
class Summary:
    """Contents of the split in ``path``, and the cost of its new frames.

    ``milliseconds``: CPU time of a frame, None if no frame was missing.
    """

    path: Path
    episodes: int
    frames: int
    windows: int
    tasks: int
    failed: int
    megabytes: float
    milliseconds: float | None
    images: tuple[Path, ...] = ()


class Recording:
    """A split on disk: its finished episodes, and how the next one is appended."""

    def __init__(self, out: Path, settings: Settings) -> None:
        self.settings = settings
        self.path = out / settings.split
        self.state = self.path / _STATE
        self._open()
        self.episodes = list(self._finished())
        if len(self.episodes) > settings.episodes:
            raise SettingsDiffer(
                f"{self.path} has {len(self.episodes)} episodes already; --episodes {settings.episodes} is fewer"
            )

    def _open(self) -> None:
        file, wanted = self.state / "settings.json", self.settings.as_dict()
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            different = [k for k in wanted if found.get(k) != wanted[k]]
            if different == ["episodes"] and len(self.settings.scenes) == 1:
                different = []  # a recording of one scene can be extended
            if different and self._has_episodes():
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

    def _finished(self) -> Iterator[EpisodeEntry]:
        for number in range(10**7):
            path = self.state / "episodes" / f"{number:06d}.json"
            if not path.is_file():
                return
            yield EpisodeEntry.from_json(json.loads(path.read_text(encoding="utf-8")))

    def folder(self, episode: int) -> Path:
        """Return the folder that a worker writes an episode to; its frames are numbered when all earlier ones are."""
        return self.state / f"{episode:06d}"

    def missing(self) -> list[int]:
        """Return the episodes that are not recorded yet."""
        return [k for k in range(len(self.episodes), self.settings.episodes) if not self.folder(k).is_dir()]

    def append_next(self) -> bool:
        """Number the frames of the next episode if it is recorded. Can be interrupted anywhere and repeated."""
        number = len(self.episodes)
        folder = self.folder(number)
        if number >= self.settings.episodes or not folder.is_dir():
            return False
        local = json.loads((folder / "episode.json").read_text(encoding="utf-8"))
        first = self.episodes[-1].last + 1 if self.episodes else 0
        for i in range(local["frames"]):
            frame = folder / f"{i:06d}.npz"
            if frame.is_file():  # else it was moved before an interruption
                os.replace(frame, self.path / f"episode_{first + i:07d}.npz")
        local["first"] = first
        local["windows"] = [[first + a, first + b, *rest] for a, b, *rest in local["windows"]]
        write_bytes(self.state / "episodes" / f"{number:06d}.json", json_bytes(local))
        remove(folder)  # a failure has no effect: the episode is numbered
        self.episodes.append(EpisodeEntry.from_json(local))
        return True


def _short(value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def make_demos(out: Path, settings: Settings, workers: int = 1, progress: bool = True, preview: bool = True) -> Summary:
    """Record the missing episodes of `settings` under `out`/`settings.split`.

    `preview` writes a contact sheet and a clip next to the split. Raises ValueError if the folder holds a recording
    with other settings or another process records there, FileExistsError if it holds anything else.
    """
    with hold(out / settings.split, "make_desk_demos", "--out "):
        recording = Recording(out, settings)
        cost = _record_missing(recording, workers, progress)
        write_index_files(recording.path, recording.episodes, settings)
        files = write_preview(recording.path, out) if preview else ()
    return _summary(recording, cost, files)


def _record_missing(recording: Recording, workers: int, progress: bool) -> float | None:
    """Record, and return the milliseconds of CPU time of a frame; None if no episode was missing."""
    settings = recording.settings
    jobs = [(settings, k, recording.folder(k)) for k in recording.missing()]
    new, seconds = 0, 0.0
    with tqdm(total=settings.episodes, unit="episode", desc=settings.split, disable=not progress) as bar:

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
    with os.scandir(recording.path) as entries:
        size = sum(entry.stat().st_size for entry in entries if entry.is_file())
    return Summary(
        path=recording.path,
        episodes=len(episodes),
        frames=sum(e.frames for e in episodes),
        windows=sum(len(e.windows) for e in episodes),
        tasks=len({task for e in episodes for _, _, task, _ in e.windows}),
        failed=sum(len(e.failed) for e in episodes),
        megabytes=size / 1e6,
        milliseconds=milliseconds,
        images=images,
    )


def describe(summary: Summary) -> str:
    """Return a summary as text."""
    cost = "no frame was missing" if summary.milliseconds is None else f"{summary.milliseconds:.1f} ms of CPU per frame"
    lines = [f"preview: {path}" for path in summary.images]
    lines.append(
        f"{summary.path}: {summary.episodes} episodes, {summary.frames} frames, {summary.windows} annotated windows of "
        f"{summary.tasks} tasks, {summary.failed} attempts failed, {summary.megabytes:.1f} MB, {cost}"
    )
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------------------- command line


def parser() -> argparse.ArgumentParser:
    made = command_parser(DESCRIPTION, EPILOG, prog="make_desk_demos.py")
    add = made.add_argument
    add("--out", type=path_argument, required=True, metavar="DIR", help="the split is DIR/training or DIR/validation")
    add("--episodes", type=int, required=True, metavar="N", help="runs of play; with several scenes, shared evenly")
    add("--tasks-per-episode", type=whole(1), default=8, metavar="N", help="tasks attempted in a run (default 8)")
    add("--split", choices=SPLITS, default="training", help="which split, with its own random numbers")
    add("--scenes", default="D", help=f"of {','.join(SCENES)}, separated by commas (default D)")
    add("--tasks", default="all", metavar="T,T", help="only these tasks, or doors_and_lights for eight (default: all)")
    add(
        "--instructions",
        choices=tuple(INSTRUCTIONS),
        default="training",
        help="wording: that of training (default, also for validation, so that splits differ in the scenes only) or "
        "sentences that training never contains; the frames are the same",
    )
    add("--seed", type=whole(0), default=0, help="of everything random (default 0)")
    add("--workers", type=whole(1), default=1, help="processes (default 1); the result does not depend on it")
    add("--static-size", type=whole(1), default=200, metavar="PX", help="edge of the static camera (200, CALVIN's)")
    add("--gripper-size", type=whole(1), default=84, metavar="PX", help="edge of the gripper camera (84, CALVIN's)")
    add("--depth", action="store_true", help="record depth_static and depth_gripper too (three times the size)")
    add("--no-noise", action="store_true", help="experts without disturbances; policies learn less from them")
    add("--camera-jitter", type=real(0), default=0.0, metavar="X", help="0 none, 1 clearly visible; per episode")
    add("--light-jitter", type=real(0), default=0.0, metavar="X", help="the same for the light")
    add("--renderer", choices=RENDERERS, default="raycast", help="raycast needs no OpenGL (default)")
    add("--no-preview", action="store_true", help="leave out the contact sheet and the clip")
    return made


def settings_of(options: argparse.Namespace) -> Settings:
    """Return the recording's settings. Raise ValueError naming the option, its value and what is allowed."""
    scenes = name_list("--scenes", options.scenes, SCENES)
    tasks = _SETS.get(options.tasks) or name_list("--tasks", options.tasks, TASK_NAMES)
    if options.episodes < 1:
        raise ValueError(f"--episodes is {options.episodes}; it must be at least 1")
    for name in ("camera_jitter", "light_jitter"):
        checked_jitter(getattr(options, name), f"--{name.replace('_', '-')}")
    if options.episodes < len(scenes):
        raise ValueError(f"--episodes is {options.episodes}; {len(scenes)} scenes need at least one each")
    check_renderer(options.renderer)
    shared = {field.name: getattr(options, field.name) for field in fields(Settings) if hasattr(options, field.name)}
    return Settings(**{**shared, "scenes": scenes, "tasks": tasks, "noise": not options.no_noise})


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    try:
        settings = settings_of(options)
        summary = make_demos(options.out, settings, options.workers, preview=not options.no_preview)
    except (ValueError, OSError, BrokenProcessPool) as error:
        # The error of a full disk has no file name.
        where = f"{options.out}: " if isinstance(error, OSError) and error.filename is None else ""
        print(f"make_desk_demos: {where}{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("make_desk_demos: stopped; give the same command again to resume", file=sys.stderr)
        return 130
    print(describe(summary))
    return 0


if __name__ == "__main__":
    run_command(main)

"""Who records: one episode at a time in this process, or in processes of their own that end with it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from preprocess_data.desk_demos.files import Moments, Placed, json_bytes, npz_bytes
from preprocess_data.desk_demos.play import Array, Frame, Player, Settings
from preprocess_data.jobs.workers import in_processes

Job = tuple[Settings, int, Path]  # the recording, the number of the episode, the folder it becomes

_player: Player | None = None


def record(job: Job) -> tuple[int, float]:
    """Record one episode as folder `job[2]`, which appears when it is complete; returns its frames and CPU seconds."""
    settings, episode, folder = job
    global _player  # the desk of the last episode is used again
    if _player is None or _player.settings != settings:
        _player = Player(settings)
    began = time.process_time()
    # Of this process alone: a worker whose recording was killed may still be at the same episode for a moment.
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    rows: dict[str, list[Array]] = {"robot_obs": [], "scene_obs": [], "actions": []}

    def sink(number: int, frame: Frame) -> None:
        (unfinished / f"{number:06d}.npz").write_bytes(npz_bytes(frame))
        for key, held in rows.items():
            held.append(frame[key])

    played = _player.play(episode, sink)
    placed = Placed(
        first=0,
        frames=played.frames,
        scene=settings.scene(episode),
        windows=tuple((w.start, w.end, w.task, w.instruction) for w in played.windows),
        failed=played.failed,
        moments={key: Moments.of(np.array(held)) for key, held in rows.items()},
    )
    (unfinished / "episode.json").write_bytes(json_bytes(placed.as_json()))
    os.replace(unfinished, folder)
    return played.frames, time.process_time() - began


def record_all(jobs: Sequence[Job], workers: int) -> Iterator[tuple[int, float]]:
    """Record episodes in up to `workers` processes; frames and CPU seconds of each, in order."""
    return in_processes(record, jobs, workers)

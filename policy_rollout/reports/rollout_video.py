"""Films of chains, and what the policy expected to see beside what it then saw.

    <folder>/videos/chain_0007_2_done.gif                a chain, with what was asked for and what came of it (or .mp4)
    <folder>/input_predict_truth/chain_0007_task_1.png   moments of its first task: seen | expected | T steps later

Written when a chain is over, before its record: a chain whose record is there was filmed, and one that is played again
because a process was killed gets the same files anew.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from common.files import remove
from common.image_grid import (
    FAINT,
    GREEN,
    RED,
    RgbImage,
    add_caption,
    image_grid,
    resize_to_height,
    side_by_side,
    write_png,
)
from common.video import require_mp4, write_gif, write_mp4
from models.processing.image import fit
from policy_rollout.closed_loop.env_slot import ChainJob, ChainRecord
from policy_rollout.policies.action_chunking import Actions
from policy_rollout.policies.interface import Observation

RATE = 30.0
"""Control steps per second: films play at the robot's own speed."""
HOLD = 10
"""Frames for which a task's outcome is shown."""
MOMENTS = 4
"""Of a task, at most so many are pictured."""
FILM_HEIGHT, MOMENT_HEIGHT = 256, 192


class FuturePredictor(Protocol):
    """A policy that can tell which images it expects."""

    @property
    def act_step(self) -> int: ...

    def predict_future(self, observations: Sequence[Observation]) -> NDArray[np.uint8]:
        """The views `act_step` control steps later, uint8 [B, V, R, R, 3]."""
        ...


@dataclass
class _Task:
    """What was seen while one task was tried: images of the static camera by their step (that before the first is
    -1), and every observation by the step before which the policy looked."""

    images: dict[int, RgbImage] = field(default_factory=dict)
    looks: dict[int, Observation] = field(default_factory=dict)


@dataclass
class RolloutVideoRecorder:
    """A ``Recorder`` of the first ``count`` chains, whoever plays them."""

    folder: Path
    count: int
    policy: FuturePredictor
    write_film: Callable[[Path, Sequence[RgbImage], float], None] = write_gif
    suffix: str = "gif"
    film_every: int = 2
    _tasks: dict[int, list[_Task]] = field(default_factory=dict)

    def wants(self, job: ChainJob) -> bool:
        return job.index < self.count

    def without_film(self, recorded: Iterable[int]) -> list[int]:
        """The chains that are to be filmed, but were played before without."""
        videos = self.folder / "videos"
        return [i for i in sorted(recorded) if i < self.count and not any(videos.glob(f"chain_{i:04d}_*"))]

    def began(self, job: ChainJob) -> None:
        self._tasks[job.index] = []

    def looked(self, job: ChainJob, place: int, step: int, observation: Observation, chunk: Actions) -> None:
        task = self._task(job, place)
        task.looks[step] = observation
        if step == 0:
            task.images[-1] = observation.rgb_static

    def filmed(self, job: ChainJob, place: int, step: int, image: NDArray[np.uint8]) -> None:
        self._task(job, place).images[step] = image

    def ended(self, job: ChainJob, record: ChainRecord) -> None:
        tasks = self._tasks.pop(job.index)
        name = f"chain_{job.index:04d}"
        for kind in ("videos", "input_predict_truth"):  # whatever is left of it being played before
            for old in (self.folder / kind).glob(f"{name}_*"):
                if (why := remove(old)) is not None:
                    print(f"warning: {old}, of the chain as it was played before, stays ({why})", file=sys.stderr)
        film = [frame for place, task in enumerate(tasks) for frame in _scenes(job, record, place, task)]
        file = self.folder / "videos" / f"{name}_{record.completed}_done.{self.suffix}"
        self.write_film(file, film, RATE / self.film_every)
        for place, task in enumerate(tasks):
            rows = self._moments(task)
            if rows:
                page = image_grid(rows, columns=1, gap=0)
                heading = add_caption(page[:0], job.instructions[place], *_outcome(record, place))
                file = self.folder / "input_predict_truth" / f"{name}_task_{place + 1}.png"
                write_png(file, np.concatenate([heading, page]))

    def _task(self, job: ChainJob, place: int) -> _Task:
        tasks = self._tasks[job.index]
        while len(tasks) <= place:
            tasks.append(_Task())
        return tasks[place]

    def _moments(self, task: _Task) -> list[RgbImage]:
        """Rows of saw | expected | showed, of moments spread over the task after which it went on for T steps."""
        later = self.policy.act_step
        known = [(step, after) for step in task.looks if (after := _views_at(task, step + later)) is not None]
        chosen = (
            [known[i] for i in sorted({round(x) for x in np.linspace(0, len(known) - 1, MOMENTS)})] if known else []
        )
        if not chosen:
            return []
        expected = self.policy.predict_future([task.looks[step] for step, _ in chosen])  # [B, V, R, R, 3]
        return [
            _row(step, later, task.looks[step], views, after)
            for (step, after), views in zip(chosen, expected, strict=True)
        ]


def make_recorder(settings: Mapping[str, Any], folder: Path, policy: FuturePredictor) -> RolloutVideoRecorder | None:
    """As `num_videos` and `save_rollout_as_video` ask. Raises ``ValueError`` where mp4 needs a package."""
    count = int(settings["num_videos"])
    if not count:
        return None
    if not settings["save_rollout_as_video"]:
        return RolloutVideoRecorder(folder, count, policy)
    require_mp4("save_rollout_as_video=true")
    return RolloutVideoRecorder(folder, count, policy, write_mp4, "mp4")


def _scenes(job: ChainJob, record: ChainRecord, place: int, task: _Task) -> list[RgbImage]:
    """One task's frames, and its outcome for a moment."""
    frames = []
    told = job.instructions[place]
    for step, image in sorted(task.images.items()):
        note = f"task {place + 1} of {len(job.tasks)}, step {step + 1}"
        frames.append(add_caption(resize_to_height(image, FILM_HEIGHT), told, note))
    if frames:
        last = resize_to_height(task.images[max(task.images)], FILM_HEIGHT)
        frames += [add_caption(last, told, *_outcome(record, place))] * HOLD
    return frames


def _outcome(record: ChainRecord, place: int) -> tuple[str, tuple[int, int, int]]:
    done = place < record.completed
    told = f"task {place + 1} of {len(record.tasks)}: {'done' if done else 'not done'} in {record.steps[place]} steps"
    return told, GREEN if done else RED


def _views_at(task: _Task, step: int) -> list[RgbImage] | None:
    """What the cameras showed before that step, the static one first; None where nobody looked and nobody filmed."""
    if step in task.looks:
        return _views(task.looks[step])
    filmed = task.images.get(step - 1)
    return None if filmed is None else [filmed]


def _views(observation: Observation) -> list[RgbImage]:
    gripper = observation.rgb_gripper
    return [observation.rgb_static] if gripper is None else [observation.rgb_static, gripper]


def _row(step: int, later: int, seen: Observation, expected: NDArray[np.uint8], after: list[RgbImage]) -> RgbImage:
    """Three images as the model sees them (its crop, its resolution), told apart below.

    The static view's mean difference of expected and true is told beside that of seen and true: who expects the world
    to stand still is off by the latter.
    """
    resolution = expected.shape[1]
    saw, showed = ([_as_model(view, resolution) for view in views] for views in (_views(seen), after))
    off, still = (_difference(image, showed[0]) for image in (expected[0], saw[0]))
    views = len(expected)
    told = (
        (saw[:views], f"step {step}: it saw", ""),
        (list(expected), f"it expected in {later} steps", f"off by {off:.1f} of 255"),
        (showed[:views], f"{later} steps later it was", f"standing still is off by {still:.1f}"),
    )
    height = max(MOMENT_HEIGHT, resolution)
    return image_grid(
        [add_caption(side_by_side(images, height), text, note or " ", FAINT) for images, text, note in told], 3
    )


def _as_model(image: RgbImage, resolution: int) -> RgbImage:
    return np.ascontiguousarray(fit(image, resolution).transpose(1, 2, 0))


def _difference(one: RgbImage, other: RgbImage) -> float:
    return float(np.abs(one.astype(np.float64) - other.astype(np.float64)).mean())

"""Videos of chains, and images of the policy's future prediction and the true frames.

    <folder>/videos/chain_0007_2_done.gif                a chain, with instructions and outcome (or .mp4)
    <folder>/input_predict_truth/chain_0007_task_1.png   steps of its first task: input | prediction | T steps later
    <folder>/input_predict_truth/chain_0007_task_1.json  errors of these predictions, and of the input in their place

Written when a chain is finished, before its record: every recorded chain has its files, and a chain that is run again
after a kill overwrites them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from common.files import remove, write_json
from common.image_grid import (
    GREEN,
    RED,
    FrameErrors,
    RgbImage,
    add_caption,
    frame_errors,
    image_grid,
    resize_to_height,
    side_by_side,
    write_png,
)
from common.video import require_mp4, write_gif, write_mp4
from models.processing.image import fit
from policy_rollout.closed_loop.interface import ChainJob, ChainRecord, PolicyCall
from policy_rollout.policies.interface import ImagePredictor, Observation

RATE = 30.0
"""Control steps per second: videos have the robot's own speed."""
OUTCOME_FRAMES = 10
"""Frames that show a task's outcome."""
MAX_PREDICTIONS = 4
"""Largest number of predictions shown of one task."""
VIDEO_HEIGHT, PREDICTION_HEIGHT = 256, 192


class FuturePredictor(Protocol):
    """A policy that predicts future images."""

    @property
    def act_step(self) -> int: ...

    def predict_future(self, observations: Sequence[Observation]) -> NDArray[np.uint8]:
        """Return the predicted camera views `act_step` control steps later, uint8 [B, V, R, R, 3]."""
        ...


@dataclass
class _Task:
    """Frames of one task: images of the static camera by step (-1: before the first), and by step observations and
    predicted image codes."""

    images: dict[int, RgbImage] = field(default_factory=dict)
    observations: dict[int, Observation] = field(default_factory=dict)
    codes: dict[int, NDArray[np.int64]] = field(default_factory=dict)


@dataclass
class RolloutVideoRecorder:
    """A ``Recorder`` of the first ``count`` chains."""

    folder: Path
    count: int
    policy: FuturePredictor
    write_video: Callable[[Path, Sequence[RgbImage], float], None] = write_gif
    suffix: str = "gif"
    frame_interval: int = 2
    _tasks: dict[int, list[_Task]] = field(default_factory=dict)

    @property
    def wants_codes(self) -> bool:
        return isinstance(self.policy, ImagePredictor) and self.policy.predicts_with_actions

    def selects(self, job: ChainJob) -> bool:
        return job.index < self.count

    def without_video(self, recorded: Iterable[int]) -> list[int]:
        """Return the chains of ``recorded`` that this recorder selects but that have no video."""
        videos = self.folder / "videos"
        return [i for i in sorted(recorded) if i < self.count and not any(videos.glob(f"chain_{i:04d}_*"))]

    def start_chain(self, job: ChainJob) -> None:
        self._tasks[job.index] = []

    def add_call(self, job: ChainJob, call: PolicyCall) -> None:
        task = self._task(job, call.task_index)
        task.observations[call.step] = call.observation
        if call.codes is not None:
            task.codes[call.step] = call.codes
        if call.step == 0:
            task.images[-1] = call.observation.rgb_static

    def add_frame(self, job: ChainJob, task_index: int, step: int, image: NDArray[np.uint8]) -> None:
        self._task(job, task_index).images[step] = image

    def finish_chain(self, job: ChainJob, record: ChainRecord) -> None:
        tasks = self._tasks.pop(job.index)
        name = f"chain_{job.index:04d}"
        for kind in ("videos", "input_predict_truth"):  # files of an earlier run of the chain
            for old in (self.folder / kind).glob(f"{name}_*"):
                if (why := remove(old)) is not None:
                    print(
                        f"warning: {old}, of an earlier run of the chain, could not be deleted ({why})", file=sys.stderr
                    )
        video = [frame for i, task in enumerate(tasks) for frame in _task_frames(job, record, i, task)]
        file = self.folder / "videos" / f"{name}_{record.completed}_done.{self.suffix}"
        self.write_video(file, video, RATE / self.frame_interval)
        for i, task in enumerate(tasks):
            rows = self._prediction_rows(task)
            if rows:
                page = image_grid([image for image, _ in rows.values()], columns=1, gap=4)
                heading = add_caption(page[:0], job.instructions[i], *_outcome(record, i))
                file = self.folder / "input_predict_truth" / f"{name}_task_{i + 1}.png"
                errors = [{"step": step, **asdict(found)} for step, (_, found) in rows.items()]
                write_json(file.with_suffix(".json"), {"act_step": self.policy.act_step, "errors": errors})
                write_png(file, np.concatenate([heading, page]))

    def _task(self, job: ChainJob, task_index: int) -> _Task:
        tasks = self._tasks[job.index]
        while len(tasks) <= task_index:
            tasks.append(_Task())
        return tasks[task_index]

    def _prediction_rows(self, task: _Task) -> dict[int, tuple[RgbImage, FrameErrors]]:
        """Return rows of input | prediction | truth, by steps spread over the task with frames T steps later."""
        later = self.policy.act_step
        known = [(step, after) for step in task.observations if (after := _views_at(task, step + later)) is not None]
        chosen = (
            [known[i] for i in sorted({round(x) for x in np.linspace(0, len(known) - 1, MAX_PREDICTIONS)})]
            if known
            else []
        )
        if not chosen:
            return {}
        predicted = self._predicted(task, [step for step, _ in chosen])
        return {
            step: _row(step, later, task.observations[step], views, after)
            for (step, after), views in zip(chosen, predicted, strict=True)
        }

    def _predicted(self, task: _Task, steps: Sequence[int]) -> NDArray[np.uint8]:
        """Return the frames [B, V, R, R, 3] predicted at ``steps``, from the codes that came with the actions."""
        if isinstance(self.policy, ImagePredictor) and all(step in task.codes for step in steps):
            return self.policy.decode(np.stack([task.codes[step] for step in steps]))
        return self.policy.predict_future([task.observations[step] for step in steps])


def make_recorder(settings: Mapping[str, Any], folder: Path, policy: FuturePredictor) -> RolloutVideoRecorder | None:
    """Return the recorder of the settings, None without videos. Raises ``ValueError`` if mp4 needs a package."""
    count = int(settings["num_videos"])
    if not count:
        return None
    if not settings["save_rollout_as_video"]:
        return RolloutVideoRecorder(folder, count, policy)
    require_mp4("save_rollout_as_video=true")
    return RolloutVideoRecorder(folder, count, policy, write_mp4, "mp4")


def _task_frames(job: ChainJob, record: ChainRecord, task_index: int, task: _Task) -> list[RgbImage]:
    """Return the frames of one task, and of its outcome."""
    frames = []
    instruction = job.instructions[task_index]
    for step, image in sorted(task.images.items()):
        note = f"task {task_index + 1} of {len(job.tasks)}, step {step + 1}"
        frames.append(add_caption(resize_to_height(image, VIDEO_HEIGHT), instruction, note))
    if frames:
        last = resize_to_height(task.images[max(task.images)], VIDEO_HEIGHT)
        frames += [add_caption(last, instruction, *_outcome(record, task_index))] * OUTCOME_FRAMES
    return frames


def _outcome(record: ChainRecord, i: int) -> tuple[str, tuple[int, int, int]]:
    done = i < record.completed
    text = f"task {i + 1} of {len(record.tasks)}: {'done' if done else 'not done'} in {record.steps[i]} steps"
    return text, GREEN if done else RED


def _views_at(task: _Task, step: int) -> list[RgbImage] | None:
    """Return the camera views before that step, the static one first; None if none was recorded."""
    if step in task.observations:
        return _views(task.observations[step])
    image = task.images.get(step - 1)
    return None if image is None else [image]


def _views(observation: Observation) -> list[RgbImage]:
    gripper = observation.rgb_gripper
    return [observation.rgb_static] if gripper is None else [observation.rgb_static, gripper]


def _row(
    step: int, later: int, seen: Observation, predicted: NDArray[np.uint8], after: list[RgbImage]
) -> tuple[RgbImage, FrameErrors]:
    """Return input, prediction and truth as the model's images (its crop, its resolution) with captions, and the errors
    of the static view."""
    resolution = predicted.shape[1]
    before, truth = ([_as_model(view, resolution) for view in views] for views in (_views(seen), after))
    errors = frame_errors(before[0], predicted[0], truth[0])
    views, height = len(predicted), max(PREDICTION_HEIGHT, resolution)
    columns = [side_by_side(images, height) for images in (before[:views], list(predicted), truth[:views])]
    row = side_by_side(columns, height, gap=8)
    return add_caption(row, f"step {step}: now | predicted | true, {later} steps later", str(errors)), errors


def _as_model(image: RgbImage, resolution: int) -> RgbImage:
    return np.ascontiguousarray(fit(image, resolution).transpose(1, 2, 0))

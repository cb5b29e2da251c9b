"""Offline action evaluation: errors of the policy's actions on recorded demonstrations, without a simulator.

Definitions are the original's (docs/evaluation.md): a sample is a start frame in an annotated window. The policy gets
that frame and the window's instruction, and its first `horizon` actions are compared with the recorded ones.

Shape letters: B samples, T actions per chunk, h horizon (h <= T), A action size.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from common.command import phase_bar
from common.constants import CALVIN_LAYOUT, STATE_KEY, ActionLayout
from policy_rollout.benchmarks.coded import CODES, NO_IMAGE, CodedFrames
from policy_rollout.policies.interface import ACTION_KEYS, state_read_by
from policy_rollout.policies.upvla import Observation, Policy
from training.data.calvin import CalvinSplit

NO_TASK = "(no task named)"
"""The task in splits whose annotations have instructions only."""
CPU_BATCH = 16
CUDA_BATCH = 256
"""Initial batch size on a GPU; halved when memory is not sufficient."""


class Window(Protocol):
    """An annotated window; frames `start`..`end`, the end inclusive."""

    @property
    def task(self) -> str | None: ...
    @property
    def instruction(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...


@dataclass(frozen=True)
class Sample:
    """One sample: frame `start`, and the `horizon` recorded actions that follow."""

    task: str
    instruction: str
    start: int
    horizon: int


def list_samples(
    windows: Iterable[Window], act_step: int, start_only: bool = False, stride: int = 1, max_samples: int = 0
) -> list[Sample]:
    """Return the start frames of every window, in order: `start`..`end - 1` in steps of `stride`, or `start` only.

    `max_samples` keeps the first ones (0: all). A stride below 1 counts as 1, a window of one frame has no sample.
    """
    samples = (
        Sample(window.task or NO_TASK, window.instruction, frame, min(act_step, window.end - frame))
        for window in windows
        for frame in range(window.start, window.end, max(1, stride))
        if not start_only or frame == window.start
    )
    return list(itertools.islice(samples, max_samples if max_samples > 0 else None))


class Errors:
    """Running sums of action errors over samples.

    Errors and each sample's sums are float32, the sums over samples float64: the original's arithmetic, which
    reproduces its results to the last digit.
    """

    def __init__(self, layout: ActionLayout = CALVIN_LAYOUT) -> None:
        self._layout = layout
        self._absolute = np.zeros(layout.dim)
        self._squared = np.zeros(layout.dim)
        self._samples = 0
        self._steps = 0
        self._same_sign = 0

    def add(self, predicted: NDArray[np.float32], recorded: NDArray[np.float32]) -> None:
        """Add the actions of one sample, both [h, A]."""
        if predicted.shape != recorded.shape or predicted.ndim != 2 or predicted.shape[1] != self._layout.dim:
            raise ValueError(
                f"actions must both be [h, {self._layout.dim}], got {predicted.shape} and {recorded.shape}"
            )
        error = predicted.astype(np.float32) - recorded.astype(np.float32)
        self._absolute += np.abs(error).sum(axis=0)
        self._squared += np.square(error).sum(axis=0)
        # An exact zero counts as open (+1).
        gripper = list(self._layout.gripper)
        self._same_sign += int(((predicted[:, gripper] >= 0) == (recorded[:, gripper] >= 0)).sum())
        self._samples += 1
        self._steps += len(error)

    def summary(self) -> dict[str, float]:
        """Return the metrics; all are zero without samples. An RMSE is the mean of its dimensions' RMSEs.

        Metrics of position, rotation and gripper exist as far as the action's layout names these groups.
        """
        steps, layout = max(1, self._steps), self._layout
        mae, rmse = self._absolute / steps, np.sqrt(self._squared / steps)
        found: dict[str, float] = {
            "samples": self._samples,
            "steps": self._steps,
            "mae_all": float(mae.mean()),
            "rmse_all": float(rmse.mean()),
        }
        groups = {"pos": layout.position, "rot": layout.rotation, "gripper": layout.gripper}
        for name, indices in groups.items():
            if indices:
                found[f"mae_{name}"] = float(mae[list(indices)].mean())
                found[f"rmse_{name}"] = float(rmse[list(indices)].mean())
        if layout.gripper:
            found["gripper_sign_acc"] = self._same_sign / (steps * len(layout.gripper))
        return found


@dataclass(frozen=True)
class Report:
    """`overall` and `per_task` hold `Errors.summary()`; `batch_size` is the one that fitted; `clipped`: the
    number of clipped predictions."""

    overall: dict[str, float]
    per_task: dict[str, dict[str, float]]
    batch_size: int
    clipped: int = 0


@dataclass(frozen=True)
class SampleBatch:
    """A batch read from disk: observations and recorded actions."""

    samples: Sequence[Sample]
    observations: list[Observation]
    recorded: list[NDArray[np.float32]]


class Frames(Protocol):
    """Source of frames: a raw split, or a token cache of it."""

    def frame(self, index: int, keys: Sequence[str]) -> dict[str, NDArray[Any]]: ...


class FrameReader:
    """Reads observations and action chunks of samples in ascending order of their start frame.

    Every frame file is opened once: for its action, and for what the policy observes (``inputs``: cameras or codes, and
    the robot's state if it reads it) if a sample starts there. Images are freed after the last sample that starts
    there.
    """

    def __init__(self, split: Frames, samples: Sequence[Sample], action_key: str, inputs: Sequence[str]) -> None:
        self._split = split
        self._action_key = action_key
        self._inputs = inputs
        self._pending: dict[int, int] = {}  # start frame -> samples not read yet
        for sample in samples:
            self._pending[sample.start] = self._pending.get(sample.start, 0) + 1
        self._frames: dict[int, dict[str, NDArray[Any]]] = {}

    def prepare(self, samples: Sequence[Sample]) -> SampleBatch:
        return SampleBatch(samples, [self._observe(s) for s in samples], [self._actions(s) for s in samples])

    def _frame(self, frame: int) -> dict[str, NDArray[Any]]:
        if frame not in self._frames:
            starts_here = self._pending.get(frame, 0) > 0
            keys = (*self._inputs, self._action_key) if starts_here else (self._action_key,)
            self._frames[frame] = dict(self._split.frame(frame, keys))
        return self._frames[frame]

    def _observe(self, sample: Sample) -> Observation:
        frame = self._frame(sample.start)
        observation = Observation(
            rgb_static=frame.get("rgb_static", NO_IMAGE),
            rgb_gripper=frame.get("rgb_gripper"),
            instruction=sample.instruction,
            robot_obs=frame.get(STATE_KEY),
            codes=frame.get(CODES),
        )
        self._pending[sample.start] -= 1
        if self._pending[sample.start] == 0:
            self._frames[sample.start] = {self._action_key: frame[self._action_key]}
        return observation

    def _actions(self, sample: Sample) -> NDArray[np.float32]:
        frames = range(sample.start, sample.start + sample.horizon)
        return np.stack([self._frame(i)[self._action_key] for i in frames]).astype(np.float32)  # [h, A]


def evaluate(
    split: Frames,
    policy: Policy,
    samples: Sequence[Sample],
    *,
    action_key: str = "rel_actions",
    clip: bool = False,
    batch_size: int = CPU_BATCH,
    may_shrink: bool = True,
    progress: Callable[[int], None] = lambda done: None,
    coded: CodedFrames | None = None,
) -> Report:
    """Evaluate the policy on every sample.

    `clip` clips predicted actions to [-1, 1]; `batch_size` is reduced if GPU memory is not sufficient and `may_shrink`;
    `progress` is called with the number of samples of each batch. Files are read one batch ahead in a thread; with
    `coded`, a token cache of the split, no file is read.
    """
    if action_key not in ACTION_KEYS:
        raise ValueError(f"action_key must be one of {', '.join(ACTION_KEYS)}, got {action_key!r}")
    ordered = sorted(samples, key=lambda sample: sample.start)
    inputs = policy.cameras if coded is None else (CODES,)
    if state_read_by(policy) is not None:
        inputs = (*inputs, STATE_KEY)
    reader = FrameReader(split if coded is None else coded, ordered, action_key, inputs)
    layout = policy.convention.layout
    overall, per_task = Errors(layout), {task: Errors(layout) for task in sorted({sample.task for sample in samples})}
    clipped = 0
    policy.reset()
    for batch in read_ahead(reader, ordered, batch_size):
        chunks, batch_size = act_in_parts(policy, batch.observations, batch_size, may_shrink)
        for sample, chunk, recorded in zip(batch.samples, chunks, batch.recorded, strict=True):
            predicted = chunk[: sample.horizon]  # [h, A]
            if clip:
                clipped += int((np.abs(predicted) > 1.0).sum())
                predicted = np.clip(predicted, -1.0, 1.0)
            overall.add(predicted, recorded)
            per_task[sample.task].add(predicted, recorded)
        progress(len(batch.samples))
    by_task = {task: errors.summary() for task, errors in per_task.items()}
    return Report(overall.summary(), by_task, batch_size, clipped)


def read_ahead(reader: FrameReader, samples: Sequence[Sample], size: int) -> Iterator[SampleBatch]:
    """Yield batches in order; a thread reads the next one while the caller uses the previous one."""
    batches = (samples[i : i + size] for i in range(0, len(samples), size))
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending: Future[SampleBatch] | None = None
        for batch in batches:
            ready, pending = pending, pool.submit(reader.prepare, batch)
            if ready is not None:
                yield ready.result()
        if pending is not None:
            yield pending.result()


def act_in_parts(
    policy: Policy, observations: Sequence[Observation], size: int, may_shrink: bool = True
) -> tuple[NDArray[np.float32], int]:
    """Return the chunks [B, T, A] of all observations, in batches of at most `size`, and the size that fitted.

    With `may_shrink`, a batch that does not fit into GPU memory is halved.
    """
    chunks: list[NDArray[np.float32]] = []
    done = 0
    while done < len(observations):
        part = observations[done : done + size]
        try:
            chunks.append(policy.act(part))
        except torch.OutOfMemoryError:
            if not may_shrink or len(part) == 1:
                raise
            torch.cuda.empty_cache()
            size = len(part) // 2
            continue
        done += len(part)
    return np.concatenate(chunks), size


def mean_action(split: CalvinSplit, samples: Sequence[Sample], action_key: str = "rel_actions") -> NDArray[np.float32]:
    """Return the mean action [A] over the start frames, each counted once: the best constant prediction."""
    frames = sorted({sample.start for sample in samples})
    if not frames:
        raise ValueError(f"{split.path} has no annotated frame to take a mean action from")
    bar = phase_bar(frames, desc="mean action", unit="frame")
    total = sum(split.frame(frame, (action_key,))[action_key].astype(np.float64) for frame in bar)
    return np.asarray(total / len(frames), dtype=np.float32)

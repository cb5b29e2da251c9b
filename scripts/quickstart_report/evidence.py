"""Collect what the quickstart's report shows: films of the same episodes, predicted frames, and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from common.image_grid import FrameErrors, RgbImage, frame_errors
from common.statistics import Interval, wilson
from config.schema import MMU_INDEX, Job
from models.decoding import generate
from models.processing.image import clip_pixels, fit
from models.vision.clip_encoder import load_clip
from policy_rollout.benchmarks.future_frames import list_samples, observe
from policy_rollout.benchmarks.vqa.questions import read_questions
from policy_rollout.closed_loop.single_task import EpisodeRecord, Rollout
from policy_rollout.desk.task_sets import TaskSet
from policy_rollout.policies.upvla import UPVLAPolicy
from training.data.calvin import CalvinSplit
from training.data.readers import read_image
from training.metrics.samples import Answer

SHIPPED, TRAINED, EXPERTS = "shipped model", "trained", "experts"
SHOWN_EPISODES, SHOWN_FRAMES, SHOWN_ANSWERS = 4, 4, 4
EVALUATED_FRAMES, ASKED = 24, 24
"""Frames over which the error of predictions is averaged, and questions that are asked."""


@dataclass(frozen=True)
class Result:
    """The results of one policy: success of each episode in closed loop, and errors on held-out recordings.

    ``errors``: None for experts, which do not act on recordings. ``rollout``: with the films; None for experts.
    """

    name: str
    done: list[bool]
    errors: dict[str, float] | None = None
    rollout: Rollout | None = None

    @property
    def success(self) -> Interval:
        return wilson(sum(self.done), len(self.done))


@dataclass(frozen=True)
class EpisodeFilms:
    """One episode, by the names of those who played it from the same start: record, and frames of the camera."""

    instruction: str
    films: dict[str, tuple[EpisodeRecord, list[RgbImage]]]


@dataclass(frozen=True)
class Sight:
    """What the model reads at a moment: the camera's image, what its codes retain of it, and the instruction."""

    instruction: str
    camera: RgbImage
    through_codes: RgbImage
    codes: int


@dataclass(frozen=True)
class Future:
    """Frames of the static camera as the model's images: now, predicted and true ``act_step`` steps later."""

    instruction: str
    now: RgbImage
    predicted: RgbImage
    true: RgbImage

    @property
    def errors(self) -> FrameErrors:
        return frame_errors(self.now, self.predicted, self.true)


@dataclass(frozen=True)
class Evidence:
    """Everything that the report shows besides the results."""

    episodes: list[EpisodeFilms] = field(default_factory=list)
    sight: Sight | None = None
    futures: list[Future] = field(default_factory=list)
    act_step: int = 0
    answers: list[tuple[Path, Answer]] = field(default_factory=list)


def pick_episodes(records: Sequence[EpisodeRecord], count: int = SHOWN_EPISODES) -> list[int]:
    """Return episodes to show: successes first, and one failure among them if there is any."""
    successes = [record.index for record in records if record.success]
    failures = [record.index for record in records if not record.success]
    shown = [*successes[: count - bool(failures)], *failures[:1]]
    others = [record.index for record in records if record.index not in shown]
    chosen = {*shown, *others[: count - len(shown)]}
    return [index for index in [*successes, *failures] if index in chosen][:count]


def films(tasks: TaskSet, results: Mapping[str, Result]) -> list[EpisodeFilms]:
    """Return films of the trained model, the shipped one and the expert from the same starts; successes first."""
    played = {name: results[name].rollout for name in (TRAINED, SHIPPED)}
    trained = played[TRAINED]
    assert trained is not None
    found = []
    for index in pick_episodes(trained.records):
        of_episode = {
            name: (rollout.records[index], rollout.frames[index])
            for name, rollout in played.items()
            if rollout is not None
        }
        found.append(
            EpisodeFilms(trained.records[index].instruction, {**of_episode, EXPERTS: tasks.film_expert(index)})
        )
    return found


def sight(policy: UPVLAPolicy, split: CalvinSplit) -> Sight:
    """Return what the model reads in the middle of the first held-out window."""
    window = split.annotations[0]
    seen = observe(split, (window.start + window.end) // 2, window.instruction, policy)
    codes = policy.encode([seen])
    return Sight(window.instruction, seen.rgb_static, policy.decode(codes)[0, 0], codes.shape[1])


def futures(policy: UPVLAPolicy, split: CalvinSplit, count: int = EVALUATED_FRAMES) -> list[Future]:
    """Return predicted and true frames, T steps ahead, of held-out frames."""
    samples = [sample for _, sample in list_samples(split.annotations, policy.act_step, count)]
    now, later = (
        [observe(split, sample.start + step, sample.instruction, policy) for sample in samples]
        for step in (0, policy.act_step)
    )
    predicted = policy.predict_future(now)[:, 0]
    size = predicted.shape[1]
    return [
        Future(seen.instruction, _as_model(seen.rgb_static, size), frame, _as_model(after.rgb_static, size))
        for seen, frame, after in zip(now, predicted, later, strict=True)
    ]


def answers(policy: UPVLAPolicy, job: Job, folder: Path, count: int = ASKED) -> list[tuple[Path, Answer]]:
    """Return held-out questions about images with the model's answers; right ones first."""
    questions = read_questions("conversations", [folder / MMU_INDEX])
    chosen = [questions[i] for i in np.linspace(0, len(questions) - 1, min(count, len(questions))).astype(int)]
    clip, texts = load_clip(job.model.showo.clip_model_path), [question.text for question in chosen]
    pixels = torch.stack([clip_pixels(read_image(folder / question.image), clip.image_spec) for question in chosen])
    patches = clip.features(pixels).to(policy.device)
    made = generate(policy.model, policy.prompter, texts, patches, job.max_new_tokens)
    found = [
        (folder / question.image, Answer(question.text, text, question.truths[0], bool(cut)))
        for question, text, cut in zip(chosen, made.texts, made.cut, strict=True)
    ]
    return sorted(found, key=lambda one: one[1].verdict != "right")


def _as_model(image: RgbImage, size: int) -> RgbImage:
    return np.ascontiguousarray(fit(image, size).transpose(1, 2, 0))

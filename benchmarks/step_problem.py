"""One training step to measure: networks of a size with random weights, and a batch of made-up frames and words.

Lengths are those of typical data, not of the limits: an instruction of 13 ids, a conversation of ``TURNS`` ids. The
original pads both to its limits; the package does not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from unittest import mock

import torch
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks.sizes import Size, clip_tower, image_tokenizer, language_model
from config.schema import Job, Objective
from models.objectives import text_objective
from models.processing.image import normalise
from models.rng import SampleRng
from models.vision.clip_encoder import ClipTower
from training.batch_to_tasks import coefficients, encode_image, encode_views, robot_task, text_task
from training.build import Parts
from training.data.batch import CoBatch, RobotBatch, RobotSample, TextBatch, collate_robot
from training.data.dataloader import CotrainLoader, Flow
from training.optim.optimizer import Schedule, build_optimizer

INSTRUCTION = "push the red block to the left"
QUESTION, ANSWER = {"cpu": 20, "phi": 44, "qwen3": 44}, {"cpu": 31, "phi": 256, "qwen3": 256}
"""Ids of a conversation's question and of its answer, by size. (The limits are 62 in all, and 1006.)"""


class _Nothing(Dataset[RobotSample]):
    """A data set that nobody reads: batches are handed over as they are."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> RobotSample:
        raise IndexError(index)


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Work on meta tensors inside: autocast, which knows no such device, is left out."""
    with mock.patch("torch.autocast", return_value=contextlib.nullcontext()):
        yield


@dataclass(frozen=True)
class Problem:
    """Parts of a run, and the batch that every step takes."""

    size: Size
    parts: Parts
    batch: CoBatch

    @property
    def objective(self) -> str:
        return self.parts.objective.name

    @property
    def weights(self) -> Tensor:
        """Of ``COUNTED``, on the device."""
        return torch.tensor(coefficients(self.parts.job)).to(self.parts.device)

    @property
    def robot(self) -> RobotBatch:
        assert self.batch.robot is not None
        return self.batch.robot

    @property
    def text(self) -> TextBatch:
        assert self.batch.text is not None
        return self.batch.text

    @property
    def clip(self) -> ClipTower:
        assert self.parts.clip is not None
        return self.parts.clip

    def slots(self) -> int:
        """Of both flows, that the package's step reads."""
        codes, turn = encode_views(self.parts, self.robot), encode_image(self.parts, self.text)
        future, text = robot_task(self.parts, codes, 0), text_task(self.parts, turn, SampleRng(0, 0))
        assert future is not None
        assert text is not None
        return future.full_sequence.ids.numel() + text.sequence.ids.numel()

    def coded(self) -> CoBatch:
        """The batch as a token cache hands it over: the codes of its frames, on the host."""
        views, future_views = (
            self.parts.vq.encode(normalise(views[:, 0].to(self.parts.device))).short().cpu()[:, None]
            for views in (self.robot.views, self.robot.future_views)
        )
        return replace(self.batch, robot=replace(self.robot, views=views, future_views=future_views))


def problem(
    size: Size,
    objective: Objective,
    device: torch.device,
    rows: int,
    attn_implementation: str = "sdpa",
    gradient_checkpointing: bool = False,
) -> Problem:
    """``rows`` robot samples and as many conversations; ``device`` meta makes shapes alone. Loss weights are those of
    the action-tuning configurations, all 1. The mask may be said, as in the original, so that losses can be equal."""
    job = Job()
    job.training = replace(
        job.training, batch_size_pre=rows, batch_size_mmu=rows, mmu_coeff=1.0, text_objective=objective
    )
    built = language_model(size, device, mask_logit_banned=False, attn_implementation=attn_implementation)
    model = built.model.to(device).train()
    if gradient_checkpointing:
        model.backbone.enable_gradient_checkpointing()
    clip = clip_tower(size, device)
    nothing: Flow[RobotBatch] = Flow(_Nothing(), collate_robot, rows, seed=0)
    parts = Parts(
        job=job,
        device=device,
        model=model,
        prompter=built.prompter,
        vq=image_tokenizer(size, device).to(device),
        clip=clip.to(device),
        objective=text_objective(job),
        optimizer=build_optimizer(model, job, device),
        schedule=Schedule.of(job),
        data=CotrainLoader(nothing, None),
    )
    return Problem(size, parts, made_up(size, rows))


def made_up(size: Size, rows: int) -> CoBatch:
    """A batch of noise as images, and of random words; the same for the same size."""
    draw = torch.Generator().manual_seed(3)
    shape, side = (rows, 1, 3, size.resolution, size.resolution), int(size.clip.image_size)
    asked, said = QUESTION[size.name], ANSWER[size.name]
    words = torch.randint(1, size.words, (rows, asked + said), generator=draw)
    words[:, -1] = 0  # end-of-text
    robot = RobotBatch(
        views=torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw),
        future_views=torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw),
        instructions=[INSTRUCTION] * rows,
        actions=torch.rand(rows, size.act_step, 7, generator=draw) * 2 - 1,
        action_is_pad=torch.zeros(rows, size.act_step, dtype=torch.bool),
        indices=torch.arange(rows),
    )
    text = TextBatch(
        ids=words.tolist(),
        answers=[[False] * asked + [True] * said] * rows,
        pixels=torch.randn(rows, 3, side, side, generator=draw),
        pictured=torch.ones(rows, dtype=torch.bool),
        indices=torch.arange(rows),
    )
    return CoBatch(robot=robot, text=text)

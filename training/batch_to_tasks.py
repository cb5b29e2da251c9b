"""What one micro-batch asks of the model: frames to codes, images to patches, and the tasks built from them.

Everything before the model's one call happens here, frozen networks included, without gradients. A flow that a
micro-batch does not have is None all the way through.

Shape letters: B batch, V views, R resolution, M moments (now, later), N codes of all views, P patches, C CLIP width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from config.schema import Job
from models.action.encoding import ActionBins
from models.device import to_device_async
from models.objectives import TextObjective, TextTask, action_diffusion, action_task
from models.processing.image import normalise
from models.rng import SampleRng, generator
from models.sequence import TextTurn, future_targets, robot_sequence
from models.upvla import RobotTask
from training import augmentation
from training.build import Parts
from training.data.batch import RobotBatch, TextBatch

COUNTED = ("image", "action", "text", "action_bd")
"""The losses, in the order of every row of counts."""


def coefficients(job: Job) -> list[float]:
    """The weights of ``COUNTED`` in the total. Block-diffusion actions are a second action loss, and weighed as one."""
    training = job.training
    action_bd = training.act_coeff * job.block_diffusion.action_coeff
    return [training.pre_coeff, training.act_coeff, training.mmu_coeff, action_bd]


@dataclass(frozen=True)
class RobotCodes:
    """A robot batch whose frames are codes: ``now`` and ``later`` [B, N], on the device. ``later`` is None where
    nobody learns the future frame (``training.pre_coeff: 0``)."""

    now: Tensor
    later: Tensor | None
    batch: RobotBatch


@dataclass(frozen=True)
class Tasks:
    """One micro-batch, prepared, on the device. ``counts`` [4], on the host: how much each of ``COUNTED`` sums over."""

    future: RobotTask | None
    text: TextTask | None
    counts: Tensor


@torch.no_grad()
def encode_views(
    parts: Parts, batch: RobotBatch | None, step: int | None = None, with_later: bool | None = None
) -> RobotCodes | None:
    """Camera frames now, and T steps later -> codes, views one after the other. One call of the tokenizer; none where
    the batch brings codes.

    ``step``: the optimizer step, from which augmentation is drawn; None is for measuring and changes no image.
    ``with_later``: encode the later frames too (default: if the image loss has a weight).
    """
    if batch is None:
        return None
    with_later = parts.job.training.pre_coeff > 0 if with_later is None else with_later
    moments = [batch.views, batch.future_views] if with_later else [batch.views]
    frames = torch.stack(moments)[:, :, : parts.job.model.vla.num_view]  # [M, B, V, 3, R, R] or, coded, [M, B, V, n]
    frames = to_device_async(frames, parts.device)
    if batch.coded:
        codes = frames.flatten(2).long()  # [M, B, N]
        return RobotCodes(now=codes[0], later=codes[1] if with_later else None, batch=batch)
    settings = parts.job.dataset.augment
    if step is not None and not augmentation.is_off(settings):
        change = augmentation.draw(settings, parts.job.training.seed, step, batch.indices.tolist(), frames.shape[2])
        frames = augmentation.apply(frames, change)
    pixels = normalise(frames.flatten(0, 2))
    codes = parts.vq.encode(pixels).view(len(moments), len(batch), -1)  # [M, B, N]
    return RobotCodes(now=codes[0], later=codes[1] if with_later else None, batch=batch)


@torch.no_grad()
def encode_image(parts: Parts, batch: TextBatch | None) -> TextTurn | None:
    """Conversations, padded on the right, with the CLIP patches [B, P, C] of their images; zeros, which nobody
    attends, for those without one.

    Ids and answers stay on the host, where the text objective looks for the answers' slots.
    """
    if batch is None:
        return None
    patches = pictured = None
    if parts.clip is not None and len(batch.pixels) == len(batch):
        patches = parts.clip.features(to_device_async(batch.pixels, parts.device))
    elif parts.clip is not None:
        pictured = batch.pictured
        patches = torch.zeros(len(batch), parts.clip.num_patches, parts.clip.width, device=parts.device)
        if len(batch.pixels) > 0:
            features = parts.clip.features(to_device_async(batch.pixels, parts.device))
            patches = patches.to(features.dtype).index_copy(
                0, to_device_async(pictured.nonzero()[:, 0], parts.device), features
            )
    pad = parts.prompter.vocab.pad
    return TextTurn.of_rows(batch.ids, batch.answers, pad, patches, batch.indices, pictured)


def robot_task(
    parts: Parts, codes: RobotCodes | None, step: int | None = None, measured_draws: int = 1
) -> RobotTask | None:
    """The robot flow: see the frames now, tell the frames T steps later and the T actions between.

    ``step``: the optimizer step, from which it is drawn which instructions are left out, and which action tokens are
    hidden. None leaves out none and is for measuring: tokens are hidden the same way at every evaluation,
    ``measured_draws`` times, over all mask ratios.
    """
    if codes is None:
        return None
    job, prompter, batch = parts.job, parts.prompter, codes.batch
    instructions = [prompter.instruction(text) for text in batch.instructions]
    if step is not None and job.training.cond_dropout_prob > 0:
        dropped = drop_conditions(batch.indices.tolist(), job.training.cond_dropout_prob, job.training.seed, step)
        instructions = [prompter.no_instruction() if d else i for i, d in zip(instructions, dropped, strict=True)]
    with_actions = job.training.act_coeff > 0
    masked = with_actions and job.dataset.params.mask_action_padding
    return RobotTask(
        sequence=robot_sequence(prompter.vocab, instructions, codes.now, batch.actions.shape[1]),
        targets=None if codes.later is None else future_targets(prompter.vocab, codes.later),
        actions=parts.normalised(batch.actions) if with_actions else None,
        action_weight=(~batch.action_is_pad).float() if masked else None,
        label_smoothing=job.training.label_smoothing,
        action_tokens=action_tokens(parts, batch, instructions, step, measured_draws) if with_actions else None,
    )


def action_tokens(
    parts: Parts, batch: RobotBatch, instructions: Sequence[Sequence[int]], step: int | None, measured_draws: int
) -> TextTask | None:
    """Block-diffusion actions behind the robot flow, if the job has them. Laid out on the host: the codes, which are on
    the device, play no part in where something stands (``RobotTask.full_sequence`` puts them in)."""
    job, vocab = parts.job, parts.prompter.vocab
    objective = action_diffusion(job.block_diffusion, job.text_diffusion)
    if objective is None:
        return None
    without_codes = torch.zeros(len(batch), parts.model.spec.num_image_tokens, dtype=torch.long)
    return action_task(
        objective if step is not None else objective.for_evaluation(measured_draws),
        ActionBins(vocab, job.block_diffusion.action_num_bins),
        robot_sequence(vocab, instructions, without_codes, batch.actions.shape[1]),
        parts.normalised(batch.actions),
        ~batch.action_is_pad if job.dataset.params.mask_action_padding else None,
        batch.indices.tolist(),
        SampleRng(job.training.seed, step or 0, "action"),
    )


def drop_conditions(indices: Sequence[int], probability: float, seed: int, step: int) -> list[bool]:
    """For each sample: is its instruction left out in this step? The same answer on whichever rank it lies."""
    return [bool(torch.rand((), generator=generator(seed, "condition", step, i)) < probability) for i in indices]


def text_task(
    parts: Parts, turn: TextTurn | None, draws: SampleRng | None = None, objective: TextObjective | None = None
) -> TextTask | None:
    """The text problem of the run's objective (or of ``objective``); ``draws`` gives masks, ratios and block sizes."""
    if turn is None:
        return None
    objective = objective or parts.objective
    return objective.prepare(parts.prompter.vocab, parts.prompter.system_ids, turn, draws)


def bundle(parts: Parts, future: RobotTask | None, text: TextTask | None) -> Tasks:
    """Both tasks on the device. Their counts are taken first, where nobody has to wait for the device."""
    action_bd = None if future is None else future.action_tokens
    counts = torch.tensor([*_robot_counts(future), *(float(t.counted) if t else 0.0 for t in (text, action_bd))])
    return Tasks(
        future=None if future is None else future.to(parts.device),
        text=None if text is None else text.to(parts.device),
        counts=counts,
    )


def _robot_counts(task: RobotTask | None) -> tuple[float, float]:
    """(image span slots, action numbers) that the losses of this task are summed over."""
    if task is None:
        return 0.0, 0.0
    image = 0.0 if task.targets is None else float(task.targets.numel())
    if task.actions is None:
        return image, 0.0
    if task.action_weight is None:
        return image, float(task.actions.numel())
    return image, float(task.action_weight.sum()) * task.actions.shape[-1]

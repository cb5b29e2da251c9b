"""Turn a micro-batch into the model's inputs: frames to codes, images to patches, and the tasks built from them.

Tasks are laid out on the host first (``lay_out``), because the losses of a step are divided by counts over all of its
micro-batches. Images are encoded later, one micro-batch at a time, so that device memory does not grow with
``training.gradient_accumulation_steps``. A flow that a micro-batch does not have is None throughout.

Shape letters: B batch, V views, R resolution, M moments (now, later), N codes of all views, P patches, C CLIP width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from config.schema import Job
from models.action.encoding import ActionBins
from models.device import to_device_async
from models.grounding import PositionTargets, SceneTask
from models.objectives import TextObjective, TextTask, action_diffusion, action_task
from models.processing.image import normalise
from models.rng import SampleRng, generator
from models.sequence import TextTurn, TokenSequence, future_targets, robot_sequence
from models.upvla import RobotTask
from training import augmentation
from training.build.components import Components
from training.data.batch import CoBatch, RobotBatch, TextBatch
from training.grounding.targets import (
    OFFSET,
    draw_sentences,
    named_positions,
    offset_targets,
    positions_at,
    scaled_targets,
)

COUNTED = ("image", "action", "text", "action_bd", "ground")
"""Names of the losses, in the order of every row of counts."""


def coefficients(job: Job) -> list[float]:
    """Return the weights of ``COUNTED`` in the total loss. Block-diffusion actions share the weight of actions."""
    training = job.training
    action_bd = training.act_coeff * job.block_diffusion.action_coeff
    return [training.pre_coeff, training.act_coeff, training.mmu_coeff, action_bd, training.ground_coeff]


@dataclass(frozen=True)
class RobotCodes:
    """A robot batch and the codes of its frames: ``now`` and ``later`` [B, N], on the device. ``later`` is None if the
    future frame is not trained on (``training.pre_coeff: 0``). ``scenes``: codes of the batch's random scenes."""

    now: Tensor
    later: Tensor | None
    batch: RobotBatch
    scenes: RobotCodes | None = None


@dataclass(frozen=True)
class Tasks:
    """One micro-batch of tasks on the device. ``counts`` [5], on the host: the divisor of each loss in ``COUNTED``."""

    future: RobotTask | None
    text: TextTask | None
    counts: Tensor


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch whose tokens are laid out and whose images are not encoded yet.

    ``data``: samples; ``action_tokens``, ``text``: tasks on the host, without image codes and patches; ``counts`` [5]:
    as in ``Tasks``.
    """

    data: CoBatch
    action_tokens: TextTask | None
    text: TextTask | None
    counts: Tensor


def lay_out(components: Components, data: CoBatch, step: int) -> MicroBatch:
    """Choose the masks of a micro-batch in optimizer step ``step`` and count its targets, on the host.

    Placeholders on the meta device (shapes without content) stand for codes and patches.
    """
    codes = None
    if data.robot is not None:
        codes = _placeholder(components, data.robot)
    future = robot_task(components, codes, step)
    turn = None
    if data.text is not None:
        clip = components.clip
        shape = None if clip is None else (len(data.text), clip.num_patches, clip.width)
        turn = _text_turn(components, data.text, None if shape is None else torch.empty(shape, device="meta"))
    text = text_task(components, turn, SampleRng(components.job.training.seed, step))
    return MicroBatch(data, None if future is None else future.action_tokens, text, target_counts(future, text))


def _placeholder(components: Components, batch: RobotBatch) -> RobotCodes:
    """Return the shapes of a batch's codes."""
    empty = torch.empty(len(batch), components.model.spec.num_image_tokens, dtype=torch.long, device="meta")
    later = empty if components.job.training.pre_coeff > 0 else None
    return RobotCodes(empty, later, batch, None if batch.scenes is None else _placeholder(components, batch.scenes))


@torch.no_grad()
def encode_views(
    components: Components, batch: RobotBatch | None, step: int | None = None, with_later: bool | None = None
) -> RobotCodes | None:
    """Encode camera frames of now and of T steps later as codes, all views of a row side by side.

    The image tokenizer is called once, or not at all if the batch holds codes already.

    Args:
        step: optimizer step that seeds augmentation; None (evaluation) augments nothing.
        with_later: encode the later frames too. By default they are encoded if the image loss has a weight.
    """
    if batch is None:
        return None
    scenes = encode_views(components, batch.scenes, step, with_later=False)
    with_later = components.job.training.pre_coeff > 0 if with_later is None else with_later
    moments = [batch.views, batch.future_views] if with_later else [batch.views]
    num_view = components.job.model.vla.num_view
    frames = torch.stack(moments)[:, :, :num_view]  # [M, B, V, 3, R, R], or codes [M, B, V, n]
    frames = to_device_async(frames, components.device)
    if batch.coded:
        codes = frames.flatten(2).long()  # [M, B, N]
        return RobotCodes(codes[0], codes[1] if with_later else None, batch, scenes)
    settings = components.job.dataset.augment
    if step is not None and not augmentation.is_off(settings):
        seed = components.job.training.seed
        change = augmentation.draw(settings, seed, step, batch.indices.tolist(), frames.shape[2])
        frames = augmentation.apply(frames, change)
    pixels = normalise(frames.flatten(0, 2))
    codes = components.vq.encode(pixels).view(len(moments), len(batch), -1)  # [M, B, N]
    return RobotCodes(codes[0], codes[1] if with_later else None, batch, scenes)


@torch.no_grad()
def encode_image(components: Components, batch: TextBatch | None) -> TextTurn | None:
    """Return conversations, padded on the right, with the CLIP patches [B, P, C] of their images.

    The patches of a row without an image are zeros that no token attends to. Ids and answers stay on the host, where
    the text objective searches the answers' slots.
    """
    if batch is None:
        return None
    patches = None
    if components.clip is not None and len(batch.pixels) == len(batch):
        patches = components.clip.features(to_device_async(batch.pixels, components.device))
    elif components.clip is not None:
        clip = components.clip
        patches = torch.zeros(len(batch), clip.num_patches, clip.width, device=components.device)
        if len(batch.pixels) > 0:
            features = clip.features(to_device_async(batch.pixels, components.device))
            rows = to_device_async(batch.pictured.nonzero()[:, 0], components.device)
            patches = patches.to(features.dtype).index_copy(0, rows, features)
    return _text_turn(components, batch, patches)


def _text_turn(components: Components, batch: TextBatch, patches: Tensor | None) -> TextTurn:
    all_pictured = len(batch.pixels) == len(batch)
    pictured = None if patches is None or all_pictured else batch.pictured
    pad = components.prompter.vocab.pad
    return TextTurn.of_rows(batch.ids, batch.answers, pad, patches, batch.indices, pictured)


def robot_task(
    components: Components,
    codes: RobotCodes | None,
    step: int | None = None,
    measured_draws: int = 1,
    tokens: TextTask | None = None,
) -> RobotTask | None:
    """Return the robot flow's task: read the frames of now; predict the frames T steps later and the T actions between.

    Args:
        step: optimizer step that seeds the dropped instructions and states and the masks of action tokens. None
            (evaluation) drops none and masks the same tokens at every evaluation, over all mask ratios.
        measured_draws: independent masks of a chunk in an evaluation.
        tokens: the action tokens, if ``lay_out`` has prepared them already.
    """
    if codes is None:
        return None
    job, prompter, batch = components.job, components.prompter, codes.batch
    instructions = [prompter.instruction(text) for text in batch.instructions]
    if step is not None and job.training.cond_dropout_prob > 0:
        dropped = drop_conditions(batch.indices.tolist(), job.training.cond_dropout_prob, job.training.seed, step)
        instructions = [prompter.no_instruction() if d else i for i, d in zip(instructions, dropped, strict=True)]
    with_actions = job.training.act_coeff > 0
    masked = with_actions and job.dataset.params.mask_action_padding
    if tokens is None and with_actions:
        tokens = action_tokens(components, batch, instructions, step, measured_draws)
    sequence = robot_sequence(prompter.vocab, instructions, codes.now, batch.actions.shape[1])
    return RobotTask(
        sequence=_with_state(components, sequence, batch, step),
        targets=None if codes.later is None else future_targets(prompter.vocab, codes.later),
        actions=components.normalize_actions(batch.actions) if with_actions else None,
        action_weight=(~batch.action_is_pad).float() if masked else None,
        action_loss=job.training.action_loss,
        insulated=job.training.insulate_backbone,
        label_smoothing=job.training.label_smoothing,
        action_tokens=tokens,
        positions=_position_targets(components, batch, named_positions(batch)),
        scenes=None if codes.scenes is None else scene_task(components, codes.scenes, step),
    )


def scene_task(components: Components, codes: RobotCodes, step: int | None = None) -> SceneTask:
    """Return the task of random scenes: the position of the object that an instruction names.

    ``step``: optimizer step that draws an instruction for each scene; None (evaluation) takes the scenes' own.
    """
    batch, prompter = codes.batch, components.prompter
    texts, targets = batch.instructions, batch.targets
    if step is not None:
        seed = components.job.training.seed
        texts, targets = draw_sentences(components.sentences, batch.indices.tolist(), seed, step)
    assert batch.positions is not None
    assert targets is not None
    instructions = [prompter.instruction(text) for text in texts]
    sequence = robot_sequence(prompter.vocab, instructions, codes.now, batch.actions.shape[1])
    positions = _position_targets(components, batch, positions_at(batch.positions, targets))
    assert positions is not None
    return SceneTask(_with_state(components, sequence, batch, step), positions)


def _position_targets(components: Components, batch: RobotBatch, metres: Tensor | None) -> PositionTargets | None:
    workspace, state = components.model.spec.data.workspace, components.model.spec.data.state_convention
    if metres is None or workspace is None or components.job.training.ground_coeff == 0:
        return None
    if components.job.training.ground_target == OFFSET:
        assert batch.states is not None
        assert state is not None
        return offset_targets(metres, batch.states[:, list(state.position[:3])])
    return scaled_targets(metres, workspace)


def action_tokens(
    components: Components, batch: RobotBatch, instructions: Sequence[Sequence[int]], step: int | None, draws: int
) -> TextTask | None:
    """Return the task of block-diffusion actions behind the robot flow; None if the job has none.

    It is laid out on the host. The layout does not depend on the image codes, which are on the device and are filled in
    later (``RobotTask.full_sequence``).
    """
    job, vocab = components.job, components.prompter.vocab
    objective = action_diffusion(job.block_diffusion, job.text_diffusion)
    if objective is None:
        return None
    without_codes = torch.zeros(len(batch), components.model.spec.num_image_tokens, dtype=torch.long)
    return action_task(
        objective if step is not None else objective.for_evaluation(draws),
        ActionBins(vocab, job.block_diffusion.action_num_bins),
        robot_sequence(vocab, instructions, without_codes, batch.actions.shape[1]),
        components.normalize_actions(batch.actions),
        ~batch.action_is_pad if job.dataset.params.mask_action_padding else None,
        batch.indices.tolist(),
        SampleRng(job.training.seed, step or 0, "action"),
    )


def state_features(components: Components, batch: RobotBatch) -> Tensor | None:
    """Return the features [B, F] of the robot's states, on the host; None if the model reads none."""
    convention = components.model.spec.data.state_convention
    if convention is None:
        return None
    if batch.states is None:
        raise ValueError(
            "model.vla.proprioception=pose reads the robot's state, and the robot data provider gives none "
            "(RobotSample.state); add it, or set model.vla.proprioception=none"
        )
    return convention.apply(batch.states)


def _with_state(components: Components, sequence: TokenSequence, batch: RobotBatch, step: int | None) -> TokenSequence:
    """Return the robot flow with the features of the states, some of which step ``step`` leaves out."""
    state, training = state_features(components, batch), components.job.training
    if state is None:
        return sequence
    given = None
    if step is not None and training.state_dropout_prob > 0:
        indices, probability = batch.indices.tolist(), training.state_dropout_prob
        dropped = drop_conditions(indices, probability, training.seed, step, "state")
        given = ~torch.tensor(dropped)
    return replace(sequence, state=state, state_given=given)


def drop_conditions(
    indices: Sequence[int], probability: float, seed: int, step: int, purpose: str = "condition"
) -> list[bool]:
    """Return for each sample whether this step drops its instruction (or, with the ``purpose`` state, its state). The
    rank of the sample does not matter."""
    return [bool(torch.rand((), generator=generator(seed, purpose, step, i)) < probability) for i in indices]


def text_task(
    components: Components,
    turn: TextTurn | None,
    draws: SampleRng | None = None,
    objective: TextObjective | None = None,
) -> TextTask | None:
    """Return the text task of the run's objective (or of ``objective``); ``draws`` gives masks, ratios, block sizes."""
    if turn is None:
        return None
    objective = objective or components.objective
    return objective.prepare(components.prompter.vocab, components.prompter.system_ids, turn, draws)


def fill_patches(task: TextTask | None, turn: TextTurn | None) -> TextTask | None:
    """Return a task of ``lay_out`` with the CLIP patches of its conversations."""
    if task is None or turn is None:
        return None
    return replace(task, sequence=replace(task.sequence, patches=turn.patches))


def bundle(components: Components, future: RobotTask | None, text: TextTask | None) -> Tasks:
    """Move both tasks to the device. Their counts are read before that, so that the host does not wait."""
    return Tasks(
        counts=target_counts(future, text),
        future=None if future is None else future.to(components.device),
        text=None if text is None else text.to(components.device),
    )


def target_counts(future: RobotTask | None, text: TextTask | None) -> Tensor:
    """Return how much each loss in ``COUNTED`` sums over, [5] on the host."""
    image, action, tokens, ground = 0.0, 0.0, None, 0.0
    if future is not None:
        tokens = future.action_tokens
        image = 0.0 if future.targets is None else float(future.targets.numel())
        if future.actions is not None:
            steps = future.actions[..., 0].numel() if future.action_weight is None else future.action_weight.sum()
            action = float(steps) * future.actions.shape[-1]
        scenes = None if future.scenes is None else future.scenes.positions
        ground = sum(targets.count for targets in (future.positions, scenes) if targets is not None)
    texts = [0.0 if task is None else float(task.counted) for task in (text, tokens)]
    return torch.tensor([image, action, *texts, ground])

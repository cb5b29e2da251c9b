"""What one micro-batch asks of the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from config.schema import Augment, Job
from models.objectives import text_objective
from models.pretrained.model_io import build
from models.rng import generator
from models.vision.clip_encoder import load_clip
from models.vision.magvitv2 import load_magvit
from tests.training.world import T, load
from training.batch_to_tasks import (
    COUNTED,
    bundle,
    coefficients,
    drop_conditions,
    encode_image,
    encode_views,
    robot_task,
    text_task,
)
from training.build import Components
from training.data.batch import CoBatch
from training.data.dataloader import cotrain_loader
from training.optim.optimizer import Schedule, build_optimizer


@pytest.fixture
def parts(world: Path, tmp_path: Path) -> Components:
    job = load(world, tmp_path)
    built, clip = build(job), load_clip(job.model.showo.clip_model_path)
    return Components(
        job=job,
        device=torch.device("cpu"),
        model=built.model,
        prompter=built.prompter,
        vq=load_magvit(job.model.vq_model.vq_model_name),
        clip=clip,
        objective=text_objective("ar"),
        optimizer=build_optimizer(built.model, job, torch.device("cpu")),
        schedule=Schedule.of(job),
        data=cotrain_loader(job, built.prompter, clip.image_spec, patches=clip.num_patches),
    )


@pytest.fixture
def batch(parts: Components) -> CoBatch:
    return next(iter(parts.data))


def changed(parts: Components, **training: object) -> Components:
    job: Job = replace(parts.job, training=replace(parts.job.training, **training))
    return replace(parts, job=job)


def test_codes_are_those_of_each_frame_alone(parts: Components, batch: CoBatch) -> None:
    codes = encode_views(parts, batch.robot)
    assert codes is not None
    assert codes.later is not None
    assert codes.now.shape == codes.later.shape == (2, 4)
    assert batch.robot is not None
    swapped = encode_views(parts, replace(batch.robot, views=batch.robot.future_views, future_views=batch.robot.views))
    assert swapped is not None
    assert torch.equal(swapped.now, codes.later)
    assert torch.equal(swapped.later, codes.now)


def test_images_are_changed_in_training_and_never_in_measuring(parts: Components, batch: CoBatch) -> None:
    data = replace(parts.job.dataset, augment=Augment(crop=0.3, shift=0.2, brightness=0.5))
    changing = replace(parts, job=replace(parts.job, dataset=data))
    plain, measured = encode_views(parts, batch.robot), encode_views(changing, batch.robot)
    trained, again = encode_views(changing, batch.robot, step=3), encode_views(changing, batch.robot, step=3)
    assert plain is not None and measured is not None and trained is not None and again is not None  # noqa: PT018
    assert torch.equal(measured.now, plain.now)
    assert not torch.equal(trained.now, plain.now)
    assert torch.equal(trained.now, again.now)


def test_later_frames_are_not_encoded_without_an_image_loss(parts: Components, batch: CoBatch) -> None:
    blind = changed(parts, pre_coeff=0.0)
    codes = encode_views(blind, batch.robot)
    assert codes is not None
    assert codes.later is None
    task = robot_task(blind, codes)
    assert task is not None
    assert task.targets is None


def test_counts_known_beforehand_are_what_the_losses_sum_over(parts: Components, batch: CoBatch) -> None:
    future = robot_task(parts, encode_views(parts, batch.robot))
    text = text_task(parts, encode_image(parts, batch.text))
    tasks = bundle(parts, future, text)
    losses = parts.model(tasks.future, tasks.text)
    found = [float(getattr(losses, name).count) for name in COUNTED]
    assert tasks.counts.tolist() == found
    assert found[:2] == [2 * (4 + 2), 2 * T * 7]
    assert batch.text is not None
    assert found[2] == sum(map(sum, batch.text.answers))


def test_padded_actions_are_left_out_only_when_asked(parts: Components, batch: CoBatch) -> None:
    assert batch.robot is not None
    is_pad = torch.tensor([[False] * T, [False, False, True, True]])
    robot = replace(batch.robot, action_is_pad=is_pad)
    codes = encode_views(parts, robot)
    assert bundle(parts, robot_task(parts, codes), None).counts[1] == 2 * T * 7
    params = replace(parts.job.dataset.params, mask_action_padding=True)
    masked = replace(parts, job=replace(parts.job, dataset=replace(parts.job.dataset, params=params)))
    tasks = bundle(masked, robot_task(masked, codes), None)
    assert tasks.counts[1] == (2 * T - 2) * 7
    assert float(parts.model(tasks.future).action.count) == (2 * T - 2) * 7


def in_tokens(parts: Components, **params: object) -> Components:
    """The same parts, with block-diffusion actions."""
    job = parts.job
    blocks = replace(job.block_diffusion, action_enabled=True, action_num_bins=16, action_coeff=0.5)
    dataset = replace(job.dataset, params=replace(job.dataset.params, **params))  # type: ignore[arg-type]
    return replace(parts, job=replace(job, block_diffusion=blocks, dataset=dataset))


def test_action_tokens_ride_on_the_robot_flows_forward(parts: Components, batch: CoBatch) -> None:
    acting, codes = in_tokens(parts), encode_views(parts, batch.robot)
    with_tokens, without = (bundle(p, robot_task(p, codes, step=3), None) for p in (acting, parts))
    assert with_tokens.future is not None
    assert without.future is not None
    calls: list[int] = []
    handle = parts.model.backbone.register_forward_pre_hook(lambda module, args: calls.append(args[0].shape[1]))
    combined, alone = parts.model(with_tokens.future), parts.model(without.future)
    handle.remove()
    assert len(calls) == 2
    assert calls[0] == calls[1] + (T - 1) * 7 + 2 * T * 7
    assert with_tokens.counts.tolist() == [float(getattr(combined, name).count) for name in COUNTED]
    assert (with_tokens.counts[3], without.counts[3]) == (2 * T * 7, 0)
    for name in ("image", "action"):
        torch.testing.assert_close(getattr(combined, name).sum, getattr(alone, name).sum, rtol=1e-6, atol=0)
    # The codes are not known where tokens are laid out; the forward reads them all the same.
    length = without.future.sequence.ids.shape[1]
    assert torch.equal(with_tokens.future.full_sequence.ids[:, :length], without.future.sequence.ids)
    assert coefficients(acting.job) == [*coefficients(parts.job)[:3], 0.5 * parts.job.training.act_coeff, 0.0]


def test_laying_out_action_tokens_does_not_wait_for_the_device(parts: Components, batch: CoBatch) -> None:
    """Codes on the meta device have no values that anybody could wait for."""
    acting, codes = in_tokens(parts), encode_views(parts, batch.robot)
    assert codes is not None
    task = robot_task(acting, replace(codes, now=codes.now.to("meta"), later=None), step=0)
    assert task is not None
    assert task.action_tokens is not None
    assert task.sequence.ids.device.type == "meta"
    assert task.action_tokens.sequence.ids.device.type == task.action_tokens.counted.device.type == "cpu"
    assert task.to("meta").full_sequence.ids.shape == task.action_tokens.sequence.ids.shape


def test_action_tokens_are_hidden_by_step_and_sample_and_always_alike_when_measured(
    parts: Components, batch: CoBatch
) -> None:
    acting, codes = in_tokens(parts), encode_views(parts, batch.robot)

    def ids(step: int | None, draws: int = 1) -> torch.Tensor:
        task = robot_task(acting, codes, step, measured_draws=draws)
        assert task is not None
        assert task.action_tokens is not None
        return task.action_tokens.sequence.ids

    assert torch.equal(ids(5), ids(5))
    assert not torch.equal(ids(5), ids(6))
    assert torch.equal(ids(None), ids(None))
    assert ids(None, 3).shape[1] - ids(None).shape[1] == 4 * T * 7  # two more pairs of views


def test_padded_action_tokens_are_left_out_only_when_asked(parts: Components, batch: CoBatch) -> None:
    assert batch.robot is not None
    robot = replace(batch.robot, action_is_pad=torch.tensor([[False] * T, [False, False, True, True]]))
    codes = encode_views(parts, robot)
    assert bundle(parts, robot_task(in_tokens(parts), codes), None).counts[3] == 2 * T * 7
    masked = in_tokens(parts, mask_action_padding=True)
    tasks = bundle(masked, robot_task(masked, codes), None)
    assert tasks.counts[3] == (2 * T - 2) * 7
    assert float(parts.model(tasks.future).action_bd.count) == (2 * T - 2) * 7


def test_a_missing_flow_is_none_all_the_way(parts: Components) -> None:
    assert encode_views(parts, None) is None
    assert encode_image(parts, None) is None
    tasks = bundle(parts, robot_task(parts, None), text_task(parts, None, None))
    assert (tasks.future, tasks.text, tasks.counts.tolist()) == (None, None, [0.0] * len(COUNTED))


def test_instructions_are_dropped_by_sample_and_step_not_by_batch() -> None:
    together = drop_conditions(range(40), 0.5, seed=1, step=3)
    assert [drop_conditions([i], 0.5, seed=1, step=3)[0] for i in range(40)] == together
    assert 5 < sum(together) < 35
    assert drop_conditions(range(40), 0.5, seed=1, step=4) != together
    assert drop_conditions(range(40), 0.5, seed=2, step=3) != together


def test_a_dropped_instruction_leaves_only_its_frame_of_special_tokens(parts: Components, batch: CoBatch) -> None:
    always = changed(parts, cond_dropout_prob=1.0)
    codes = encode_views(always, batch.robot)
    dropped, kept = robot_task(always, codes, step=0), robot_task(always, codes)
    assert dropped is not None
    assert kept is not None
    assert dropped.sequence.ids[:, :3].tolist() == [parts.prompter.no_instruction()] * 2
    assert kept.sequence.ids.shape[1] > dropped.sequence.ids.shape[1]


def test_draws_of_a_key_do_not_depend_on_other_draws() -> None:
    first = torch.rand(3, generator=generator(0, "text", 5, 1))
    torch.rand(7)
    assert torch.equal(torch.rand(3, generator=generator(0, "text", 5, 1)), first)
    assert not torch.equal(torch.rand(3, generator=generator(0, "text", 5, 2)), first)


def test_images_go_to_the_rows_that_have_one(parts: Components, batch: CoBatch) -> None:
    text = batch.text
    assert text is not None
    assert len(text) == 2
    whole = encode_image(parts, text)
    second = encode_image(parts, replace(text, pixels=text.pixels[1:], pictured=torch.tensor([False, True])))
    none = encode_image(parts, replace(text, pixels=torch.empty(0, 3, 0, 0), pictured=torch.zeros(2).bool()))
    assert whole is not None
    assert second is not None
    assert none is not None
    assert whole.pictured is None
    assert whole.patches is not None
    assert second.patches is not None
    assert none.patches is not None
    torch.testing.assert_close(second.patches[1], whole.patches[1])
    assert not second.patches[0].any()
    assert second.pictured is not None
    assert second.pictured.tolist() == [False, True]
    assert none.patches.shape == whole.patches.shape
    assert none.pictured is not None
    assert not none.pictured.any()

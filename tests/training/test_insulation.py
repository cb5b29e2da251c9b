"""The backbone insulated from the action loss: exact gradients, whole runs, launches, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from config.loading import ConfigError
from config.schema import Job
from tests.training.launches import complaint, launch, sharded, start
from tests.training.runs import Outcome, same, train
from tests.training.test_batch_to_tasks import parts as parts
from tests.training.test_proprioception import DATA, POSE
from tests.training.test_proprioception import robot as robot
from tests.training.test_resume_exactly import goes_on_exactly
from tests.training.world import load
from training.batch_to_tasks import (
    COUNTED,
    bundle,
    coefficients,
    encode_image,
    encode_views,
    fill_patches,
    lay_out,
    robot_task,
)
from training.build import Components
from training.build.network import build_network
from training.data.checks.robot_data import declared_state
from training.data.dataloader import cotrain_loader

Start = Callable[..., Outcome]
OWN = ("action_head.", "state_encoder.")
"""Parameters that the action loss trains, insulated or not."""
EXPORTED_OWN = ("to_logits", "token_learner", "state_encoder")


def components(parts: Components, job: Job) -> Components:
    torch.manual_seed(0)
    built, _ = build_network(job, None, declared_state(job))
    assert parts.clip is not None
    loader = cotrain_loader(job, built.prompter, parts.clip.image_spec, patches=parts.clip.num_patches)
    return replace(parts, job=job, model=built.model, prompter=built.prompter, data=loader)


def gradients(parts: Components, **training: object) -> dict[str, Tensor]:
    """Return the gradients of one step, from all losses by their weights."""
    acting = replace(parts, job=replace(parts.job, training=replace(parts.job.training, **training)))
    batch = next(iter(acting.data))
    laid_out = lay_out(acting, batch, 0)
    future = robot_task(acting, encode_views(acting, batch.robot, 0), 0, tokens=laid_out.action_tokens)
    text = fill_patches(laid_out.text, encode_image(acting, batch.text))
    task = bundle(acting, future, text)
    acting.model.zero_grad(set_to_none=True)
    losses = acting.model.train()(task.future, task.text)
    sums = torch.stack([getattr(losses, name).sum for name in COUNTED])
    torch.autograd.backward((torch.tensor(coefficients(acting.job)) * sums / task.counts.clamp_min(1)).sum())
    found = {name: p.grad.clone() for name, p in acting.model.named_parameters() if p.grad is not None}
    return {**found, "the action loss": losses.action.sum.detach(), "the image loss": losses.image.sum.detach()}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        POSE,
        {**POSE, "model__gradient_checkpointing": "true", "training__length_multiple": 16},
        {**POSE, "lora__rank": 2},
        {**POSE, "block_diffusion__action_enabled": "true", "block_diffusion__action_num_bins": 16},
    ],
    ids=["images", "state", "checkpointing", "adapters", "action tokens"],
)
def test_the_backbone_gets_the_gradient_of_the_other_losses_and_the_head_that_of_actions(
    parts: Components, world: Path, robot: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    if "lora__rank" in settings:
        pytest.importorskip("peft")
    acting = components(parts, load(world, tmp_path, **{DATA: robot, **settings}))
    if "lora__rank" in settings:  # an adapter begins at zero, and then gives no gradient to its first matrix
        for name, parameter in acting.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    plain, insulated = gradients(acting), gradients(acting, insulate_backbone=True)
    without = _without_regression(acting)
    for name in ("the action loss", "the image loss"):
        assert torch.equal(plain[name], insulated[name]), "insulation changes no value"
    own = [name for name in plain if name.startswith(OWN)]
    backbone = [name for name in plain if not name.startswith((*OWN, "the "))]
    assert any(name.startswith("state_encoder.") for name in own) == ("model__vla__proprioception" in settings)
    for name in own:
        torch.testing.assert_close(insulated[name], plain[name], rtol=1e-5, atol=1e-8, msg=name)
    assert set(insulated) >= set(backbone)
    for name in backbone:
        tolerance = 1e-5 if acting.job.block_diffusion.action_enabled else 1e-8  # the weight of actions is not quite 0
        torch.testing.assert_close(insulated[name], without[name], rtol=1e-5, atol=tolerance, msg=name)
    assert any(not torch.allclose(plain[name], without[name], rtol=1e-3, atol=1e-7) for name in backbone)


def _without_regression(parts: Components) -> dict[str, Tensor]:
    """Return the gradients without the loss of the action head; its weight also scales that of action tokens."""
    blocks = parts.job.block_diffusion
    if not blocks.action_enabled:
        return gradients(parts, act_coeff=0.0)
    tiny = 1e-6
    return gradients(
        replace(
            parts, job=replace(parts.job, block_diffusion=replace(blocks, action_coeff=blocks.action_coeff / tiny))
        ),
        act_coeff=tiny,
    )


def test_a_run_trains_the_backbone_as_if_there_were_no_actions(run: Start) -> None:
    pytest.importorskip("peft")
    settings = {
        "training__insulate_backbone": "true",
        "training__gradient_accumulation_steps": 2,
        "training__ema_decay": 0.5,
        "lora__rank": 2,
        "training__max_train_steps": 3,
    }
    acting, mute = run("acting", **settings), run("mute", **settings, training__act_coeff=0)
    weights, others = acting.weights(), mute.weights()
    own = {name for name in weights if name.startswith(EXPORTED_OWN)}
    assert own
    for name in set(weights) - own:
        assert torch.equal(weights[name], others[name]), name
    assert not all(torch.equal(weights[name], others[name]) for name in own)
    plain = run("plain", **{**settings, "training__insulate_backbone": "false"})
    assert any(not torch.equal(plain.weights()[name], weights[name]) for name in set(weights) - own)


def test_a_run_that_is_insulated_resumes_exactly(run: Start, robot: Path) -> None:
    settings = {"training__insulate_backbone": "true", "training__max_train_steps": 3, "experiment__save_every": 2}
    goes_on_exactly(run, 2, {**settings, **POSE, DATA: robot})


def test_a_run_in_which_nothing_would_train_the_backbone_is_refused(run: Start) -> None:
    only_actions = {"training__insulate_backbone": "true", "training__pre_coeff": 0, "dataset__und_type": "null"}
    with pytest.raises(
        ConfigError, match=r"no loss is left that trains the backbone.*training\.freeze=\[backbone\.\*\]"
    ):
        run(**only_actions)
    run(**only_actions, block_diffusion__action_enabled="true", block_diffusion__action_num_bins=16)


def test_without_an_action_loss_the_key_has_no_effect_and_the_run_logs_it(
    run: Start, capfd: pytest.CaptureFixture[str]
) -> None:
    run(training__insulate_backbone="true", training__act_coeff=0, training__max_train_steps=1)
    assert "training.insulate_backbone=true has no effect with training.act_coeff=0" in capfd.readouterr().out


@pytest.mark.slow
def test_a_compiled_backbone_is_insulated_too(run: Start, robot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])  # the compiler appends to it
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)  # its pool of threads stays for ever
    settings = {"training__insulate_backbone": "true", "optimizer__params__epsilon": 1e-3, **POSE, DATA: robot}
    plain, compiled = run("plain", **settings), run("compiled", **settings, training__compile="true")
    assert compiled.curve("total/loss") == pytest.approx(plain.curve("total/loss"), rel=1e-5)
    assert same(plain.weights(), compiled.weights(), tolerance=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "zero2"])
def test_two_processes_take_the_steps_of_one(world: Path, robot: Path, tmp_path: Path, kind: str) -> None:
    if kind == "zero2":
        pytest.importorskip("deepspeed")
    given = {"training__insulate_backbone": "true", **POSE, DATA: robot}
    whole = {"training__batch_size_pre": 4, "training__batch_size_mmu": 4, "optimizer__params__epsilon": 1e-3}
    one = train(world, tmp_path / "one", **given, **whole)
    options = tuple(f"{name.replace('__', '.')}={value}" for name, value in given.items())
    two = launch(world, tmp_path / "two", *sharded(kind), options)
    assert two.curve("total/loss") == pytest.approx(one.curve("total/loss"), rel=2e-6)
    assert same(one.weights(), two.weights(), tolerance=1e-4)


@pytest.mark.slow
def test_a_state_encoder_and_weights_that_no_process_has_are_refused(world: Path, robot: Path, tmp_path: Path) -> None:
    given = {"training__insulate_backbone": "true", **POSE, DATA: robot}
    options = tuple(f"{name.replace('__', '.')}={value}" for name, value in given.items())
    done = start(world, tmp_path / "out", *sharded("fsdp2"), options)
    assert complaint(done).startswith("config error: training.insulate_backbone=true with model.vla.proprioception")

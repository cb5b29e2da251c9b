"""Weight decay and the learning rate."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import pytest
import torch

from config import schema
from config.schema import Job
from tests.tiny import tiny_model
from training.optim.optimizer import Schedule, build_optimizer, decays, parameter_groups, schedule_notes, set_lr


@pytest.mark.parametrize("kind", ["phi", "qwen3"])
def test_only_weights_that_mix_features_decay(tmp_path: Path, kind: str) -> None:
    model, _ = tiny_model(tmp_path, kind)
    decayed = {name for name, yes in decays(model).items() if yes}
    exempt = {name for name, yes in decays(model).items() if not yes}
    assert decayed | exempt == {name for name, _ in model.named_parameters()}
    assert all(name.endswith(".weight") for name in decayed)
    assert not [name for name in decayed if "norm" in name or "embed" in name or "latents" in name]
    assert [name for name in exempt if "norm" in name]
    assert "action_head.pool.latents" in exempt
    assert "action_head.pool.attn_norm.g" in exempt
    assert "backbone.lm.model.embed_tokens.weight" in exempt
    assert "action_head.out.weight" in decayed
    assert "backbone.lm.model.layers.0.self_attn.q_proj.weight" in decayed
    # Phi's head is a matrix of its own; Qwen3's is the embedding and goes with it.
    assert ("backbone.lm.lm_head.weight" in decayed) == (kind == "phi")


def test_frozen_parameters_are_in_no_group(tmp_path: Path) -> None:
    model, _ = tiny_model(tmp_path)
    model.action_head.requires_grad_(False)
    grouped = {id(p) for group in parameter_groups(model, 0.1) for p in group["params"]}
    assert grouped == {id(p) for name, p in model.named_parameters() if not name.startswith("action_head")}


def test_a_step_without_gradient_shrinks_exactly_the_decayed_weights(tmp_path: Path) -> None:
    model, _ = tiny_model(tmp_path)
    job = Job()
    job.optimizer.params.weight_decay = 0.5
    optimizer = build_optimizer(model, job, torch.device("cpu"))
    set_lr(optimizer, 0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if decays(model)[name] else 1.0
        assert torch.allclose(p, before[name] * factor), name


def test_cosine_warms_up_from_zero_and_falls_half_a_wave() -> None:
    rate = Schedule("cosine", base_lr=2.0, warmup_steps=4, total_steps=12)
    assert [rate(step) for step in range(4)] == [0.0, 0.5, 1.0, 1.5]
    assert [rate(step) for step in range(4, 13)] == pytest.approx([1 + math.cos(math.pi * i / 8) for i in range(9)])


@pytest.mark.parametrize("name", get_args(schema.Schedule))
def test_every_schedule_of_the_schema_is_a_function_of_the_step(name: str) -> None:
    rate = Schedule(name, base_lr=1e-3, warmup_steps=2, total_steps=10)
    forwards = [rate(step) for step in range(10)]
    assert [rate(step) for step in reversed(range(10))] == forwards[::-1]
    assert max(forwards) == pytest.approx(1e-3)


def test_cycles_and_power_change_the_schedules_they_belong_to() -> None:
    once = Schedule("cosine_with_restarts", 1.0, 0, 12)
    thrice = Schedule("cosine_with_restarts", 1.0, 0, 12, num_cycles=3)
    assert once(4) == pytest.approx(0.75)
    assert thrice(4) == pytest.approx(1.0)
    assert Schedule("polynomial", 1.0, 0, 10, power=2.0)(5) < Schedule("polynomial", 1.0, 0, 10)(5)


@pytest.mark.parametrize(("scheduler", "cycles"), [("cosine_with_restarts", 0.5), ("cosine_with_restarts", 2.7)])
def test_a_part_of_a_cycle_is_refused_by_the_schedule_too(scheduler: str, cycles: float) -> None:
    with pytest.raises(ValueError, match="num_cycles"):
        Schedule(scheduler, 1.0, 0, 12, num_cycles=cycles)(0)


def test_settings_that_a_schedule_cannot_follow_or_does_not_read_are_named() -> None:
    job = Job()
    assert schedule_notes(job) == []
    job.training.max_train_steps = 500
    (line,) = schedule_notes(job)
    assert "warmup_steps=1000" in line
    assert "max_train_steps=500" in line
    assert f"reaches {job.optimizer.params.learning_rate * 0.499:g}," in line
    job.lr_scheduler.scheduler, job.lr_scheduler.params.power = "constant", 2.0
    unread = [line.split("=")[0].rpartition(".")[2] for line in schedule_notes(job)]
    assert unread == ["warmup_steps", "power"]

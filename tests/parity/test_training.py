"""Schedules, decay groups and one optimizer step are the original's, except for decay that is left out on purpose."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from models.pretrained.model_io import from_disk_names, to_disk_names
from models.upvla import UPVLA
from tests.parity import flows
from training.optim.optimizer import Schedule, decays, parameter_groups

pytestmark = pytest.mark.parity

SCHEDULES = ("cosine", "linear", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial")


def test_every_schedule_has_the_same_learning_rates(parity: Path) -> None:
    arrays = np.load(parity / "lr.npz")
    sizes = {
        "base_lr": float(arrays["base"]),
        "warmup_steps": int(arrays["warmup"]),
        "total_steps": int(arrays["total"]),
    }
    for name in SCHEDULES:
        rate = Schedule(name, **sizes)
        assert_allclose([rate(step) for step in range(len(arrays[name]))], arrays[name], rtol=1e-12, err_msg=name)


def test_we_decay_what_the_original_meant_to_decay(parity: Path) -> None:
    """Ours decay what the original decays, less norms, embeddings and latents: what its patterns meant to exempt."""
    groups = json.loads((parity / "optimizer_groups.json").read_text(encoding="utf-8"))
    ours = to_disk_names(
        {name: torch.tensor(yes) for name, yes in decays(flows.upstream(parity).model.requires_grad_()).items()}
    )
    assert set(ours) == set(groups["decay"]) | set(groups["no_decay"])
    decayed = {name for name, yes in ours.items() if yes}
    assert decayed <= set(groups["decay"])
    for name in set(groups["decay"]) - decayed:
        assert "norm" in name or "embed_tokens" in name or name.endswith("latents"), name


def test_an_optimizer_step_is_the_same_but_for_the_decay_of_norms_and_embeddings(parity: Path) -> None:
    """One step with our groups from the original's gradients is its step, less the decay of what we exempt."""
    arrays = np.load(parity / "step_ar.npz")
    settings = json.loads((parity / "steps.json").read_text(encoding="utf-8"))["ar"]["optimizer"]
    model: UPVLA = flows.upstream(parity).model.requires_grad_()
    before = to_disk_names(copy.deepcopy({name: p.detach() for name, p in model.named_parameters()}))
    named = dict(model.named_parameters())
    recorded = from_disk_names(
        {k.removeprefix("grad::"): torch.tensor(arrays[k]) for k in arrays if k.startswith("grad::")}
    )
    for name, gradient in recorded.items():
        named[name].grad = gradient
    _adamw(model, settings).step()
    after, decayed = to_disk_names(named), to_disk_names({n: torch.tensor(yes) for n, yes in decays(model).items()})
    groups = json.loads((parity / "optimizer_groups.json").read_text(encoding="utf-8"))
    for name in to_disk_names(recorded):
        spared = name in groups["decay"] and not decayed[name]
        decay = settings["lr"] * settings["weight_decay"] * before[name] if spared else 0.0
        real = torch.tensor(
            np.abs(arrays[f"grad::{name}"]) > 1e-6
        )  # elsewhere Adam's first step is the sign of rounding
        theirs = torch.tensor(arrays[f"stepped::{name}"])
        assert_allclose((after[name].detach() - decay)[real], theirs[real], rtol=0, atol=2e-6, err_msg=name)


def _adamw(model: UPVLA, settings: dict[str, Any]) -> torch.optim.AdamW:
    groups = parameter_groups(model, settings["weight_decay"])
    return torch.optim.AdamW(groups, lr=settings["lr"], betas=tuple(settings["betas"]), eps=settings["eps"])

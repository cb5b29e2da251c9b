"""The optimizer, its weight decay groups, and the learning rate schedule.

AdamW with two groups. Exempt from weight decay are parameters that scale, shift or index rather than mix features:
every parameter with fewer than two dimensions (biases, gains of all norms), every embedding table, and the pooling
latents of the action head. The original intended this, but its name patterns miss Phi's norms and embeddings, so it
decays them (``docs/from_upstream.md``).

The learning rate is a pure function of the optimizer step, so that resuming restores nothing and the number of
processes does not matter.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from config.schema import Job
from models.pretrained.weights_io import not_finite

LATENTS = "latents"
"""Last part of the name of the learned queries of a pooling head (``token_learner.latents``, [1, D])."""

SMALLEST_IN_8_BITS, BLOCK = 4096, 256
"""bitsandbytes keeps 32-bit moments of smaller tensors, and one 32-bit scale for each block of 8-bit ones."""


def decays(model: nn.Module) -> dict[str, bool]:
    """Return name -> True if decayed, for every trainable parameter. A tied one is listed once, by its first name."""
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    return {
        name: p.ndim >= 2 and id(p) not in embeddings and name.rsplit(".", 1)[-1] != LATENTS
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the two groups of ``decays`` as AdamW expects them; an empty group is left out."""
    named, decayed = dict(model.named_parameters()), decays(model)
    return [
        {"params": [named[name] for name in names], "weight_decay": weight_decay if decayed[names[0]] else 0.0}
        for names in group_names(model)
    ]


def group_names(model: nn.Module) -> list[list[str]]:
    """Return the names of the parameters of each group, in the order of ``parameter_groups``."""
    decayed = decays(model)
    groups = [[name for name, yes in decayed.items() if yes is wanted] for wanted in (True, False)]
    return [names for names in groups if names]


def build_optimizer(model: nn.Module, job: Job, device: torch.device) -> Optimizer:
    """Return AdamW over the trainable parameters of ``model``, fused if torch supports it, or with moments in 8 bits.

    Raises ValueError if the package for 8 bits is not installed.
    """
    params = job.optimizer.params
    settings: dict[str, Any] = {
        "lr": params.learning_rate,
        "betas": (params.beta1, params.beta2),
        "eps": params.epsilon,
    }
    groups = parameter_groups(model, params.weight_decay)
    if job.optimizer.name == "adamw":
        return AdamW(groups, fused=device.type in ("cuda", "cpu"), **settings)
    return _in_8_bits(model, groups, settings)


def _in_8_bits(model: nn.Module, groups: list[dict[str, Any]], settings: dict[str, Any]) -> Optimizer:
    """Return bitsandbytes' AdamW. Embedding tables keep 32 bits, as it advises, because most of their rows have no
    gradient in a step."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            "optimizer.name=adamw_8bit needs the package bitsandbytes (pip install bitsandbytes); adamw does not"
        )
    from bitsandbytes.optim import AdamW8bit, GlobalOptimManager

    for module in model.modules():
        if isinstance(module, nn.Embedding):
            GlobalOptimManager.get_instance().register_module_override(module, "weight", {"optim_bits": 32})
    optimizer: Optimizer = AdamW8bit(groups, **settings)
    return optimizer


def not_finite_moments(optimizer: Optimizer, model: nn.Module) -> list[str]:
    """Return names of optimizer tensors that hold NaN or infinity, as ``<parameter>.<moment>``. (Parameters that an
    engine partitions are numbered.)"""
    names = {id(p): name for name, p in model.named_parameters()}
    tensors = {
        f"{names.get(id(parameter), f'partition {number}')}.{kind}": value
        for number, (parameter, state) in enumerate(optimizer.state.items())
        for kind, value in state.items()
        if isinstance(value, Tensor)
    }
    return not_finite({name: v.to_local() if isinstance(v, DTensor) else v for name, v in tensors.items()})


@dataclass(frozen=True)
class Schedule:
    """Learning rate at optimizer step 0, 1, 2, ...: one of transformers' schedules, read as a function.

    ``cosine``: ``step / warmup`` while ``step < warmup``, then ``(1 + cos(pi * progress)) / 2``, times ``base_lr``.
    With a warm-up the first step has learning rate 0, as in the original.
    """

    name: str
    base_lr: float
    warmup_steps: int
    total_steps: int
    num_cycles: float | None = None
    power: float = 1.0

    @classmethod
    def of(cls, job: Job) -> Schedule:
        return cls(
            name=job.lr_scheduler.scheduler,
            base_lr=job.optimizer.params.learning_rate,
            warmup_steps=job.lr_scheduler.params.warmup_steps,
            total_steps=job.training.max_train_steps,
            num_cycles=job.lr_scheduler.params.num_cycles,
            power=job.lr_scheduler.params.power,
        )

    @cached_property
    def _factor(self) -> Callable[[int], float]:
        # get_scheduler needs an optimizer, but the schedules read only the base learning rate.
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=self.base_lr)
        options: dict[str, Any] = {}
        if self.name == "polynomial":
            options["power"] = self.power
        elif self.num_cycles is not None and self.name == "cosine":
            options["num_cycles"] = self.num_cycles
        elif self.num_cycles is not None and self.name == "cosine_with_restarts":
            if not float(self.num_cycles).is_integer():
                raise ValueError(f"num_cycles={self.num_cycles:g}: {self.name} restarts a whole number of times")
            options["num_cycles"] = int(self.num_cycles)
        schedule = get_scheduler(self.name, optimizer, self.warmup_steps, self.total_steps, options)
        assert isinstance(schedule, LambdaLR), f"{self.name} is not a function of the step alone"
        return schedule.lr_lambdas[0]

    def __call__(self, step: int) -> float:
        """Return the learning rate of optimizer step ``step``."""
        return self.base_lr * float(self._factor(step))


def schedule_notes(job: Job) -> list[str]:
    """Return a line for each setting of the schedule that has no effect in this run."""
    name, params, steps = job.lr_scheduler.scheduler, job.lr_scheduler.params, job.training.max_train_steps
    warms_up, notes = name != "constant", []
    if warms_up and params.warmup_steps >= steps:
        notes.append(
            f"lr_scheduler.params.warmup_steps={params.warmup_steps} is no less than training.max_train_steps={steps}: "
            f"the learning rate reaches {Schedule.of(job)(steps - 1):g}, not optimizer.params.learning_rate="
            f"{job.optimizer.params.learning_rate:g}"
        )
    unread = [
        ("warmup_steps", params.warmup_steps, params.warmup_steps > 0 and not warms_up),
        ("power", params.power, params.power != 1.0 and name != "polynomial"),
    ]
    notes += [
        f"lr_scheduler.params.{key}={value:g} has no effect with lr_scheduler.scheduler={name}"
        for key, value, is_unread in unread
        if is_unread
    ]
    return notes


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of every group (``optimizer`` may be accelerate's or DeepSpeed's wrapper)."""
    for group in optimizer.param_groups:
        group["lr"] = lr

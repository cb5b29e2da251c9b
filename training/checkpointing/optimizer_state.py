"""Restore the optimizer state of a resumed run parameter by parameter, matched by name.

Torch and DeepSpeed store an optimizer's state by position. A checkpoint therefore records the names of the trained
parameters, group by group, and the kind of optimizer (``metadata.json``, ``optimizer``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from config.loading import ConfigError
from config.parsing import shown
from config.schema import Job
from training.checkpointing.manifest import Checkpoint
from training.distributed.launch import describe
from training.distributed.reshard import ONE_STATE
from training.optim.optimizer import group_names

NAMES_SHOWN = 4
TRAINED_UNLESS_ZERO = ("training.act_coeff", "training.mmu_coeff")
"""Keys whose value 0 freezes parameters; other values make no difference."""


def record(model: nn.Module, job: Job) -> dict[str, Any]:
    """Return the kind of the optimizer and the parameters of each of its groups, for ``metadata.json``."""
    return {"name": job.optimizer.name, "parameters": group_names(model)}


def match(
    accelerator: Accelerator, optimizer: Optimizer, checkpoint: Checkpoint | None, now: Mapping[str, Any], job: Job
) -> list[str]:
    """Make sure that ``optimizer`` (not wrapped yet) will load the state of ``checkpoint`` parameter by parameter.

    Returns notes for the log. Raises ConfigError for the state of another optimizer or of other parameters, and for
    another order of parameters if it cannot be changed (DeepSpeed, FSDP).
    """
    if checkpoint is None:
        return []
    conditions = checkpoint.record.get("conditions", {})
    saved = checkpoint.record.get("optimizer", {})
    kind, names = saved.get("name", conditions.get("optimizer.name", now["name"])), saved.get("parameters")
    if kind != now["name"]:
        raise ConfigError(
            f"optimizer.name={now['name']}, but {checkpoint.path} holds the state of {kind}, which cannot be "
            f"converted: resume with optimizer.name={kind}, or {_weights_only(checkpoint)}"
        )
    if names is None:
        return _match_unnamed(checkpoint, conditions, job)
    if names == now["parameters"]:
        return []
    before, after = ([name for group in groups for name in group] for groups in (names, now["parameters"]))
    if {*before} != {*after} or describe(accelerator) not in ONE_STATE:
        raise ConfigError(
            f"{checkpoint.path} was saved by a run that trained other parameters ({_difference(before, after)}), so "
            "its optimizer state does not fit: resume with the training.freeze, lora and loss coefficients that it was "
            f"trained with, or {_weights_only(checkpoint)}"
        )
    optimizer.register_load_state_dict_pre_hook(
        lambda _, state: reorder(state, names, now["parameters"], optimizer.state_dict()["param_groups"])
    )
    return ["note: the trained parameters are in another order than in the checkpoint: matched by name"]


def reorder(
    state: Mapping[str, Any],
    saved: Sequence[Sequence[str]],
    now: Sequence[Sequence[str]],
    groups: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return an optimizer's state dict in another order of the same parameters.

    ``saved``, ``now``: names group by group; ``groups``: the ``param_groups`` of the optimizer that loads it.
    """
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    number_of = dict(zip([name for group in saved for name in group], numbers, strict=True))
    moments = {
        number: state["state"][number_of[name]]
        for group, names in zip(groups, now, strict=True)
        for number, name in zip(group["params"], names, strict=True)
        if number_of[name] in state["state"]  # a parameter has no state before its first gradient
    }
    return {"state": moments, "param_groups": [dict(group) for group in groups]}


@contextmanager
def preserve_settings(optimizer: Optimizer) -> Iterator[None]:
    """Keep the settings that the job gave ``optimizer`` (weight decay, betas, ...) while a state is loaded."""
    before = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    yield
    for group, settings in zip(optimizer.param_groups, before, strict=True):
        group.update(settings)


def _match_unnamed(checkpoint: Checkpoint, conditions: Mapping[str, Any], job: Job) -> list[str]:
    """Compare the keys that select the trained parameters, for a checkpoint without parameter names."""
    now = {
        "training.freeze": job.training.freeze,
        "dataset.und_type": job.dataset.und_type,
        "training.act_coeff": job.training.act_coeff,
        "training.mmu_coeff": job.training.mmu_coeff,
        "lora.rank": job.lora.rank,
    }
    for key, value in now.items():
        if key not in conditions:
            continue
        before = conditions[key]
        same = (before == 0) == (value == 0) if key in TRAINED_UNLESS_ZERO else before == value
        if not same:
            raise ConfigError(
                f"{key}={shown(value)}, but {checkpoint.path} trained other parameters, with {shown(before)}, so its "
                f"optimizer state does not fit: resume with {key}={shown(before)}, or {_weights_only(checkpoint)}"
            )
    if conditions:
        return []
    return [
        f"warning: {checkpoint.path} records neither settings nor names of parameters: its optimizer state is matched "
        "by position, which is right only if training.freeze, lora and loss coefficients are as they were"
    ]


def _difference(before: Sequence[str], after: Sequence[str]) -> str:
    added = [name for name in after if name not in {*before}]
    removed = [name for name in before if name not in {*after}]
    parts = [f"{_list_names(added)} only in this run"] if added else []
    parts += [f"{_list_names(removed)} only in the checkpoint"] if removed else []
    return ", ".join(parts) or "or in another order"


def _list_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f"{len(names)} parameter{'s' if len(names) > 1 else ''} ({', '.join(names[:NAMES_SHOWN])}{more})"


def _weights_only(checkpoint: Checkpoint) -> str:
    return (
        "start a new run from its weights with experiment.resume_from_checkpoint=false "
        f"model.showo.load_from_showo=true model.showo.pretrained_model_path={checkpoint.path}"
    )

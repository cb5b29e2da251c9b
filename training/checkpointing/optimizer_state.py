"""Give every parameter its own optimizer state when a run is resumed: matched by name, not by position.

Torch and DeepSpeed keep an optimizer's state by position. A checkpoint therefore records the names of the trained
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
DECIDE_BY_ZERO = ("training.act_coeff", "training.mmu_coeff")
"""Keys that decide which parameters are trained only by being 0."""


def record(model: nn.Module, job: Job) -> dict[str, Any]:
    """Return what ``metadata.json`` records of the optimizer: its kind, and the parameters of each of its groups."""
    return {"name": job.optimizer.name, "parameters": group_names(model)}


def match(
    accelerator: Accelerator, optimizer: Optimizer, checkpoint: Checkpoint | None, now: Mapping[str, Any], job: Job
) -> list[str]:
    """See that ``optimizer`` (not wrapped yet) will get the state of ``checkpoint`` parameter by parameter.

    Returns notes. Raises ``ConfigError`` for the state of another optimizer or of other parameters, and for another
    order of them where it cannot be changed (DeepSpeed, FSDP).
    """
    if checkpoint is None:
        return []
    conditions = checkpoint.record.get("conditions", {})
    saved = checkpoint.record.get("optimizer", {})
    kind, names = saved.get("name", conditions.get("optimizer.name", now["name"])), saved.get("parameters")
    if kind != now["name"]:
        raise ConfigError(
            f"optimizer.name={now['name']}, but {checkpoint.path} holds the state of {kind}, which cannot be "
            f"converted: resume with optimizer.name={kind}, or {_weights_alone(checkpoint)}"
        )
    if names is None:
        return _match_unnamed(checkpoint, conditions, job)
    if names == now["parameters"]:
        return []
    had, has = ([name for group in groups for name in group] for groups in (names, now["parameters"]))
    if {*had} != {*has} or describe(accelerator) not in ONE_STATE:
        raise ConfigError(
            f"{checkpoint.path} was saved by a run that trained other parameters ({_difference(had, has)}), so its "
            "optimizer state does not fit: resume with the training.freeze, lora and loss coefficients that it was "
            f"trained with, or {_weights_alone(checkpoint)}"
        )
    optimizer.register_load_state_dict_pre_hook(
        lambda _, state: in_order(state, names, now["parameters"], optimizer.state_dict()["param_groups"])
    )
    return ["note: the trained parameters are in another order than in the checkpoint: matched by name"]


def in_order(
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
        if number_of[name] in state["state"]  # there is none before a parameter's first gradient
    }
    return {"state": moments, "param_groups": [dict(group) for group in groups]}


@contextmanager
def settings_kept(optimizer: Optimizer) -> Iterator[None]:
    """Keep weight decay, betas and whatever else the job has given ``optimizer`` while a state is loaded into it."""
    before = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    yield
    for group, settings in zip(optimizer.param_groups, before, strict=True):
        group.update(settings)


def _match_unnamed(checkpoint: Checkpoint, conditions: Mapping[str, Any], job: Job) -> list[str]:
    """A checkpoint of an older version: the keys that decide what is trained have to be as they were."""
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
        was = conditions[key]
        same = (was == 0) == (value == 0) if key in DECIDE_BY_ZERO else was == value
        if not same:
            raise ConfigError(
                f"{key}={shown(value)}, but {checkpoint.path} trained other parameters, with {shown(was)}, so its "
                f"optimizer state does not fit: resume with {key}={shown(was)}, or {_weights_alone(checkpoint)}"
            )
    if conditions:
        return []
    return [
        f"warning: {checkpoint.path} records neither settings nor names of parameters: its optimizer state is matched "
        "by position, which is right only if training.freeze, lora and loss coefficients are as they were"
    ]


def _difference(had: Sequence[str], has: Sequence[str]) -> str:
    fresh, gone = [name for name in has if name not in {*had}], [name for name in had if name not in {*has}]
    parts = [f"{_some(fresh)} only here"] if fresh else []
    parts += [f"{_some(gone)} only there"] if gone else []
    return ", ".join(parts) or "or in another order"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f"{len(names)} parameter{'s' if len(names) > 1 else ''} ({', '.join(names[:NAMES_SHOWN])}{more})"


def _weights_alone(checkpoint: Checkpoint) -> str:
    return (
        "start anew from its weights with experiment.resume_from_checkpoint=false model.showo.load_from_showo=true "
        f"model.showo.pretrained_model_path={checkpoint.path}"
    )

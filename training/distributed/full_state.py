"""Gather the full weights of a model that is sharded over processes (DeepSpeed ZeRO-3, FSDP2).

All functions are collective: every rank calls them, in the same order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from models.upvla import UPVLA
from training.distributed.launch import is_sharded
from training.optim.ema import EMA


class FullModel:
    """The full weights of a network that accelerate may shard.

    Create it before the network is wrapped, because a wrapped network cannot be copied.
    """

    def __init__(self, accelerator: Accelerator, model: UPVLA) -> None:
        self._accelerator, self._model = accelerator, model
        self._meta_copy = _copy_without_weights(model) if is_sharded(accelerator) else None

    @contextmanager
    def materialize(self) -> Iterator[UPVLA]:
        """Yield the network with all its parameters on every rank, for forwards that are not in step on all ranks.

        This is the network itself if it is not sharded, else a copy that is freed at the end of the context.
        """
        if self._meta_copy is None:
            yield self._model
            return
        self._meta_copy.load_state_dict(_gather(self._model, _full_parameter), assign=True)
        self._meta_copy.train(self._model.training)
        try:
            yield self._meta_copy
        finally:
            empty = {name: tensor.to("meta") for name, tensor in self._meta_copy.state_dict().items()}
            self._meta_copy.load_state_dict(empty, assign=True)

    def state(self) -> dict[str, Tensor] | None:
        """Return the full parameters in the optimizer's precision, on the host of rank 0; None if the network has them.

        (Under DeepSpeed and bf16 the network computes with rounded copies.)
        """
        deepspeed = self._accelerator.distributed_type == DistributedType.DEEPSPEED
        if self._meta_copy is None and not deepspeed:
            return None
        is_main = self._accelerator.is_main_process

        def gather(parameter: Tensor) -> Tensor:
            full = _fp32_parameter(parameter) if deepspeed and parameter.requires_grad else _full_parameter(parameter)
            return full.cpu() if is_main else torch.empty(0)

        return _gather(self._model, gather)


def use_fp32_copies(accelerator: Accelerator, average: EMA | None) -> None:
    """Let an average read DeepSpeed's fp32 copies of the weights, which its 16-bit weights are rounded from.

    A step of training is often smaller than the spacing of bf16 numbers: an average of rounded weights stands still.
    Every update then gathers the copies, one parameter at a time, on all ranks.
    """
    if average is not None and accelerator.distributed_type == DistributedType.DEEPSPEED:
        average.read = _fp32_parameter


def _copy_without_weights(model: UPVLA) -> UPVLA:
    """Return a copy with buffers and settings, whose parameters are on the meta device."""
    memo: dict[int, object] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False) for p in model.parameters()
    }
    return copy.deepcopy(model, memo)


def _gather(model: nn.Module, gather: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Return the state dict of ``model``; parameters are gathered one at a time, a tied one once."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    gathered: dict[int, Tensor] = {}
    state = {}
    for name, tensor in model.state_dict().items():
        parameter = parameters.get(name)
        if parameter is None:  # a buffer, which every rank has
            state[name] = tensor
            continue
        if id(parameter) not in gathered:
            gathered[id(parameter)] = gather(parameter)
        state[name] = gathered[id(parameter)]
    return state


def _full_parameter(parameter: Tensor) -> Tensor:
    """Return a copy of the full parameter in the precision of the network, on every rank."""
    if isinstance(parameter, DTensor):
        full: Tensor = parameter.full_tensor().detach()
        return full
    if hasattr(parameter, "ds_id"):  # ZeRO-3
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter.detach().clone()


def _fp32_parameter(parameter: Tensor) -> Tensor:
    """Return DeepSpeed's fp32 copy of a trainable parameter, on every rank."""
    from deepspeed.utils import safe_get_full_fp32_param

    full = safe_get_full_fp32_param(parameter)
    assert isinstance(full, Tensor), "DeepSpeed keeps no fp32 copy of a trainable parameter"
    return full.detach()

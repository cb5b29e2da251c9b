"""A model that lies in parts on several processes (DeepSpeed ZeRO-3, FSDP2), whole again: to be saved, to be looked at.

Everything here is collective: every rank calls it, in the same order.
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


class Whole:
    """The whole of a network that accelerate may put in parts. Made before the network is wrapped, because a wrapped
    one cannot be copied; ``model`` stays the network itself."""

    def __init__(self, accelerator: Accelerator, model: UPVLA) -> None:
        self._accelerator, self._model = accelerator, model
        self._frame = _without_weights(model) if is_sharded(accelerator) else None

    @contextmanager
    def at_hand(self) -> Iterator[UPVLA]:
        """The network with all its parameters on every rank, for forwards that ranks do not do in step (measuring,
        generating): the network itself where it is not in parts, else a copy that lives as long as the context."""
        if self._frame is None:
            yield self._model
            return
        self._frame.load_state_dict(_gathered(self._model, _computing), assign=True)
        self._frame.train(self._model.training)
        try:
            yield self._frame
        finally:
            empty = {name: tensor.to("meta") for name, tensor in self._frame.state_dict().items()}
            self._frame.load_state_dict(empty, assign=True)

    def state(self) -> dict[str, Tensor] | None:
        """What is saved: every parameter whole and as the optimizer keeps it (under DeepSpeed and bf16 the network
        computes with rounded copies), on the host of rank 0. None where the network itself has all that."""
        deepspeed = self._accelerator.distributed_type == DistributedType.DEEPSPEED
        if self._frame is None and not deepspeed:
            return None
        keep = self._accelerator.is_main_process

        def kept(parameter: Tensor) -> Tensor:
            whole = _master(parameter) if deepspeed and parameter.requires_grad else _computing(parameter)
            return whole.cpu() if keep else torch.empty(0)

        return _gathered(self._model, kept)


def _without_weights(model: UPVLA) -> UPVLA:
    """A copy with buffers and settings, but parameters that are shapes only."""
    memo: dict[int, object] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False) for p in model.parameters()
    }
    return copy.deepcopy(model, memo)


def _gathered(model: nn.Module, make_whole: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The state dict of ``model``, one parameter made whole at a time, a tied one once."""
    named = dict(model.named_parameters(remove_duplicate=False))
    done: dict[int, Tensor] = {}
    state = {}
    for name, tensor in model.state_dict().items():
        parameter = named.get(name)
        if parameter is None:  # a buffer: every rank has it
            state[name] = tensor
            continue
        if id(parameter) not in done:
            done[id(parameter)] = make_whole(parameter)
        state[name] = done[id(parameter)]
    return state


def _computing(parameter: Tensor) -> Tensor:
    """A copy of the parameter as the network computes with it, on every rank."""
    if isinstance(parameter, DTensor):
        whole: Tensor = parameter.full_tensor().detach()
        return whole
    if hasattr(parameter, "ds_id"):  # ZeRO-3
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter.detach().clone()


def _master(parameter: Tensor) -> Tensor:
    """DeepSpeed's fp32 copy of a trainable parameter, on every rank."""
    from deepspeed.utils import safe_get_full_fp32_param

    whole = safe_get_full_fp32_param(parameter)
    assert isinstance(whole, Tensor), "DeepSpeed keeps no fp32 copy of a trainable parameter"
    return whole.detach()

"""Insulate the backbone from the action loss (``training.insulate_backbone``).

The action head reads hidden states of the backbone. Insulated, the values are the same, and the gradient of the action
loss reaches the head and the encoder of the robot's state, whose output is an input of the backbone, but no parameter
in between. Such a stop-gradient keeps what the backbone has learned from other losses (knowledge insulation,
arXiv 2505.23705).

Legend: B batch, T chunk, D hidden, F state features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def insulate(hidden: Tensor, encoded_state: Tensor | None) -> Tensor:
    """Return ``hidden`` [B, T, D] for the action head, without a gradient into the backbone that computed it.

    ``encoded_state`` [B, D]: the input of the backbone that still gets its exact gradient; None: no input does.
    """
    if encoded_state is None or not encoded_state.requires_grad:
        return hidden.detach()
    insulated: Tensor = _Insulated.apply(hidden, encoded_state)  # type: ignore[no-untyped-call]
    return insulated


class _Insulated(torch.autograd.Function):
    """The identity on ``hidden``; its gradient goes to ``source``, of which ``hidden`` is a function, and to nothing
    else.

    The gradient of ``source`` is computed by a backward pass of its own through the graph of ``hidden``, which adds to
    the gradient of no parameter.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, source: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, source)
        return hidden.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, Tensor]:
        hidden, source = ctx.saved_tensors
        # The graph is kept: the other losses of the step go through it after this.
        (grad,) = torch.autograd.grad(hidden, source, grad_outputs[0], retain_graph=True)
        return None, grad

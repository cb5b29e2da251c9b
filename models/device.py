"""From the host to a device without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on ``device``; the host goes on at once.

    A copy from ordinary memory to a GPU makes the host wait until the device has come that far in its work; one from
    page-locked memory does not. Tensors that are there already are returned as they are.
    """
    device = torch.device(device)
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)

"""What a text loss is made of: the figures beside it, the same ones for every objective and on every device.

All are sums and counts that stay on the device: nothing here asks how many slots fulfil a condition.

Legend: S scored slots, K bins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from models.losses import SumAndCount
from models.objectives.base import TextTask

BINS = ("00_25", "25_50", "50_75", "75_100")
"""Quarters of the hidden share of a block, upper ends included; a share of 0 (read from the clean stream) is in none.
"""

ACCURACY, CLEAN = "text/accuracy", "text/clean_nats_per_token"
COUNTS = ("text/supervised_tokens", "text/answer_tokens")
"""Sums without a count of their own: whoever adds them up says of what the mean is (an optimizer step)."""
BINNED = tuple(f"text/{what}_hidden_{name}" for what in ("nats", "accuracy") for name in BINS)
DETAILS = (ACCURACY, CLEAN, *BINNED, *COUNTS)
ACTION_NATS, ACTION_ACCURACY = "action_bd/nats_per_token", "action_bd/accuracy"
ACTION_BINNED = tuple(name.replace("text/", "action_bd/") for name in BINNED)
ACTION_DETAILS = (ACTION_NATS, ACTION_ACCURACY, *ACTION_BINNED)
"""Of block-diffusion actions (``block_diffusion.action_enabled``); they count nothing without."""

NATS, PERPLEXITY = "text/nats_per_token", "text/perplexity_bound"


def text_details(task: TextTask, nats: Tensor, right: Tensor) -> dict[str, SumAndCount]:
    """Every name of ``DETAILS``. ``nats``: [S] cross-entropies of the scored slots; ``right`` [S]: 1 where the target
    was the most likely word."""
    nats, counted = nats.detach(), (~task.clean_only).float()
    n_scored = torch.full_like(task.answer_tokens, float(nats.numel()))
    return {
        ACCURACY: SumAndCount((right * counted).sum(), counted.sum()),
        CLEAN: SumAndCount((nats * (1 - counted)).sum(), (1 - counted).sum()),
        **by_share(task.mask_ratio, nats, right),
        COUNTS[0]: SumAndCount(n_scored, torch.ones_like(n_scored)),
        COUNTS[1]: SumAndCount(task.answer_tokens, torch.ones_like(n_scored)),
    }


def action_details(task: TextTask, nats: Tensor, right: Tensor) -> dict[str, SumAndCount]:
    """Every name of ``ACTION_DETAILS``, of a task of action tokens; as ``text_details``."""
    nats = nats.detach()
    binned = by_share(task.mask_ratio, nats, right)
    return {
        ACTION_NATS: SumAndCount((nats * task.bound_weights).sum(), task.answer_tokens),
        ACTION_ACCURACY: SumAndCount(right.sum(), torch.full_like(task.answer_tokens, float(right.numel()))),
        **{name: binned[text] for name, text in zip(ACTION_BINNED, BINNED, strict=True)},
    }


def no_details(device: torch.device | str, names: Sequence[str] = DETAILS) -> dict[str, SumAndCount]:
    """The same names where there is no text: every rank reports the same names in every step."""
    return {name: SumAndCount.zero(device) for name in names}


def by_share(mask_ratio: Tensor, nats: Tensor, right: Tensor) -> dict[str, SumAndCount]:
    """Cost and accuracy of tokens by how much of their block is hidden: "25_50" is more than 25 % and up to 50 %."""
    quarter = (mask_ratio * len(BINS)).ceil().long() - 1  # [S], -1: in no bin

    def total(values: Tensor) -> Tensor:
        sums = torch.zeros(len(BINS) + 1, dtype=values.dtype, device=values.device)
        return sums.index_add_(0, quarter + 1, values)[1:]

    counts = total(torch.ones_like(nats))
    sums = torch.cat([total(nats), total(right)])  # [2 K], as BINNED
    return {name: SumAndCount(sums[i], counts[i % len(BINS)]) for i, name in enumerate(BINNED)}


def perplexity(nats: float) -> float:
    """Of ``ar``; an upper bound of it for the others."""
    return math.exp(min(nats, 700.0))  # a float ends at exp(709)


def derived(values: Mapping[str, float], objective: str) -> dict[str, float]:
    """Figures that follow from a log's means: the perplexity, and for ``ar`` the cost of the clean stream, which is its
    own."""
    nats = values.get(NATS)
    if nats is None:
        return {}
    found = {PERPLEXITY: perplexity(nats)}
    return {**found, CLEAN: nats} if objective == "ar" else found

"""Decode action tokens block by block after the robot flow, instead of using the regression head.

The robot flow is read once and cached, as a prompt is. A block of masks (a time step by default) attends it and the
blocks before. Each forward keeps the bins above a confidence threshold. A full block joins the clean stream in the
first forward of the next one.

Legend: B batch, L sequence, n slots of a block, K bins, T chunk, A action size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from config.schema import BlockDiffusion
from models.action.encoding import ActionBins
from models.decoding.acceptance import Threshold, accept_within
from models.decoding.decoders import prediction_states
from models.decoding.kv_cache import CachedPrefix
from models.sequence import TokenSequence
from models.upvla import UPVLA


@dataclass(frozen=True)
class ActionDecoding:
    """``threshold``: bins above this probability are kept, and always the most likely one
    (``block_diffusion.action_conf_threshold``). ``forwards``: maximum per block; more bins are kept where it needs that
    (``block_diffusion.action_infer_steps``)."""

    threshold: float = 0.9
    forwards: int = 8

    @classmethod
    def of(cls, settings: BlockDiffusion) -> ActionDecoding:
        """Return the settings in ``block_diffusion.*``."""
        return cls(settings.action_conf_threshold, settings.action_infer_steps)

    def __post_init__(self) -> None:
        if self.forwards < 1:
            raise ValueError(f"block_diffusion.action_infer_steps is {self.forwards}; it must be 1 or more")


@dataclass(frozen=True)
class DecodedActions:
    """``actions`` [B, T, A] in [-1, 1]; ``forwards`` [B]: of the backbone for each row, the same as for the row
    alone."""

    actions: Tensor
    forwards: Tensor


@torch.no_grad()
def decode_actions(model: UPVLA, sequence: TokenSequence, how: ActionDecoding | None = None) -> DecodedActions:
    """Decode the chunks of a robot sequence (``models.sequence.robot_sequence``): the most likely bin in every slot.

    Raises ``ValueError`` for a model that was not trained with ``block_diffusion.action_enabled``.
    """
    spec, how = model.spec, how or ActionDecoding()
    trained = spec.decoding
    if trained.action_bins is None:
        raise ValueError(
            "this model has no block-diffusion actions: it was not trained with block_diffusion.action_enabled=true; "
            "its regression head acts"
        )
    bins, accept = ActionBins(model.vocab, trained.action_bins), Threshold(how.threshold)
    prefix = CachedPrefix(model, sequence)
    batch, device = sequence.ids.shape[0], sequence.ids.device
    tokens = spec.act_step * spec.action_dim
    blocks: list[Tensor] = []
    forwards = torch.zeros(batch, dtype=torch.long, device=device)
    for start in range(0, tokens, trained.action_block_size):
        block = torch.full((batch, min(trained.action_block_size, tokens - start)), model.vocab.mask, device=device)
        for left in range(how.forwards, 0, -1):
            open_ = block == model.vocab.mask
            if not open_.any():
                break
            hidden = prediction_states(prefix, block, trained.action_prediction == "shift")  # [B, n, D]
            confidence, best = model.code_logits(hidden, bins.count).softmax(dim=-1).max(dim=-1)  # [B, n, K] -> [B, n]
            fresh = accept_within(accept, left, confidence, open_)
            block = torch.where(fresh, model.vocab.code_ids(best), block)
            forwards = forwards + open_.any(dim=1)
        blocks.append(block)
        prefix.append(block)  # read with the next block; the last one is not read
    ids = torch.cat(blocks, dim=1).view(batch, spec.act_step, spec.action_dim)
    return DecodedActions(bins.values(ids), forwards)

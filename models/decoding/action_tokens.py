"""Acting by decoding action tokens, block by block behind the robot flow, in place of the regression head.

The robot flow is read once and cached, as a prompt is. A block of masks (a time step by default) sees it and the
blocks before; each forward keeps the bins it is sure of; a full block joins the clean stream in the forward that first
looks at the next one.

Legend: B batch, L sequence, n slots of a block, K bins, T chunk, A action size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from config.schema import BlockDiffusion
from models.action.encoding import ActionBins
from models.decoding.acceptance import Threshold, accept_within
from models.decoding.decoders import readings
from models.decoding.kv_cache import CachedPrefix
from models.sequence import TokenSequence
from models.upvla import UPVLA


@dataclass(frozen=True)
class ActionDecoding:
    """``threshold``: bins above this probability are kept, and the surest one always (``block_diffusion.
    action_conf_threshold``). ``forwards``: most per block; so many are kept that this suffices
    (``block_diffusion.action_infer_steps``)."""

    threshold: float = 0.9
    forwards: int = 8

    @classmethod
    def of(cls, settings: BlockDiffusion) -> ActionDecoding:
        """As ``block_diffusion.*`` says."""
        return cls(settings.action_conf_threshold, settings.action_infer_steps)

    def __post_init__(self) -> None:
        if self.forwards < 1:
            raise ValueError(f"block_diffusion.action_infer_steps is {self.forwards}; it must be 1 or more")


@dataclass(frozen=True)
class DecodedActions:
    """``actions`` [B, T, A] in [-1, 1]; ``forwards`` [B]: of the backbone that each row took, the same as alone."""

    actions: Tensor
    forwards: Tensor


@torch.no_grad()
def decode_actions(model: UPVLA, sequence: TokenSequence, how: ActionDecoding | None = None) -> DecodedActions:
    """The chunks of a robot sequence (``models.sequence.robot_sequence``): in every slot the most likely bin.

    Raises ``ValueError`` for a model that was not trained with ``block_diffusion.action_enabled``.
    """
    spec, how = model.spec, how or ActionDecoding()
    if spec.action_bins is None:
        raise ValueError(
            "this model has no block-diffusion actions: it was not trained with block_diffusion.action_enabled=true; "
            "its regression head acts"
        )
    bins, accept = ActionBins(model.vocab, spec.action_bins), Threshold(how.threshold)
    stream = CachedPrefix(model, sequence)
    batch, device = sequence.ids.shape[0], sequence.ids.device
    tokens = spec.act_step * spec.action_dim
    blocks: list[Tensor] = []
    forwards = torch.zeros(batch, dtype=torch.long, device=device)
    for start in range(0, tokens, spec.action_block_size):
        block = torch.full((batch, min(spec.action_block_size, tokens - start)), model.vocab.mask, device=device)
        for left in range(how.forwards, 0, -1):
            open_ = block == model.vocab.mask
            if not open_.any():
                break
            hidden = readings(stream, block, spec.action_prediction == "shift")  # [B, n, D]
            confidence, best = model.code_logits(hidden, bins.count).softmax(dim=-1).max(dim=-1)  # [B, n, K] -> [B, n]
            fresh = accept_within(accept, left, confidence, open_)
            block = torch.where(fresh, model.vocab.code_ids(best), block)
            forwards = forwards + open_.any(dim=1)
        blocks.append(block)
        stream.append(block)  # read with the next block; the last one by nobody
    ids = torch.cat(blocks, dim=1).view(batch, spec.act_step, spec.action_dim)
    return DecodedActions(bins.values(ids), forwards)

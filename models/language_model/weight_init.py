"""Where a backbone begins that has never seen an image code.

A code of lookup-free quantisation is 13 signs (``models/vision/magvitv2.py``). Rows drawn one by one for 8192 codes
hide that: the network would have to meet every code before it knows anything of it. Here codes that share bits begin
alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.upvla import UPVLA


def code_bits(count: int) -> Tensor:
    """[count, bits] of +1/-1, the most significant bit first; ``count`` is a power of two."""
    width = count.bit_length() - 1
    shifts = torch.arange(width - 1, -1, -1)
    return (torch.arange(count)[:, None] >> shifts & 1).float() * 2 - 1


@torch.no_grad()
def init_code_embeddings(model: UPVLA, seed: int) -> bool:
    """Give the embedding of every image code, and its row of the head, as a sum of one vector for each bit, drawn from
    ``seed``; rows keep the standard deviation that the configuration initialises with. False (nothing done) for a
    codebook whose size is no power of two."""
    vocab, lm = model.vocab, model.backbone.lm
    if vocab.codebook_size & (vocab.codebook_size - 1):
        return False
    bits = code_bits(vocab.codebook_size)
    std = float(getattr(model.backbone.config, "initializer_range", 0.02))
    draw = torch.Generator().manual_seed(seed)
    tables = {id(layer.weight): layer.weight for layer in (lm.get_input_embeddings(), lm.get_output_embeddings())}
    for weight in tables.values():
        of_bits = (
            torch.randn(bits.shape[1], weight.shape[1], generator=draw, dtype=bits.dtype) * std / bits.shape[1] ** 0.5
        )
        weight[vocab.first_code : vocab.mask] = (bits @ of_bits).to(weight)
    return True

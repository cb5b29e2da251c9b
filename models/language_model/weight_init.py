"""Initial embeddings of image codes.

A code of lookup-free quantisation is 13 signs (``models/vision/magvitv2.py``). Independent rows for 8192 codes ignore
that, and the network learns about a code only from its own occurrences. Here codes that share bits start with similar
rows.
"""

from __future__ import annotations

import torch

from models.upvla import UPVLA


@torch.no_grad()
def init_code_embeddings(model: UPVLA, seed: int) -> bool:
    """Set the embedding of every image code, and its row of the head, to a sum of one random vector for each bit.

    Vectors are drawn from ``seed``; rows have the standard deviation of the configuration. Returns False, without a
    change, for a codebook whose size is not a power of two.
    """
    vocab, lm = model.vocab, model.backbone.lm
    if vocab.codebook_size & (vocab.codebook_size - 1):
        return False
    bits = vocab.code_bits(torch.arange(vocab.first_code, vocab.mask))
    std = float(getattr(model.backbone.config, "initializer_range", 0.02))
    draw = torch.Generator().manual_seed(seed)
    tables = {id(layer.weight): layer.weight for layer in (lm.get_input_embeddings(), lm.get_output_embeddings())}
    for weight in tables.values():
        of_bits = (
            torch.randn(bits.shape[1], weight.shape[1], generator=draw, dtype=bits.dtype) * std / bits.shape[1] ** 0.5
        )
        weight[vocab.first_code : vocab.mask] = (bits @ of_bits).to(weight)
    return True

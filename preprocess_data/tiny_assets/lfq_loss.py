"""Lookup-free quantisation as something to train: the sign with a gradient, and what keeps the codebook in use.

Only for making a tokenizer; using one needs none of it. Equations: Yu et al. 2024, arXiv:2310.05737, section 3.1.

Shape letters: B batch, h/w latent grid, M = B*h*w cells, K = 13 bits, V = 8192 codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def straight_through(latent: Tensor) -> Tensor:
    """Signs (+1/-1; zero gives -1) of the latent, with the gradient of the identity."""
    signs = torch.where(latent > 0, 1.0, -1.0).to(latent.dtype)
    return latent + (signs - latent).detach()


@dataclass(frozen=True)
class CodebookLosses:
    """Scalars, in nats where entropies."""

    commitment: Tensor  # mean squared distance of the latent to its own signs
    cell_entropy: Tensor  # how undecided a cell is: to be small
    codebook_entropy: Tensor  # how evenly the batch uses the codes: to be large, at most log(8192) = 9.01

    def total(self, commitment: float = 0.25, entropy: float = 0.1) -> Tensor:
        """commitment * L_commit + entropy * (E[H(q(z))] - H(E[q(z)]))."""
        return commitment * self.commitment + entropy * (self.cell_entropy - self.codebook_entropy)


def codebook_losses(latent: Tensor, sharpness: float = 1.0) -> CodebookLosses:
    """Losses on the latent [B,K,h,w] that make every bit decided and every code used.

    q(code | z) is a softmax over the negative squared distances to all 2^K corners, which factorises into one Bernoulli
    per bit with logit 4 * sharpness * z. Its mean over the batch does not factorise, so that one is summed over all
    codes, as a [M,V] table (M = 512: 17 MB).
    """
    cells = latent.movedim(1, -1).flatten(0, -2).float()  # [M,K]
    commitment = F.mse_loss(cells, torch.where(cells > 0, 1.0, -1.0))

    # 1. log q of either value of every bit
    logits = 4 * sharpness * cells
    on, off = F.logsigmoid(logits), F.logsigmoid(-logits)  # [M,K]
    # 2. E[H(q(z))]: entropies of independent bits add up
    cell_entropy = -(on.exp() * on + off.exp() * off).sum(-1).mean()
    # 3. H(E[q(z)]): log q of all codes, from the most significant bit on
    log_q = torch.zeros(len(cells), 1, device=cells.device)
    for bit in range(cells.shape[1]):
        pair = torch.stack((off[:, bit], on[:, bit]), dim=-1)  # [M,2]
        log_q = (log_q[:, :, None] + pair[:, None, :]).flatten(1)  # [M,2^(bit+1)]
    mean = log_q.exp().mean(0)  # [V]
    codebook_entropy = -torch.xlogy(mean, mean).sum()
    return CodebookLosses(commitment, cell_entropy, codebook_entropy)

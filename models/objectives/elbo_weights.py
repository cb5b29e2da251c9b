"""Exact weights of masked tokens, which make a random mask an unbiased estimate of the likelihood bound.

A block of n tokens has the negative evidence lower bound

    NELBO = sum over k = 1..n of (1/k) E[ sum of the cross-entropies of the k masked tokens ],   k masked at random,

(the any-order likelihood; MDLM, arXiv 2406.07524, and LLaDA, arXiv 2502.09992, write it as an integral over the ratio
t). A copy that masks k tokens with probability Q(k) estimates it with weight 1 / (k Q(k)) on its masked sum. If each
token is masked with probability t, t uniform on (0, 1), then Q(k) = 1 / (n + 1) for every k: the weight (n + 1) / k is
finite where 1 / t has a heavy tail.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ratio:
    """Bounds of the mask ratio t: drawn uniformly from (low, high) for each block and pair of views."""

    low: float = 0.0
    high: float = 1.0

    def of(self, uniform: Tensor) -> Tensor:
        """Map uniform draws on (0, 1) to ratios."""
        return self.low + (self.high - self.low) * uniform


FULL = Ratio()


@lru_cache(maxsize=4096)
def level_probability(size: int, ratio: Ratio, complementary: bool) -> Tensor:
    """Return Q [size + 1], float64: the probability that a copy masks k of ``size`` tokens, k = 0..size.

    With ``complementary`` copies it is that of a copy picked from the pair at random: weighting both by it (the balance
    heuristic) is unbiased and less noisy than weighting each by its own.
    """
    probability = _masked_count(size, ratio)
    return (probability + probability.flip(0)) / 2 if complementary else probability


def _masked_count(size: int, ratio: Ratio) -> Tensor:
    """Return P(k tokens masked), t uniform on (low, high): a difference of binomial tails of size + 1 trials.

    P(k) = [F(k; low) - F(k; high)] / ((size + 1) (high - low)), F the cumulative distribution of Binomial(size + 1, .).
    The smaller tail is used, to avoid cancellation.
    """
    if ratio == FULL:
        return torch.full((size + 1,), 1.0 / (size + 1), dtype=torch.float64)
    low, high = (_binomial(size + 1, p) for p in (ratio.low, ratio.high))  # [size + 2] each
    below = (low.cumsum(0) - high.cumsum(0))[:-1]
    above = (high.flip(0).cumsum(0) - low.flip(0).cumsum(0)).flip(0)[1:]
    middle = (size + 1) * (ratio.low + ratio.high) / 2
    k = torch.arange(size + 1)
    return torch.where(k < middle, below, above) / ((size + 1) * (ratio.high - ratio.low))


def _binomial(trials: int, p: float) -> Tensor:
    """Return [trials + 1] probabilities, float64."""
    k = torch.arange(trials + 1, dtype=torch.float64)
    if p in (0.0, 1.0):
        return (k == trials * p).double()
    n = torch.tensor(float(trials), dtype=torch.float64)
    choose = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    log_p, log_q = (torch.log(torch.tensor(x, dtype=torch.float64)) for x in (p, 1 - p))
    return torch.exp(choose + k * log_p + (n - k) * log_q)


def exact_elbo_weight(masked: Tensor, size: Tensor, ratio: Ratio, complementary: bool) -> Tensor:
    """Return 1 / (k Q(k)), float32, of slots whose block has ``masked`` of ``size`` tokens masked; 0 if none is."""
    weight = torch.zeros(size.shape, dtype=torch.float64)
    for n in torch.unique(size).tolist():
        at = (size == n) & (masked > 0)
        k = masked[at]
        weight[at] = 1.0 / (k * level_probability(n, ratio, complementary)[k])
    return weight.float()


def uniform_ratio_weight(masked: Tensor, size: Tensor) -> Tensor:
    """Return (n + 1) / k, as ``exact_elbo_weight`` for ratios on (0, 1); 0 if nothing is masked."""
    return torch.where(masked > 0, (size + 1) / masked.clamp_min(1), 0.0).float()

"""Regression of an action chunk from attention-pooled hidden states (the MAP head of UP-VLA, arXiv 2501.18867).

One learned latent queries the T hidden states with multi-head attention, a gated MLP follows, and a linear layer
writes T x A numbers. Norms come after the residual sums.

Legend: B batch, T chunk, D hidden, H heads, d head width, A action size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """x / max(|x| / sqrt(D), 1e-8) * g. The floor is on the norm, not under the root: released weights expect it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = width**-0.5
        self.g = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        norm = x.norm(dim=-1, keepdim=True) * self.scale
        return x / norm.clamp_min(1e-8) * self.g


class LatentAttention(nn.Module):
    """Attention of latents to the inputs; only the output projection has a bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"the action head needs a width that is a multiple of its {heads} heads, got {width}")
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def _split(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        return x.view(batch, length, self.heads, width // self.heads).transpose(1, 2)  # [B, H, L, d]

    def forward(self, latents: Tensor, inputs: Tensor) -> Tensor:
        q = self._split(self.q(latents))
        k, v = (self._split(part) for part in self.kv(inputs).chunk(2, dim=-1))
        pooled = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = self.proj(pooled)
        return out


class GatedProjection(nn.Module):
    """Linear layer to twice the width; the value half times silu of the gate half."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.project(x).chunk(2, dim=-1)
        return value * F.silu(gate)


class MapPool(nn.Module):
    """Multi-head attention pooling: [B, T, D] -> [B, D]."""

    def __init__(self, width: int, heads: int = 8, ratio: int = 4) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, width) * 0.02)
        self.projection = nn.Linear(width, width)
        self.attn_norm = RMSNorm(width)
        self.attn = LatentAttention(width, heads)
        self.mlp_norm = RMSNorm(width)
        self.mlp = nn.Sequential(GatedProjection(width, ratio * width), nn.Linear(ratio * width, width))

    def forward(self, hidden: Tensor) -> Tensor:
        inputs = self.projection(hidden)
        latents = self.latents.expand(hidden.shape[0], -1, -1)  # [B, 1, D]
        latents = self.attn_norm(latents + self.attn(latents, inputs))
        latents = self.mlp_norm(latents + self.mlp(latents))
        return latents[:, 0]


class PooledRegression(nn.Module):
    """Pooling and one linear layer to T x A numbers, step by step, without squashing or clipping."""

    def __init__(self, width: int, act_step: int, action_dim: int) -> None:
        super().__init__()
        self.act_step = act_step
        self.action_dim = action_dim
        self.pool = MapPool(width)
        self.out = nn.Linear(width, act_step * action_dim)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return actions [B, T, A] from hidden states [B, T, D]."""
        flat: Tensor = self.out(self.pool(hidden))
        return flat.view(-1, self.act_step, self.action_dim)

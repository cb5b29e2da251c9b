"""Rules that select which proposed tokens of a block are kept in one forward; at least one always is.

Sources: threshold and factor, Fast-dLLM (arXiv 2505.22618); low-confidence remasking, LLaDA (2502.09992), is
equivalent to ``Static``; first hitting, Zheng et al. (2409.02908).

Legend: B batch, n slots of the block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Acceptance(Protocol):
    """A rule that selects tokens."""

    def keep(self, confidence: Tensor, open_: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return the slots to fill, [B, n] boolean: at least one of each row that has an open slot.

        ``confidence`` [B, n]: probability of each proposed token; ``open_`` [B, n] boolean: masked slots that may be
        filled now.
        """
        ...


def _rank(confidence: Tensor, open_: Tensor) -> Tensor:
    """Return 0 for the most confident open slot of a row, 1 for the next, ...; ties go to the earlier slot."""
    order = confidence.masked_fill(~open_, float("-inf")).argsort(dim=-1, descending=True, stable=True)
    return order.argsort(dim=-1)


@dataclass(frozen=True)
class Static:
    """Keep the ``count`` most confident tokens: a fixed number of forwards per block."""

    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"static acceptance of {self.count} words; it must be 1 or more")

    def keep(self, confidence: Tensor, open_: Tensor, generator: torch.Generator | None) -> Tensor:
        return open_ & (_rank(confidence, open_) < self.count)


@dataclass(frozen=True)
class Threshold:
    """Keep all tokens with a confidence above ``level``; with a level of 1 or more, one token per forward."""

    level: float = 0.9

    def __post_init__(self) -> None:
        if not self.level >= 0:
            raise ValueError(f"a threshold of {self.level}; it must be 0 or more")

    def keep(self, confidence: Tensor, open_: Tensor, generator: torch.Generator | None) -> Tensor:
        return open_ & ((confidence > self.level) | (_rank(confidence, open_) == 0))


@dataclass(frozen=True)
class Factor:
    """Keep the k most confident tokens while (k + 1) (1 - confidence of the k-th) < ``factor``: more tokens at once
    need a higher confidence."""

    factor: float = 1.0

    def __post_init__(self) -> None:
        if not self.factor >= 0:
            raise ValueError(f"a factor of {self.factor}; it must be 0 or more")

    def keep(self, confidence: Tensor, open_: Tensor, generator: torch.Generator | None) -> Tensor:
        rank = _rank(confidence, open_)
        return open_ & (((rank + 2) * (1 - confidence) < self.factor) | (rank == 0))


@dataclass(frozen=True)
class FirstHitting:
    """Keep one random slot, in the order in which the diffusion process would unmask them."""

    def keep(self, confidence: Tensor, open_: Tensor, generator: torch.Generator | None) -> Tensor:
        where = "cpu" if generator is None else generator.device
        chance = torch.rand(open_.shape, generator=generator, device=where).to(open_.device)
        return open_ & (_rank(chance, open_) == 0)


def accept_within(
    accept: Acceptance, left: int, confidence: Tensor, open_: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Return what ``accept`` keeps, and as many more confident tokens that ``left`` forwards fill every open slot.

    [B, n] boolean; a row does not depend on the others.
    """
    least = -(-open_.sum(dim=-1, keepdim=True) // left)  # [B, 1]
    return accept.keep(confidence, open_, generator) | (open_ & (_rank(confidence, open_) < least))


def acceptance(text: str) -> Acceptance:
    """Parse ``threshold:0.9``, ``static:2``, ``factor:1.0`` or ``first-hitting``. Raises ``ValueError`` naming
    these."""
    name, _, number = text.partition(":")
    try:
        if name == "threshold":
            return Threshold(float(number)) if number else Threshold()
        if name == "factor":
            return Factor(float(number)) if number else Factor()
        if name == "static":
            return Static(int(number)) if number else Static()
        if name == "first-hitting" and not number:
            return FirstHitting()
    except ValueError as error:
        raise ValueError(f"acceptance {text!r}: {error}") from error
    raise ValueError(f"acceptance {text!r}; allowed: threshold:<p>, static:<words>, factor:<f>, first-hitting")

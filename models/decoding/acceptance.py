"""Which of the proposed words of a block are kept in one forward; at least one always is.

Sources: threshold and factor, Fast-dLLM (arXiv 2505.22618); low-confidence remasking, LLaDA (2502.09992), is ``Static``
seen from its other side; first hitting, Zheng et al. (2409.02908).

Legend: B batch, n slots of the block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Acceptance(Protocol):
    """A rule."""

    def keep(self, confidence: Tensor, open_: Tensor, generator: torch.Generator | None) -> Tensor:
        """``confidence`` [B, n]: probability of each proposed word; ``open_`` [B, n] boolean: slots still hidden that
        may be filled now. Returns [B, n] boolean: fill these; at least one of each row that has an open slot."""
        ...


def _rank(confidence: Tensor, open_: Tensor) -> Tensor:
    """0 for the most confident open slot of a row, 1 for the next, ...; the earlier slot first where they tie."""
    order = confidence.masked_fill(~open_, float("-inf")).argsort(dim=-1, descending=True, stable=True)
    return order.argsort(dim=-1)


@dataclass(frozen=True)
class Static:
    """The ``count`` most confident: a fixed number of forwards per block."""

    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"static acceptance of {self.count} words; it must be 1 or more")

    def keep(self, confidence: Tensor, open_: Tensor, generator: torch.Generator | None) -> Tensor:
        return open_ & (_rank(confidence, open_) < self.count)


@dataclass(frozen=True)
class Threshold:
    """All above ``level``; with a level of 1 or more that is one word per forward."""

    level: float = 0.9

    def __post_init__(self) -> None:
        if not self.level >= 0:
            raise ValueError(f"a threshold of {self.level}; it must be 0 or more")

    def keep(self, confidence: Tensor, open_: Tensor, generator: torch.Generator | None) -> Tensor:
        return open_ & ((confidence > self.level) | (_rank(confidence, open_) == 0))


@dataclass(frozen=True)
class Factor:
    """The k most confident as long as (k + 1) (1 - confidence of the k-th) < ``factor``: the more at once, the surer
    each has to be."""

    factor: float = 1.0

    def __post_init__(self) -> None:
        if not self.factor >= 0:
            raise ValueError(f"a factor of {self.factor}; it must be 0 or more")

    def keep(self, confidence: Tensor, open_: Tensor, generator: torch.Generator | None) -> Tensor:
        rank = _rank(confidence, open_)
        return open_ & (((rank + 2) * (1 - confidence) < self.factor) | (rank == 0))


@dataclass(frozen=True)
class FirstHitting:
    """One slot, picked at random: the order in which the diffusion process itself would uncover them."""

    def keep(self, confidence: Tensor, open_: Tensor, generator: torch.Generator | None) -> Tensor:
        where = "cpu" if generator is None else generator.device
        chance = torch.rand(open_.shape, generator=generator, device=where).to(open_.device)
        return open_ & (_rank(chance, open_) == 0)


def accept_within(
    accept: Acceptance, left: int, confidence: Tensor, open_: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """What ``accept`` keeps, and so many more of the most confident that ``left`` forwards fill every open slot.

    [B, n] boolean, row by row: a row is filled as it would be alone.
    """
    least = -(-open_.sum(dim=-1, keepdim=True) // left)  # [B, 1]
    return accept.keep(confidence, open_, generator) | (open_ & (_rank(confidence, open_) < least))


def acceptance(text: str) -> Acceptance:
    """``threshold:0.9``, ``static:2``, ``factor:1.0`` or ``first-hitting``. Raises ``ValueError`` naming these."""
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

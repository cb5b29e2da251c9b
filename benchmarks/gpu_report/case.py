"""A case of the report, and what cases share: settings, and the network that the previous case left."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar
from unittest import mock

import torch

from benchmarks.harness.problems import SIZES, Size

T = TypeVar("T")
NETWORKS = {
    "real": {"Phi-1.5": "phi", "Qwen3-1.7B": "qwen3"},
    "tiny": {"Phi-1.5": "tiny", "Qwen3-1.7B": "tiny_qwen3"},
}
"""Networks of a ``--size``, by their names in the report: keys of ``SIZES`` (tiny ones of the same families)."""


class Skipped(Exception):
    """A case does not apply to the device; the message states why."""


class Unequal(Exception):
    """Two ways that must compute the same do not; the message has the difference and its limit."""


@dataclass
class Context:
    """Settings of the report. ``rounds``: timed runs of each case; ``compiler``: backend of ``torch.compile``."""

    size: str
    device: torch.device
    rounds: int
    compiler: str = "inductor"
    _held: dict[tuple[str, ...], Any] = field(default_factory=dict)

    @property
    def tiny(self) -> bool:
        return self.size == "tiny"

    def network(self, name: str) -> Size:
        """Return the sizes of a network of ``NETWORKS``."""
        return SIZES[NETWORKS[self.size][name]]

    def shared(self, key: tuple[str, ...], build: Callable[[], T]) -> T:
        """Return what ``build`` returned for ``key``. One object is kept, so that cases in a row share a network."""
        if key not in self._held:
            self.free()
            self._held[key] = build()
        found: T = self._held[key]
        return found

    def free(self) -> None:
        """Release the object that ``shared`` keeps, and the device's cached memory."""
        self._held.clear()
        gc.collect()
        torch._dynamo.reset()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def compiling(self) -> Any:
        """Return a context in which ``torch.compile`` uses ``compiler``."""
        return mock.patch("torch.compile", partial(torch.compile, backend=self.compiler))

    def autocast(self) -> torch.autocast:
        """Return the autocast in bf16 that all shipped runs use."""
        return torch.autocast(self.device.type, torch.bfloat16)


@dataclass(frozen=True)
class Case:
    """One measurement. ``run`` returns its figures by name; ``limit``: seconds after which it is stopped."""

    section: str
    name: str
    run: Callable[[Context], Mapping[str, Any]]
    limit: float = 90.0

    @property
    def key(self) -> str:
        return f"{self.section}: {self.name}"


def largest_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest absolute difference."""
    return float((one.float() - other.float()).abs().max())


def require_at_most(what: str, value: float, limit: float) -> None:
    """Raise ``Unequal`` if a difference is above its limit or not a number."""
    if not value <= limit:
        raise Unequal(f"{what} differ by {value:.3g}; allowed are {limit:g}")

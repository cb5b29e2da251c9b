"""Device memory of an accumulated step: images of its micro-batches are encoded one at a time."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from models.vision.clip_encoder import ClipTower
from models.vision.magvitv2 import MagVITv2
from tests.training.runs import Outcome

Start = Callable[..., Outcome]
STEPS = 2


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of earlier outputs of the frozen networks that are alive when one of them is called."""
    alive: list[int] = []
    outputs: list[weakref.ref[Tensor]] = []

    def record(owner: type, name: str) -> None:
        original = getattr(owner, name)

        def call(self: Any, pixels: Tensor) -> Tensor:
            alive.append(sum(output() is not None for output in outputs))
            result: Tensor = original(self, pixels)
            outputs.append(weakref.ref(result))
            return result

        monkeypatch.setattr(owner, name, call)

    record(MagVITv2, "encode")
    record(ClipTower, "features")
    return alive


@pytest.mark.parametrize("objective", ["ar", "bd"])
def test_outputs_of_earlier_micro_batches_are_freed_before_the_next_is_encoded(
    run: Start, encoded: list[int], objective: str
) -> None:
    run(
        training__text_objective=objective,
        objective=objective,
        training__gradient_accumulation_steps=8,
        training__max_train_steps=STEPS,
    )
    assert len(encoded) == 2 * 8 * STEPS
    assert max(encoded) <= 3  # this micro-batch and the one before it

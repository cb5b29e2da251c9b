"""Whole runs of the real entry point inside the test process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file
from torch import Tensor

import train_upvla
from tests.training.world import argv


@dataclass(frozen=True)
class Outcome:
    """What a run left behind."""

    folder: Path

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def curve(self, tag: str) -> list[float]:
        return [record[tag] for record in self.metrics if tag in record]

    def weights(self, step: int | None = None) -> dict[str, Tensor]:
        folder = self.folder if step is None else self.folder / f"checkpoint-{step}" / "unwrapped_model"
        return load_file(folder / "model.safetensors")


def train(world: Path, folder: Path, objective: Any = "ar", **overrides: Any) -> Outcome:
    """``train_upvla.main`` with overrides such as ``training__max_train_steps=3``."""
    forget_processes()
    given = [f"{name.replace('__', '.')}={value}" for name, value in overrides.items()]
    train_upvla.main(objective, argv(world, folder, *given))
    return Outcome(folder)


def forget_processes() -> None:
    """Accelerate keeps the state of a process's first run; each test wants its own precision and accumulation."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 0.0) -> bool:
    assert ours.keys() == theirs.keys()
    return all(torch.allclose(ours[name], theirs[name], rtol=0, atol=tolerance) for name in ours)

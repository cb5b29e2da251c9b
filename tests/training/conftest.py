"""Fixtures of the training tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.runs import Outcome, train
from tests.training.world import build_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def run(world: Path, tmp_path: Path) -> Callable[..., Outcome]:
    """Train in the world: ``run("name", training__max_train_steps=3)``; the name is the output folder's."""

    def start(name: str = "run", **overrides: Any) -> Outcome:
        return train(world, tmp_path / name, **overrides)

    return start


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

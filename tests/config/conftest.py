"""A folder with the least a run configuration needs to be complete."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from config.schema import MMU_INDEX, ROBOT_INDEX


@dataclass(frozen=True)
class Given:
    """Paths a user would give on the command line."""

    root: Path

    @property
    def argv(self) -> list[str]:
        return [
            f"dataset.params.train_pre_shards_path_or_url={self.root / 'robot'}",
            f"dataset.params.train_mmu_shards_path_or_url={self.root / 'mmu'}",
        ]


@pytest.fixture
def given(tmp_path: Path) -> Given:
    root = tmp_path / "given by the user"
    for folder, index in (("robot", ROBOT_INDEX), ("mmu", MMU_INDEX)):
        (root / folder).mkdir(parents=True)
        (root / folder / index).write_text("[]")
    return Given(root)

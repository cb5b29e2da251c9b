"""The data set gives the original's indices, actions, images, order and conversations."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parity import dataset
from tests.parity.where import parity_dir

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def parity() -> Path:
    return parity_dir()


def test_every_index_has_the_same_episode_future_instruction_and_actions(parity: Path) -> None:
    dataset.check_index(parity)


def test_samples_have_the_same_pixels(parity: Path) -> None:
    dataset.check_samples(parity)


def test_samples_come_in_the_same_shuffled_order(parity: Path) -> None:
    dataset.check_order(parity)


def test_conversations_have_the_same_ids_labels_and_pixels(parity: Path, tmp_path: Path) -> None:
    dataset.check_conversations(parity, tmp_path)

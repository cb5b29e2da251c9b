"""Offline evaluation asks about the same frames and reports the same figures as the original."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parity import offline
from tests.parity.where import parity_dir

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def parity() -> Path:
    return parity_dir()


def test_metrics_are_the_originals_to_the_last_digits(parity: Path) -> None:
    offline.check_metrics(parity)


def test_the_same_start_frames_and_horizons_are_evaluated(parity: Path) -> None:
    offline.check_sample_lists(parity)


@pytest.mark.parametrize("views", [1, 2])
def test_images_and_sentences_become_the_originals_actions(parity: Path, views: int, tmp_path: Path) -> None:
    offline.check_acting(parity, views, tmp_path)

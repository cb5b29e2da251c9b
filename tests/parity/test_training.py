"""Schedules, decay groups and one optimizer step are the original's, but for the decay that is left out on purpose."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parity import training
from tests.parity.where import parity_dir

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def parity() -> Path:
    return parity_dir()


def test_every_schedule_has_the_same_learning_rates(parity: Path) -> None:
    training.check_schedules(parity)


def test_we_decay_what_the_original_meant_to_decay(parity: Path) -> None:
    training.check_decay_groups(parity)


def test_an_optimizer_step_is_the_same_but_for_the_decay_of_norms_and_embeddings(parity: Path) -> None:
    training.check_optimizer_step(parity)

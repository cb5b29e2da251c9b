"""Masks and corruption of diffused text are the original's where its rule is ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parity import diffusion
from tests.parity.where import parity_dir

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def parity() -> Path:
    return parity_dir()


def test_noisy_blocks_see_what_the_originals_see_and_the_clean_stream_is_causal(parity: Path) -> None:
    diffusion.check_masks(parity)


def test_the_same_draws_hide_the_same_tokens(parity: Path) -> None:
    diffusion.check_corruption(parity)


def test_a_batch_of_elastic_blocks_is_laid_out_alike(parity: Path) -> None:
    diffusion.check_elastic_batch(parity)


def test_tokens_are_read_one_slot_before_as_there_but_for_a_blocks_first(parity: Path) -> None:
    diffusion.check_reading(parity)


def test_the_departures_are_as_documented(parity: Path) -> None:
    diffusion.check_departures(parity)

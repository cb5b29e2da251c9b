"""Action tokens are the original's where its rule is ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parity import actions
from tests.parity.where import parity_dir

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def parity() -> Path:
    return parity_dir()


def test_actions_have_the_originals_tokens_and_values(parity: Path) -> None:
    actions.check_quantisation(parity)


def test_the_same_tokens_are_hidden_behind_the_same_flow(parity: Path) -> None:
    actions.check_ids(parity)


def test_noisy_tokens_see_what_the_originals_see_and_the_departures_are_as_documented(parity: Path) -> None:
    actions.check_mask(parity)


def test_copies_repeat_positions_where_the_originals_count_on(parity: Path) -> None:
    actions.check_positions(parity)


def test_tokens_are_read_where_the_original_reads_them_but_for_a_blocks_first(parity: Path) -> None:
    actions.check_reading(parity)


def test_under_the_originals_mask_and_positions_the_network_pays_its_loss(parity: Path) -> None:
    actions.check_loss(parity)

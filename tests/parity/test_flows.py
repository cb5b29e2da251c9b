"""The robot and mmu flows are the original's, to rounding."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parity import flows
from tests.parity.where import parity_dir

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def parity() -> Path:
    return parity_dir()


def test_instructions_become_the_same_ids_labels_and_masks(parity: Path) -> None:
    flows.check_prompting(parity)


@pytest.mark.parametrize("views", [1, 2])
def test_the_robot_flow_has_the_same_losses_actions_and_future_codes(parity: Path, views: int) -> None:
    flows.check_robot_flow(parity, views)


def test_conversations_become_the_same_ids_and_labels(parity: Path) -> None:
    flows.check_conversation_ids(parity)


def test_the_mmu_flow_has_the_same_embeddings_mask_logits_and_loss(parity: Path) -> None:
    flows.check_mmu_flow(parity)


def test_one_combined_step_has_the_same_losses_and_gradients(parity: Path) -> None:
    flows.check_step(parity)


def test_greedy_answers_are_the_same_tokens(parity: Path) -> None:
    flows.check_generation(parity)


def test_the_original_run_folder_loads_by_every_name_and_survives_a_round_trip(parity: Path, tmp_path: Path) -> None:
    flows.check_checkpoint_folders(parity, tmp_path)


def test_real_size_models_have_the_released_names_and_shapes(parity: Path) -> None:
    flows.check_real_size_keys(parity)

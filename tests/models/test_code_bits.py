"""Learned vectors of the bits of image codes, and the absolute error of actions: options that are off by default."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.pretrained.model_config import ModelConfig
from models.pretrained.model_io import load_folder, save_folder
from models.vocabulary import Vocabulary
from tests.models.test_upvla import future
from tests.tiny import tiny_model


def test_a_codebook_whose_size_is_no_power_of_two_has_no_bits() -> None:
    with pytest.raises(ValueError, match="not 60"):
        _ = Vocabulary(words=10, bos=0, eos=1, codebook_size=60).code_bit_count


@torch.no_grad()
def test_the_vectors_of_its_bits_are_added_to_every_image_code_and_to_nothing_else(tmp_path: Path) -> None:
    model, prompter = tiny_model(tmp_path, num_view=2, code_bits=True)
    plain, _ = tiny_model(tmp_path, num_view=2)
    assert plain.code_bits is None
    assert model.code_bits is not None
    sequence = future(model, prompter, ["open the drawer", "push the red block to the left"]).sequence
    added = model.embed(sequence) - plain.embed(sequence)
    codes = sequence.image.columns  # type: ignore[union-attr]
    inner = slice(codes.start + 1, codes.stop - 1)
    expected = model.vocab.code_bits(sequence.ids[:, inner]) @ model.code_bits.weight.T
    torch.testing.assert_close(added[:, inner], expected, rtol=1e-4, atol=1e-6)
    added[:, inner] = 0
    assert not added.any()


def test_the_option_is_saved_and_loaded_and_absent_from_other_descriptions(tmp_path: Path) -> None:
    model, prompter = tiny_model(tmp_path / "words", code_bits=True)
    save_folder(model, prompter, tmp_path / "saved")
    loaded = load_folder(tmp_path / "saved").model
    assert loaded.spec.code_bits
    assert torch.equal(loaded.code_bits.weight, model.code_bits.weight)  # type: ignore[union-attr]
    plain, _ = tiny_model(tmp_path / "words")
    assert "code_bits" not in plain.spec.to_json()
    assert ModelConfig.from_json(plain.spec.to_json()) == plain.spec


@torch.no_grad()
def test_the_action_loss_is_the_mean_absolute_error_if_asked_for(tmp_path: Path) -> None:
    model, prompter = tiny_model(tmp_path)
    task = future(model, prompter, ["open the drawer"])
    error = model.predict(task.sequence).actions - task.actions
    torch.testing.assert_close(model(task).action.mean, error.square().mean())
    torch.testing.assert_close(model(replace(task, action_loss="l1")).action.mean, error.abs().mean())

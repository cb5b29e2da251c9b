"""Trained weights that a checkpoint stores separately from the exported ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from config.schema import LoRA
from training.checkpointing import trained_weights


@pytest.mark.parametrize(("part", "named"), [("trained", "live.a"), ("average", "average.a")])
def test_numbers_that_are_not_finite_are_refused_by_name(tmp_path: Path, part: str, named: str) -> None:
    tensors = {"trained": {"a": torch.ones(2)}, "average": {"a": torch.ones(2)}}
    trained_weights.write(tmp_path, LoRA(), **tensors, frozen_hash="")
    assert trained_weights.read(tmp_path) is not None
    tensors[part]["a"][1] = torch.nan
    trained_weights.write(tmp_path, LoRA(), **tensors, frozen_hash="")
    with pytest.raises(ValueError, match=rf"weights\.safetensors holds numbers that are not finite.*{named}"):
        trained_weights.read(tmp_path)

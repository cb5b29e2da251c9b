"""A run trains float32 weights for every type of the language model's files (case lm_dtype)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.training.runs import train
from tests.training.world import build_world


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_small_steps_are_not_lost_with_a_language_model_of_16_bits(tmp_path: Path, kind: str, precision: str) -> None:
    world = build_world(tmp_path / "world")
    file = world / "phi/config.json"
    described = json.loads(file.read_text(encoding="utf-8"))
    described.pop("dtype", None)
    file.write_text(json.dumps(described | {"torch_dtype": kind}), encoding="utf-8")
    rates = {"optimizer__params__learning_rate": 1e-5, "optimizer__params__weight_decay": 0.0}
    settings = {"training__max_train_steps": 2, "training__mixed_precision": precision, "experiment__save_every": 1}
    done = train(world, tmp_path / "run", **rates, **settings)
    first, last = done.weights(step=1), done.weights()
    assert {tensor.dtype for tensor in last.values()} == {torch.float32}
    layer = "showo.model.layers.0.mlp.fc1.weight"
    assert float((first[layer] != last[layer]).float().mean()) > 0.95  # in bfloat16 steps of 1e-5 round to nothing

"""The language model is transformers' own, but for what is slow there."""

from __future__ import annotations

import torch
from torch import nn
from transformers.activations import NewGELUActivation

from models.language_model import Backbone
from tests.tiny import llm_config


def test_phis_activation_is_one_kernel_that_computes_the_same_function() -> None:
    torch.manual_seed(0)
    backbone = Backbone(llm_config("phi"), 300).eval()
    layers = backbone.lm.model.layers
    assert not any(isinstance(module, NewGELUActivation) for module in backbone.modules())
    embeds, mask = torch.randn(2, 5, 32), torch.ones(2, 1, 5, 5, dtype=torch.bool).tril()
    positions = torch.arange(5).expand(2, -1)
    fused = backbone(embeds, mask, positions)
    for layer in layers:
        assert isinstance(layer.mlp.activation_fn, nn.GELU)
        layer.mlp.activation_fn = NewGELUActivation()
    torch.testing.assert_close(fused, backbone(embeds, mask, positions), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(fused, embeds)

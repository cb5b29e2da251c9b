"""A small CLIP vision tower with random weights.

The real architecture at toy size. A random patch embedding still carries the colours of a patch and where it is, which
is all that questions about the desk need; nothing here was trained on language, and the run summary says so.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from models.weights import write_safetensors

SIDE, PATCH = 112, 14
MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]
"""CLIP's normalisation of red, green and blue."""


def write_clip(folder: Path, seed: int = 0) -> None:
    """8 x 8 = 64 patches of width 64, three layers (the features are those after the second)."""
    config = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = CLIPVisionModel(config)
        # transformers draws these an order of magnitude smaller than a trained tower has them; at that size the
        # class token's position would drown the picture after the first layer norm.
        with torch.no_grad():
            for name, weight in tower.named_parameters():
                if "patch_embedding" in name:
                    weight.normal_(std=weight[0].numel() ** -0.5)
                elif "position_embedding" in name:
                    weight.normal_(std=0.5)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    write_safetensors(folder / "model.safetensors", tower.state_dict(), metadata={"format": "pt"})
    preprocessor = {
        "crop_size": {"height": SIDE, "width": SIDE},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": MEAN,
        "image_processor_type": "CLIPImageProcessor",
        "image_std": STD,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": SIDE},
    }
    text = json.dumps(preprocessor, indent=2, sort_keys=True) + "\n"
    (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")

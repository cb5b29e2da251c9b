"""Train a small CLIP vision tower on images of toys.

It has the real architecture at toy size, and is trained for a minute or two on generated images, to classify from each
patch the toy in that patch's corner. Its features then encode objects and their positions as CLIP's do, and a language
model learns in minutes to describe them. It has seen no language, and nothing but toys.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel

from common.command import progress_bar
from models.pretrained.weights_io import write_safetensors
from models.processing.image import ClipImageSpec, clip_pixels
from preprocess_data.tiny_assets.toys import COLOURS, SHAPES, SIDE, Scene, draw, random_scenes

PATCH = 28
GRID = SIDE // PATCH
WIDTH = 64
MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]
"""CLIP's normalisation of red, green and blue."""
IMAGES, STEPS, BATCH, LEARNING_RATE = 4000, 1600, 32, 3e-3
NOTHING = 1
"""Number of classes that precede the colours and the shapes: an empty corner."""

PREPROCESSOR = {
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


def images(count: int, seed: int, held_out: bool = False) -> tuple[Tensor, Tensor]:
    """Return pixels [count, 3, S, S] and the contents of every corner, [count, 4, (colour, shape)], 0 for nothing."""
    rng = np.random.default_rng(seed)
    scenes = random_scenes(count, rng, held_out)
    spec = ClipImageSpec.from_fields(PREPROCESSOR)
    return torch.stack([clip_pixels(draw(scene, rng), spec) for scene in scenes]), torch.tensor([*map(classes, scenes)])


def classes(scene: Scene) -> list[tuple[int, int]]:
    """Return (colour, shape) of every corner, 0 for nothing."""
    colours = list(COLOURS)
    return [(0, 0) if t is None else (colours.index(t.colour) + 1, SHAPES.index(t.shape) + 1) for t in scene]


def corner_of_patch() -> Tensor:
    """Return the corner's number of each patch, [P]."""
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    half = GRID // 2
    return (2 * (rows // half) + columns // half).flatten()


def train_tower(
    pixels: Tensor, labels: Tensor, steps: int = STEPS, seed: int = 0
) -> tuple[CLIPVisionModel, list[float]]:
    """Return the trained tower and the loss of each step.

    It has 4 x 4 = 16 patches of width 64 and three layers; the features are the outputs of the second, and the last one
    keeps its random weights. Deterministic on one machine and number of threads.
    """
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=WIDTH,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = CLIPVisionModel(config)
        probe = nn.Linear(WIDTH, 2 * NOTHING + len(COLOURS) + len(SHAPES))
    draws = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW([*tower.parameters(), *probe.parameters()], lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    targets = labels[:, corner_of_patch()]  # [count, P, 2]
    losses = []
    for _ in progress_bar(range(steps), desc="clip", unit="step"):
        chosen = torch.randint(0, len(pixels), (BATCH,), generator=draws)
        features = tower(pixel_values=pixels[chosen], output_hidden_states=True).hidden_states[-2][:, 1:]  # [B, P, C]
        classes = [NOTHING + len(COLOURS), NOTHING + len(SHAPES)]
        colour, shape = probe(features).flatten(0, 1).split(classes, dim=-1)
        truth = targets[chosen].flatten(0, 1)
        loss = F.cross_entropy(colour, truth[:, 0]) + F.cross_entropy(shape, truth[:, 1])
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return tower.eval().requires_grad_(False), losses


def write_clip(folder: Path) -> None:
    """Train the tower and write it in the layout of a CLIP vision model."""
    tower, losses = train_tower(*images(IMAGES, seed=0))
    folder.mkdir(parents=True, exist_ok=True)
    tower.config.save_pretrained(str(folder))
    # Half precision suffices and halves the committed bytes.
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tower.state_dict().items()
    }
    write_safetensors(folder / "model.safetensors", state, metadata={"format": "pt"})
    text = json.dumps(PREPROCESSOR, indent=2, sort_keys=True) + "\n"
    (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")
    print(f"loss of the last 50 steps: {np.mean(losses[-50:]):.4f}")

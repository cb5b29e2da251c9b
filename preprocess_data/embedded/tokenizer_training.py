"""Train the small MagVITv2 on pictures of the desk, long enough that decoded frames are recognisable.

Reconstruction error plus the codebook losses of lookup-free quantisation (`models.lfq`). Pixels that differ from the
mean picture weigh more: blocks, hand and doors are few pixels of a frame, and all that matters in it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from models.images import fit, normalise
from models.lfq import codebook_losses
from models.magvit import MagVITv2, Tower
from models.weights import write_safetensors
from preprocess_data.embedded.scenes import random_scenes

ENCODER = Tower(32, (1, 1, 2, 2, 2), (1, 1, 1, 1, 1))
DECODER = Tower(32, (1, 1, 2, 2, 2), (1, 1, 1, 1, 1))
RESOLUTION = 96
GRIPPER_SHARE = 4
"""One picture in so many is the gripper camera's."""


def pictures(count: int, seed: int) -> Tensor:
    """[count, 3, R, R] uint8: static frames, with a gripper frame now and then."""
    frames = []
    for index, scene in enumerate(tqdm(random_scenes(count, seed), total=count, desc="scenes", unit="frame")):
        frame = scene.gripper if index % GRIPPER_SHARE == GRIPPER_SHARE - 1 else scene.static
        frames.append(torch.from_numpy(np.ascontiguousarray(fit(frame, RESOLUTION))))
    return torch.stack(frames)


def train_magvit(
    frames: Tensor, steps: int, batch_size: int = 8, learning_rate: float = 2e-3, seed: int = 0
) -> tuple[MagVITv2, list[float]]:
    """A tokenizer and its reconstruction error by step (mean absolute, of a range of 2). Deterministic on one machine."""
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MagVITv2(ENCODER, DECODER)
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.05)
    mean = normalise(frames).mean(dim=0)
    errors = []
    progress = tqdm(range(steps), desc="tokenizer", unit="step")
    for step in progress:
        pixels = normalise(frames[torch.randint(0, len(frames), (batch_size,), generator=draw)])
        decoded, latent = model.reconstruct(pixels)
        weight = 0.3 + (pixels - mean).abs().mean(dim=1, keepdim=True) * 3
        difference = decoded - pixels
        reconstruction = (weight * (difference.abs() + difference.square())).mean()
        books = 0.3 * (1 - step / steps)  # the codebook is in use after a while; then the picture is all that counts
        loss = reconstruction + codebook_losses(latent, sharpness=0.5).total(entropy=books)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        errors.append(float(difference.detach().abs().mean()))
        if step % 20 == 0:
            progress.set_postfix(error=f"{np.mean(errors[-20:]):.4f}")
    return model.eval().requires_grad_(False), errors


def write_magvit(model: MagVITv2, folder: Path) -> None:
    """In the layout that `models.magvit.load_magvit` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {
        name: {"ch": tower.ch, "ch_mult": list(tower.ch_mult), "num_res_blocks": list(tower.num_res_blocks)}
        for name, tower in (("enc", ENCODER), ("dec", DECODER))
    }
    text = json.dumps({"_class_name": "MAGVITv2", **sizes}, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    # Half precision is plenty, and half the bytes to commit; everyone who uses the tokenizer uses these numbers.
    state = {
        name: t.half() if name.startswith(("encoder.", "decoder.")) else t for name, t in model.state_dict().items()
    }
    write_safetensors(folder / "model.safetensors", state, metadata={"format": "pt"})

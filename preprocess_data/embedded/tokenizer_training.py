"""Train the small MagVITv2 on pictures of the desk, long enough that decoded frames are recognisable.

Reconstruction error plus the codebook losses of lookup-free quantisation (`models.lfq`); what moves weighs most.
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
SCENES = ("D", "A", "D", "B", "D", "C")
"""In turn; half of the pictures are of the scene that the quickstart plays in."""
GRIPPER_EVERY = 7
"""One picture in so many is the gripper camera's; no divisor of the scenes' turn, so that every scene has some."""


def pictures(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Frames [count, 3, R, R] uint8, and the group [count] of each: same camera and, for the static one, same scene."""
    frames, groups = [], []
    for index, scene in enumerate(tqdm(random_scenes(count, seed, SCENES), total=count, desc="scenes", unit="frame")):
        by_gripper = index % GRIPPER_EVERY == GRIPPER_EVERY - 1
        frame = scene.gripper if by_gripper else scene.static
        frames.append(torch.from_numpy(np.ascontiguousarray(fit(frame, RESOLUTION))))
        groups.append(-1 if by_gripper else SCENES.index(SCENES[index % len(SCENES)]))
    return torch.stack(frames), torch.tensor(groups)


def emphasis(frames: Tensor, groups: Tensor) -> Tensor:
    """Weight of every pixel [count, 1, R, R]: blocks, hand, doors and lights are few pixels, and all that matters.

    In a fixed camera's pictures, what differs from their mean moves; the gripper camera's pictures move as a whole.
    """
    pixels = normalise(frames)
    weights = torch.full_like(pixels[:, :1], 0.5)
    for group in sorted({int(g) for g in groups if g >= 0}):
        mine = groups == group
        away = (pixels[mine] - pixels[mine].mean(dim=0)).abs().mean(dim=1, keepdim=True)
        weights[mine] = 0.2 + 5 * away
    return weights


def train_magvit(
    frames: Tensor, groups: Tensor, steps: int, batch_size: int = 8, learning_rate: float = 2e-3, seed: int = 0
) -> tuple[MagVITv2, list[float]]:
    """A tokenizer and its error by step (mean absolute, of a range of 2). Deterministic on one machine."""
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MagVITv2(ENCODER, DECODER)
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.05)
    weights = emphasis(frames, groups)
    errors = []
    progress = tqdm(range(steps), desc="tokenizer", unit="step")
    for step in progress:
        chosen = torch.randint(0, len(frames), (batch_size,), generator=draw)
        pixels = normalise(frames[chosen])
        decoded, latent = model.reconstruct(pixels)
        difference = decoded - pixels
        reconstruction = (weights[chosen] * (difference.abs() + difference.square())).mean()
        books = 0.2 * max(0.0, 1 - 2 * step / steps)  # once the codebook is in use, the picture is all that counts
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

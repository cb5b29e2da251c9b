"""A robot sample as it is written first, and as the original has it: what ``benchmarks.data_items`` is compared with.

The whole ``dataset_info.json`` in memory, the episode of a sample searched from the first one on, every image from a
file opened for it alone, both cameras always, and each image made into floats on its own.

Legend: R resolution, T actions per chunk, A action size.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

CAMERAS = ("rgb_static", "rgb_gripper")


@dataclass(frozen=True)
class NaiveSample:
    """``views``, ``future_views``: float [2, 3, R, R] in [-1, 1]; ``actions`` [T, A]."""

    views: Tensor
    future_views: Tensor
    instruction: str
    actions: Tensor


class NaiveData:
    """One sample for each frame."""

    def __init__(self, root: Path, act_step: int, resolution: int) -> None:
        self.root, self.act_step, self.resolution = root, act_step, resolution
        self.episodes: list[dict[str, Any]] = json.loads((root / "dataset_info.json").read_text())

    def __len__(self) -> int:
        return sum(len(episode["frames"]) for episode in self.episodes)

    def __getitem__(self, index: int) -> NaiveSample:
        for episode in self.episodes:
            if index < len(episode["frames"]):
                break
            index -= len(episode["frames"])
        frames = episode["frames"]
        future = min(index + self.act_step, len(frames) - 1)
        actions = [frame["rel_action"] for frame in frames[index : max(future, index + 1)]]
        while len(actions) < self.act_step:
            actions.append([0.0] * 6 + [actions[-1][-1]])
        return NaiveSample(
            views=torch.stack([self.image(frames[index]["dir"], camera) for camera in CAMERAS]),
            future_views=torch.stack([self.image(frames[future]["dir"], camera) for camera in CAMERAS]),
            instruction=episode["instruction"],
            actions=torch.tensor(actions),
        )

    def image(self, name: str, camera: str) -> Tensor:
        image = Image.fromarray(np.load(self.root / name)[camera])
        side = self.resolution
        image = image.resize((side, side), Image.Resampling.BICUBIC)  # square cameras: nothing to cut off
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels.to(torch.float32).div(255).sub_(0.5).div_(0.5)

    def batch(self, indices: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """(views [B, 2, 3, R, R], future_views, actions [B, T, A])."""
        samples = [self[index] for index in indices]
        return (
            torch.stack([sample.views for sample in samples]),
            torch.stack([sample.future_views for sample in samples]),
            torch.stack([sample.actions for sample in samples]),
        )


def naive_clip(fields: dict[str, Any]) -> Callable[[bytes], Tensor]:
    """The original's way from an encoded image to CLIP's input: the processor class of transformers, on PIL."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(**fields)

    def read(content: bytes) -> Tensor:
        image = Image.open(io.BytesIO(content)).convert("RGB")
        found: Tensor = processor(images=image, return_tensors="pt")["pixel_values"][0]
        return found

    return read

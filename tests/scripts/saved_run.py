"""A run's output folder of a few thousand weights, with a CLIP tower beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from models.pretrained.model_io import save_folder
from tests.tiny import tiny_model
from tests.training.world import write_clip

WIDTH = 16


def write_run(folder: Path, objective: str, **spec: Any) -> Path:
    """A run's output folder with a CLIP tower beside it, which its config.yaml names."""
    model, prompter = tiny_model(folder / "llm", clip_width=WIDTH, seed=3, text_objective=objective, **spec)
    with torch.no_grad():  # random weights of 0.02 say one word over and over
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed" not in name:
                parameter.mul_(6)
    save_folder(model, prompter, folder / "run")
    write_clip(folder / "clip")
    (folder / "run" / "config.yaml").write_text(f"model:\n  showo:\n    clip_model_path: {folder / 'clip'}\n")
    return folder / "run"

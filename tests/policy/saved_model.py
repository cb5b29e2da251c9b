"""A complete acting model of a few thousand weights on disk: network folder, image tokenizer, model yaml."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from models.pretrained.model_io import save_folder
from models.pretrained.weights_io import write_safetensors
from models.vision.magvitv2 import MagVITv2, Tower
from tests.tiny import tiny_model

RESOLUTION = 32
SMALL = Tower(32, (1, 1, 1, 1, 1), (1, 1, 1, 1, 1))


def write_tokenizer_of_images(folder: Path, seed: int = 0) -> Path:
    """A random MagVITv2 with 32 channels."""
    torch.manual_seed(seed)
    vq = MagVITv2(SMALL, SMALL)
    write_safetensors(folder / "model.safetensors", vq.state_dict())
    sizes = {"_class_name": "MAGVITv2", "enc": asdict(SMALL), "dec": asdict(SMALL)}
    (folder / "config.json").write_text(json.dumps(sizes), encoding="utf-8")
    return folder


def write_model(folder: Path, **spec: Any) -> Path:
    """`<folder>/run/checkpoint-3/unwrapped_model`, `<folder>/vq` and `<folder>/model.yaml` that names both."""
    model, prompter = tiny_model(folder / "llm", codebook_size=8192, **spec)
    checkpoint = folder / "run" / "checkpoint-3"
    save_folder(model, prompter, checkpoint / "unwrapped_model")
    (checkpoint / "metadata.json").write_text('{"global_step": 3}', encoding="utf-8")
    (folder / "vq").mkdir()
    write_tokenizer_of_images(folder / "vq")
    return write_yaml(folder / "model.yaml", folder)


def write_yaml(file: Path, folder: Path, **changes: Any) -> Path:
    """A model yaml for what `write_model` wrote; `changes` are dotted keys, with `__` for the dots."""
    settings = OmegaConf.create(
        {
            "model": {
                "vq_model": {"vq_model_name": str(folder / "vq")},
                "showo": {"tuned_model_path": str(folder / "run")},
            }
        }
    )
    for key, value in changes.items():
        OmegaConf.update(settings, key.replace("__", "."), value)
    OmegaConf.save(settings, file)
    return file

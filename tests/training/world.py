"""A world to train in that is made in a second: random small networks and a few recorded moments, on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from config.loading import load_job
from config.schema import Job
from models.vision.magvitv2 import MagVITv2, Tower
from tests.tiny import write_language_model

RESOLUTION = 32
T = 4
EPISODES = {"open the drawer": 9, "push the red block to the left": 7}


def build_world(root: Path) -> Path:
    """Language model, tokenizer of images, CLIP tower, robot data (training and validation), conversations."""
    write_language_model(root / "phi")
    write_magvit(root / "magvit")
    write_clip(root / "clip")
    write_robot_data(root / "robot", seed=0)
    write_robot_data(root / "robot_validation", seed=1)
    write_conversations(root / "chat")
    (root / "tiny.yaml").write_text(CONFIG.format(root=root))
    return root


def load(world: Path, output_dir: Path, **overrides: Any) -> Job:
    """A job in this world; ``training__seed=1`` overrides ``training.seed``."""
    given = [f"{name.replace('__', '.')}={value}" for name, value in overrides.items()]
    return load_job([f"config={world / 'tiny.yaml'}", f"experiment.output_dir={output_dir}", *given])


def argv(world: Path, output_dir: Path, *overrides: str) -> list[str]:
    return [f"config={world / 'tiny.yaml'}", f"experiment.output_dir={output_dir}", *overrides]


def write_magvit(folder: Path) -> None:
    folder.mkdir()
    sizes = {"ch": 32, "ch_mult": [1, 1, 1, 1, 1], "num_res_blocks": [1, 1, 1, 1, 1]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MagVITv2(Tower.from_fields(sizes), Tower.from_fields(sizes))
    (folder / "config.json").write_text(json.dumps({"_class_name": "MAGVITv2", "enc": sizes, "dec": sizes}))
    save_file(model.state_dict(), str(folder / "pytorch_model.safetensors"))


def write_clip(folder: Path) -> None:
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = CLIPVisionModel(config).state_dict()
    config.save_pretrained(str(folder))
    names = {
        name: f"vision_model.{name.removeprefix('vision_model.')}" for name in weights
    }  # as released files have it
    save_file({names[name]: tensor for name, tensor in weights.items()}, str(folder / "model.safetensors"))
    preprocessor = {
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
        "resample": 3,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.25, 0.25, 0.25],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))


def write_robot_data(folder: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    (folder / "frames").mkdir(parents=True)
    episodes, number = [], 0
    for instruction, length in EPISODES.items():
        frames = []
        for _ in range(length):
            name = f"frames/episode_{number:07d}.npz"
            images = {camera: rng.integers(0, 256, (40, 40, 3), np.uint8) for camera in ("rgb_static", "rgb_gripper")}
            np.savez(folder / name, **images)
            action = rng.uniform(-1, 1, 7).round(3).tolist()
            frames.append({"dir": name, "rel_action": action, "abs_action": action})
            number += 1
        episodes.append({"instruction": instruction, "frames": frames})
    (folder / "dataset_info.json").write_text(json.dumps(episodes))


def write_conversations(folder: Path) -> None:
    folder.mkdir()
    records = []
    for number, colour in enumerate(["red", "blue", "pink", "green", "white", "black"]):
        Image.new("RGB", (40, 36), colour).save(folder / f"{colour}.png")
        turns = [
            {"from": "human", "value": "<image>\nWhich colour is it?"},
            {"from": "gpt", "value": " ".join([f"It is {colour}."] * (1 + number % 3))},
        ]
        records.append({"id": str(number), "image": f"{colour}.png", "conversations": turns})
    (folder / "llava_v1_5_mix665k.json").write_text(json.dumps(records))


CONFIG = """\
defaults: [base]
experiment:
  name: test
  tracker: none
  save_every: 0
  eval_every: 0
  generate_every: 0
  log_every: 1
  log_grad_norm_every: 1
  resume_from_checkpoint: false
act_step: 4
model:
  gradient_checkpointing: false
  vq_model:
    vq_model_name: {root}/magvit
  showo:
    load_from_showo: false
    llm_model_path: {root}/phi
    clip_model_path: {root}/clip
    auto_set_llm_vocab_size: true
    num_vq_tokens: 4
dataset:
  params:
    train_pre_shards_path_or_url: {root}/robot
    train_mmu_shards_path_or_url: {root}/chat
    num_workers: 0
  preprocessing:
    max_seq_length: 128
    resolution: 32
optimizer:
  params:
    learning_rate: 0.003
lr_scheduler:
  params:
    warmup_steps: 0
training:
  batch_size_pre: 2
  batch_size_mmu: 2
  mmu_coeff: 1.0
  mixed_precision: "no"
  max_train_steps: 2
  device: cpu
question: Which colour is it? *** Is it red?
max_new_tokens: 3
"""

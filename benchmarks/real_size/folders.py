"""Folders as the released models have them, with random weights: Phi-1.5 in UP-VLA, MAGVITv2, CLIP, Qwen3-1.7B.

The files have the names, types and formats of the released ones; only the numbers are random. Words are invented: the
vocabulary has the released size, and ids of text therefore occur as bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from benchmarks.harness.problems import CLIP_FIELDS, SIZES, with_layers
from common.files import atomic_path, write_text
from config.loading import load_job
from models.pretrained.initial_weights import to_disk_names
from models.pretrained.model_io import build
from models.pretrained.weights_io import write_safetensors
from models.vision.clip_encoder import tower_shapes
from models.vision.magvitv2 import MagVITv2, SignTable

END_OF_TEXT = 50256
PHI, QWEN = SIZES["phi"], SIZES["qwen3"]


def write_words(folder: Path, words: int) -> None:
    """Write a tokenizer of exactly ``words`` entries: the byte alphabet, and names that no text contains."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*alphabet, *(f"unsaid{i}" for i in range(words - len(alphabet)))]
    names[END_OF_TEXT] = "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    fast.save_pretrained(str(folder))


def write_language_models(root: Path, layers: int | None = None) -> None:
    """Write the configurations and tokenizers of Phi-1.5 and Qwen3-1.7B to ``root``/phi and ``root``/qwen3.

    ``layers``: of both, None: the released numbers.
    """
    for name, size in (("phi", PHI), ("qwen3", QWEN)):
        (size if layers is None else with_layers(size, layers)).llm.save_pretrained(str(root / name))
        write_words(root / name, size.words)


def random_like(shapes: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return random tensors with the shapes of ``shapes``: standard deviation 0.02, and 1 for weights of norms."""
    rng, found = torch.Generator().manual_seed(0), {}
    for name, shaped in shapes.items():
        shape = torch.Size(shaped if isinstance(shaped, torch.Size) else shaped.shape)
        if "norm" in name and name.endswith("weight"):
            found[name] = torch.ones(shape, dtype=dtype)
        else:
            found[name] = torch.empty(shape, dtype=dtype).normal_(0.0, 0.02, generator=rng)
    return found


def write_upvla(root: Path) -> None:
    """Write ``root``/upvla: UP-VLA on the Phi of ``root``/phi, float32, in one ``pytorch_model.bin``."""
    (root / "upvla").mkdir(exist_ok=True)
    job = load_job(["config=config/arvla_action_tuning.yaml", *settings(root)], None)
    with torch.no_grad():
        state = random_like(to_disk_names(build(job, device="meta").model.state_dict()))
    write_text(root / "upvla" / "config.json", json.dumps({"_class_name": "Upvla", "w_clip_vit": True}) + "\n")
    with atomic_path(root / "upvla" / "pytorch_model.bin") as path:
        torch.save(state, path)


def write_qwen(root: Path) -> None:
    """Write the weights of ``root``/qwen3: bfloat16, with a tied head, in one ``model.safetensors``."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(root / "qwen3")))
    shapes = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    write_safetensors(root / "qwen3" / "model.safetensors", random_like(shapes, torch.bfloat16))


def write_magvit(root: Path) -> None:
    """Write ``root``/magvit: the released sizes, float32, in one ``pytorch_model.bin``."""
    with torch.device("meta"):
        shapes = MagVITv2(PHI.encoder, PHI.decoder).state_dict()
    table = SignTable()
    fixed = {"quantize.embedding": table.embedding, "quantize.power_vals": table.power_vals}
    state = {**random_like(shapes), **{name: tensor for name, tensor in fixed.items() if name in shapes}}
    (root / "magvit").mkdir(exist_ok=True)
    write_text(root / "magvit" / "config.json", json.dumps({"_class_name": "MAGVITv2"}) + "\n")
    with atomic_path(root / "magvit" / "pytorch_model.bin") as path:
        torch.save(state, path)


def write_clip(root: Path) -> None:
    """Write ``root``/clip: the vision tower of CLIP ViT-L/14-336, float32, in one ``model.safetensors``."""
    (root / "clip").mkdir(exist_ok=True)
    write_text(root / "clip" / "config.json", PHI.clip.to_json_string())
    write_text(root / "clip" / "preprocessor_config.json", json.dumps(CLIP_FIELDS) + "\n")
    write_safetensors(root / "clip" / "model.safetensors", random_like(tower_shapes(PHI.clip)))


def settings(root: Path) -> list[str]:
    """Return the settings that name the folders of ``root`` in place of hub ids."""
    return [
        f"model.showo.llm_model_path={root / 'phi'}",
        f"model.showo.clip_model_path={root / 'clip'}",
        f"model.showo.pretrained_model_path={root / 'upvla'}",
        f"model.vq_model.vq_model_name={root / 'magvit'}",
        "dataset.params.train_pre_shards_path_or_url=dummy_data/calvin_processed_training",
        "dataset.params.train_mmu_shards_path_or_url=dummy_data/llava",
    ]


def qwen_settings(root: Path) -> list[str]:
    """Return the settings that start from the language model of ``root``/qwen3 alone."""
    return [
        *(one for one in settings(root) if "llm_model_path" not in one and "pretrained_model_path" not in one),
        f"model.showo.llm_model_path={root / 'qwen3'}",
        "model.showo.load_from_showo=false",
    ]


def make_folders(root: Path, layers: int | None = None) -> None:
    """Write all folders that are not there. ``layers``: of the language models, None: the released numbers."""
    root.mkdir(parents=True, exist_ok=True)
    done = root / "made.json"
    wanted = {"layers": layers}
    if done.is_file() and json.loads(done.read_text(encoding="utf-8")) == wanted:
        return
    write_language_models(root, layers)
    for write in (write_magvit, write_clip, write_upvla, write_qwen):
        write(root)
    write_text(done, json.dumps(wanted) + "\n")

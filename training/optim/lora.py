"""Low-rank adapters in the backbone: inserted by peft, merged into ordinary weights for inference.

In training, a linear layer ``q_proj`` holds ``q_proj.base_layer.weight`` (W, frozen) and two small matrices A and B; it
computes with W + scale * B A. The exported model has that sum as ``q_proj.weight``, so that it needs no peft; A and B
are also written in peft's own format (``adapter/``).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from config.model_folders import looks_like_hub_id, split_revision
from config.parsing import shown
from config.schema import Job, LoRA
from models.language_model import Backbone
from models.pretrained.adapters import BASE_LAYER, A, B, merge
from models.pretrained.initial_weights import CODE_BITS_KEYS, GROUND_KEYS, STATE_KEYS
from models.pretrained.safetensors_file import Deferred, Writable
from models.pretrained.weights_io import write_safetensors
from models.upvla import UPVLA
from training.optim.freeze import matching

ADAPTER_FOLDER = "adapter"
ADAPTER_FILE = "adapter_model.safetensors"  # peft's name
BACKBONE = "backbone.lm."


def scale(settings: LoRA) -> float:
    """Return the factor of the product of the two matrices."""
    alpha = 2 * settings.rank if settings.alpha is None else settings.alpha
    return float(alpha) / settings.rank


def attach(model: UPVLA, job: Job) -> list[str]:
    """Insert the adapters of ``lora``, and freeze all other weights except ``lora.train_fully``, the state encoder,
    the ground head and the vectors of code bits, which no backbone was pretrained with. Returns a note.

    Without adapters (rank 0) nothing changes. Raises ValueError that names the key that does not fit the model.
    """
    settings = job.lora
    if settings.rank == 0:
        return []
    layers = attach_to(model.backbone, settings, job.training.seed)
    names = [name for name, _ in model.named_parameters()]
    fully = matching([n for n in names if ".lora_" not in n], settings.train_fully, "lora.train_fully")
    fully |= {name for name in names if name.startswith((STATE_KEYS, CODE_BITS_KEYS, GROUND_KEYS))}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name or name in fully)
    return [f"lora: rank {settings.rank}, scale {scale(settings):g}, in {layers} linear layers of the backbone"]


def attach_to(backbone: Backbone, settings: LoRA, seed: int) -> int:
    """Insert adapters into a backbone; return the number of layers. Seeded, they do not change its outputs yet."""
    if importlib.util.find_spec("peft") is None:
        raise ValueError(
            f"lora.rank={settings.rank} needs the package peft (pip install peft); lora.rank=0 does without"
        )
    from peft import inject_adapter_in_model

    config = _peft_config(settings, _targets(backbone, settings))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, backbone.lm)
    return sum(name.endswith(A) for name, _ in backbone.named_parameters())


def _peft_config(settings: LoRA, targets: list[str]) -> Any:
    from peft import LoraConfig

    alpha = 2 * settings.rank if settings.alpha is None else settings.alpha
    return LoraConfig(r=settings.rank, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0, bias="none")


def _targets(backbone: Backbone, settings: LoRA) -> list[str]:
    """Return the last name parts of the layers that get an adapter. (The head gets none: it is read by rows.)"""
    inside = backbone.lm.base_model
    last = {name.rpartition(".")[2] for name, m in inside.named_modules() if isinstance(m, nn.Linear)}
    unknown = [target for target in settings.targets if target not in last]
    if not last:
        raise ValueError(
            f"lora.rank={settings.rank}: a {backbone.config.model_type!r} backbone has no nn.Linear layer that an "
            "adapter could be added to; set lora.rank=0, or choose another model.showo.llm_model_path"
        )
    if unknown:
        raise ValueError(
            f"lora.targets={shown(settings.targets)}: the backbone has no linear layer {unknown[0]}; it has "
            f"{', '.join(sorted(last))} (the head and the embeddings are trained by lora.train_fully)"
        )
    return sorted(settings.targets or last)


def merged(state: Mapping[str, Tensor], settings: LoRA) -> dict[str, Writable]:
    """Return a state dict with the adapters merged into their layers, under the layers' own names.

    A merged weight is computed when it is written, so that there is never a second copy of the model.
    """
    result: dict[str, Writable] = {}
    for name, tensor in state.items():
        layer, base, leaf = name.rpartition(BASE_LAYER)
        if base and leaf == "weight" and layer + A in state:
            sum_of = partial(merge, tensor, state[layer + A], state[layer + B], scale(settings))
            result[f"{layer}.weight"] = Deferred(tensor.shape, tensor.dtype, sum_of)
        elif base:
            result[f"{layer}.{leaf}"] = tensor
        elif not name.endswith((A, B)):
            result[name] = tensor
    return result


def save_adapter(state: Mapping[str, Tensor], settings: LoRA, folder: Path, base: str) -> None:
    """Write the adapters of a state dict in peft's format: ``PeftModel.from_pretrained(language_model, folder)``.

    ``base``: the weights that the run started from (of a language model, or of a checkpoint).
    """
    targets = sorted({name.removesuffix(A).rpartition(".")[2] for name in state if name.endswith(A)})
    config = _peft_config(settings, targets)
    repo, revision = split_revision(base) if looks_like_hub_id(base) else (base, None)
    config.base_model_name_or_path, config.revision, config.inference_mode = repo, revision, True
    config.save_pretrained(str(folder))
    tensors = {
        "base_model.model." + name.removeprefix(BACKBONE).replace(".default.", "."): tensor
        for name, tensor in state.items()
        if name.endswith((A, B))
    }
    write_safetensors(folder / ADAPTER_FILE, tensors, metadata={"format": "pt"})

"""Trained weights, stored separately if the exported weights differ (EMA or merged LoRA).

``unwrapped_model/`` holds the weights for inference. With an average of the weights (``training.ema_decay``) or with
adapters (``lora``) these are not the weights that the optimizer updates. ``training_state/weights.safetensors`` then
holds those, ``live.<name>`` for every trained parameter and ``average.<name>`` for its average, so that resuming is
exact.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from config.schema import Job, LoRA
from models.pretrained.adapters import A, B, weights_sha256
from models.pretrained.weights_io import require_finite, write_safetensors

FILE = "weights.safetensors"
LIVE, AVERAGE, ABOUT = "live.", "average.", "about"
TOLERANCE = 1e-6
"""Relative difference of ``frozen_weights_norm`` that the order of summation can cause."""


@dataclass(frozen=True)
class TrainedWeights:
    """Content of ``FILE``: trained parameters, their average (empty without one), settings."""

    path: Path
    weights: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    about: Mapping[str, Any]

    @property
    def lora(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.about.get("lora", {})
        return found


def is_needed(job: Job) -> bool:
    """Return True if the exported weights differ from the trained ones."""
    return job.training.ema_decay is not None or job.lora.rank > 0


def write(
    folder: Path, settings: LoRA, trained: Mapping[str, Tensor], average: Mapping[str, Tensor], frozen_hash: str
) -> None:
    """Write ``FILE`` into the folder of a training state (rank 0).

    ``frozen_hash``: ``frozen_weights_hash`` at the start of the run.
    """
    tensors = {LIVE + name: tensor for name, tensor in trained.items()}
    tensors |= {AVERAGE + name: tensor for name, tensor in average.items()}
    about = json.dumps({"lora": asdict(settings), "resting": frozen_hash})
    write_safetensors(folder / FILE, tensors, metadata={ABOUT: about})


def read(state_dir: Path) -> TrainedWeights | None:
    """Return the content of ``FILE``, None if there is none. Raises ValueError for NaN or infinity in it."""
    path = state_dir / FILE
    if not path.is_file():
        return None
    with safe_open(str(path), framework="pt") as file:
        about = json.loads(file.metadata()[ABOUT])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is not a dict
    require_finite(tensors, path)
    return TrainedWeights(
        path=path,
        weights={n.removeprefix(LIVE): t for n, t in tensors.items() if n.startswith(LIVE)},
        average={n.removeprefix(AVERAGE): t for n, t in tensors.items() if n.startswith(AVERAGE)},
        about=about,
    )


@torch.no_grad()
def restore(saved: TrainedWeights, model: nn.Module, settings: LoRA) -> None:
    """Copy the saved values into the trained parameters. Raises ValueError if the saved run trained other parameters.

    With adapters the frozen weights come from the configuration again, so they are compared with the saved run's.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if trained.keys() != saved.weights.keys() or saved.lora != asdict(settings):
        raise ValueError(
            f"{saved.path} was saved by a run that trained other parameters; continue it with its own lora.*, "
            f"training.freeze and loss coefficients (its lora.rank was {saved.lora.get('rank')})"
        )
    for name, p in trained.items():
        p.copy_(saved.weights[name])
    if settings.rank > 0 and not _frozen_weights_match(saved.about["resting"], model):
        raise ValueError(
            f"{saved.path} holds adapters to other weights than those that this configuration starts from; "
            "continue with the model.showo.* settings and the training.seed that the run was started with"
        )


def frozen_weights_hash(model: nn.Module) -> str:
    """Return a digest of all weights that are not trained. Called while the model is on the host."""
    return weights_sha256(p for p in model.parameters() if not p.requires_grad)


def base_weights_hash(model: nn.Module) -> str:
    """Return the same of the weights that adapters are added to: without adapters that ``training.freeze`` froze."""
    named = model.named_parameters()
    return weights_sha256(p for name, p in named if not p.requires_grad and not name.endswith((A, B)))


def frozen_weights_norm(model: nn.Module) -> float:
    """Return the sum of squares of all weights that are not trained, which earlier checkpoints store instead."""
    return math.fsum(float(p.detach().double().square().sum()) for p in model.parameters() if not p.requires_grad)


def _frozen_weights_match(before: str | float, model: nn.Module) -> bool:
    if isinstance(before, str):
        return before == frozen_weights_hash(model)
    return math.isclose(before, frozen_weights_norm(model), rel_tol=TOLERANCE)

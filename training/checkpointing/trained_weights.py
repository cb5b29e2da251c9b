"""Weights that learn, where they are not the weights that act.

``unwrapped_model/`` holds what acts. With an average of the weights (``training.ema_decay``) or with adapters
(``lora``) that is not what the optimizer moves: then ``training_state/weights.safetensors`` holds that,
``live.<name>`` for every trained parameter and ``average.<name>`` for its average, so that a run goes on exactly.
"""

from __future__ import annotations

import hashlib
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
from models.pretrained.weights_io import require_finite, write_safetensors

FILE = "weights.safetensors"
LIVE, AVERAGE, ABOUT = "live.", "average.", "about"
CLOSE = 1e-6
"""Relative difference of the resting weights' size that summation order can make."""


@dataclass(frozen=True)
class LiveWeights:
    """What ``FILE`` of a checkpoint holds: trained parameters, their average (empty without one), settings."""

    path: Path
    weights: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    about: Mapping[str, Any]

    @property
    def lora(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.about.get("lora", {})
        return found


def is_needed(job: Job) -> bool:
    """Do the weights that act differ from those that learn?"""
    return job.training.ema_decay is not None or job.lora.rank > 0


def write(
    folder: Path, settings: LoRA, trained: Mapping[str, Tensor], average: Mapping[str, Tensor], resting: str
) -> None:
    """Write ``FILE`` into a training state's folder (rank 0). ``resting``: ``identity_of_the_rest`` at the start."""
    tensors = {LIVE + name: tensor.detach().cpu() for name, tensor in trained.items()}
    tensors |= {AVERAGE + name: tensor.cpu() for name, tensor in average.items()}
    about = json.dumps({"lora": asdict(settings), "resting": resting})
    write_safetensors(folder / FILE, tensors, metadata={ABOUT: about})


def read(state_dir: Path) -> LiveWeights | None:
    """What an earlier ``write`` left; None if nothing was needed there. ``ValueError`` for NaN or infinity in it."""
    path = state_dir / FILE
    if not path.is_file():
        return None
    with safe_open(str(path), framework="pt") as file:
        about = json.loads(file.metadata()[ABOUT])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    require_finite(tensors, path)
    return LiveWeights(
        path=path,
        weights={n.removeprefix(LIVE): t for n, t in tensors.items() if n.startswith(LIVE)},
        average={n.removeprefix(AVERAGE): t for n, t in tensors.items() if n.startswith(AVERAGE)},
        about=about,
    )


@torch.no_grad()
def put_back(live: LiveWeights, model: nn.Module, settings: LoRA) -> None:
    """Give the trained parameters their saved values. ``ValueError`` if the run is another than the one that was saved.

    With adapters the weights beside them come from the configuration once more, so it is seen that they are the same.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if trained.keys() != live.weights.keys() or live.lora != asdict(settings):
        raise ValueError(
            f"{live.path} was saved by a run that trained other parameters; continue it with its own lora.*, "
            f"training.freeze and loss coefficients (its lora.rank was {live.lora.get('rank')})"
        )
    for name, p in trained.items():
        p.copy_(live.weights[name])
    if settings.rank > 0 and not _is_the_same_rest(live.about["resting"], model):
        raise ValueError(
            f"{live.path} holds adapters to other weights than those that this configuration starts from; "
            "continue with the model.showo.* settings and the training.seed that the run was started with"
        )


def identity_of_the_rest(model: nn.Module) -> str:
    """Digest of the bytes of everything that is not trained; called while the model is on the host."""
    digest = hashlib.sha256()
    for parameter in model.parameters():  # compiling changes their names, not their order
        if not parameter.requires_grad:
            digest.update(f"{parameter.dtype} {tuple(parameter.shape)};".encode())
            digest.update(parameter.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def frozen_weights_norm(model: nn.Module) -> float:
    """Sum of squares of everything that is not trained: the identity that earlier checkpoints hold."""
    return math.fsum(float(p.detach().double().square().sum()) for p in model.parameters() if not p.requires_grad)


def _is_the_same_rest(was: str | float, model: nn.Module) -> bool:
    if isinstance(was, str):
        return was == identity_of_the_rest(model)
    return math.isclose(was, frozen_weights_norm(model), rel_tol=CLOSE)
